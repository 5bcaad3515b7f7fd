"""Cut episodes into windows so that every step of an episode weighs the same, whatever the window.

The windows of an episode end at each of its steps and, with W > 1, at (W - 1) * stride virtual steps after its last
one, where only their valid steps count. So each step is in exactly W windows: in one as the newest step, in one as the
second newest, and so on. Without the windows that hang over the end, the last steps would be in fewer.

A policy that carries a state over its session is trained on whole rows instead: a row begins at one of the first
`stride` steps, as a session could, and has every `stride`-th step to the end. So each step is in exactly one row.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def count_windows(lengths: Int64[np.ndarray, "E"], window: int, stride: int) -> Int64[np.ndarray, "E"]:
    """Return the number of windows of W = `window` steps, `stride` apart, of episodes of these lengths."""
    return lengths + (window - 1) * np.minimum(stride, lengths)


def count_rows(lengths: Int64[np.ndarray, "E"], stride: int) -> Int64[np.ndarray, "E"]:
    """Return the number of whole rows of episodes of these lengths. They end at the last steps, one at each."""
    return np.minimum(stride, lengths)


def longest_row(lengths: Int64[np.ndarray, "E"], stride: int) -> int:
    """Return the number of steps of the longest whole row; 0 if there is no episode."""
    return -(-int(lengths.max(initial=0)) // stride)


def list_steps(end: int, length: int, window: int, stride: int) -> Int64[np.ndarray, "k"]:
    """Return the steps of the window that ends at step `end` of an episode, oldest first: at least one, at most W.

    `end` counts from 0 and may be past the last step, below `count_windows` of the episode. In an episode shorter than
    the stride every window has one step. A whole row is a window of at least as many steps as the row has.
    """
    stride = min(stride, length)
    first = end - (window - 1) * stride
    return np.arange(first if first >= 0 else end % stride, min(end + 1, length), stride)
