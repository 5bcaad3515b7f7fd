"""Which windows make up the batch of each step: a pure function of seed and step, of nothing else.

So the order of training depends neither on the number of workers nor on that of processes, and going on after an
interruption needs the step number only. Each window of a source comes up exactly once before any comes up again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

_BLOCK = 1 << 16  # positions whose sources are drawn at once
_ROUNDS = 6


@dataclass(frozen=True)
class WindowIndices:
    """The windows of a batch."""

    sources: Int64[np.ndarray, "B"]
    windows: Int64[np.ndarray, "B"]  # within their source
    chance: UInt64[np.ndarray, "B"]  # a random number each, to choose among the instructions of an episode

    def __len__(self) -> int:
        return len(self.sources)


class MixtureSampler:
    """Draws from sources of `sizes` windows, each with its share of the samples.

    Raises ValueError for a source without windows, and for shares that are not positive.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], batch_size: int, seed: int) -> None:
        if batch_size < 1 or not len(sizes) or min(sizes) < 1:
            raise ValueError(f"a batch and each source need one window at least: got {batch_size} and {list(sizes)}")
        if len(shares) != len(sizes) or min(shares) <= 0:
            raise ValueError(f"each of {len(sizes)} sources needs a share above 0, got {list(shares)}")
        self.sizes, self.batch_size, self.seed = np.asarray(sizes, np.int64), batch_size, seed
        self._edges = np.cumsum(np.asarray(shares, np.float64) / np.sum(shares))[:-1]
        self._before = [np.zeros(len(sizes), np.int64)]  # how often each source was drawn before each block
        self._block: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))  # the last one asked for

    def sample(self, step: int, rank: int = 0, ranks: int = 1) -> WindowIndices:
        """The batch of step 0, 1, ...; of `ranks` processes, the part of number `rank`: together they are the batch.

        Raises ValueError for a batch that cannot be shared equally.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        if self.batch_size % ranks:
            raise ValueError(f"a batch of {self.batch_size} cannot be shared equally by {ranks} processes")
        own = self.batch_size // ranks
        positions = step * self.batch_size + rank * own + np.arange(own)
        sources, turns = self._turns(positions)
        epochs, offsets = np.divmod(turns, self.sizes[sources])
        orders = list(zip(sources.tolist(), epochs.tolist(), strict=True))
        keys = {order: round_keys((self.seed, 1, *order)) for order in set(orders)}
        windows = permute(offsets, self.sizes[sources], np.stack([keys[order] for order in orders]))
        return WindowIndices(sources, windows, _mixed(positions.astype(np.uint64), round_keys((self.seed, 2))[0]))

    def _turns(self, positions: Int64[np.ndarray, "B"]) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position, and how often that source was drawn before."""
        parts = []
        for block in range(positions[0] // _BLOCK, positions[-1] // _BLOCK + 1):
            sources, turns = self._read(block)
            here = positions[positions // _BLOCK == block] % _BLOCK
            parts.append((sources[here], turns[here]))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _read(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position of a block, and its turn."""
        known = self._block  # read once: another thread may put its own there
        if known[0] == block:
            return known[1:]
        while len(self._before) <= block:
            drawn = self._sources(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self.sizes)))
        sources = self._sources(block)
        order = np.argsort(sources, kind="stable")
        counts = np.bincount(sources, minlength=len(self.sizes))
        turns = np.empty(_BLOCK, np.int64)
        turns[order] = np.arange(_BLOCK) - np.repeat(np.cumsum(counts) - counts, counts)
        turns += self._before[block][sources]
        self._block = (block, sources, turns)
        return sources, turns

    def _sources(self, block: int) -> np.ndarray:
        chance = np.random.default_rng((self.seed, 0, block)).random(_BLOCK)
        return np.searchsorted(self._edges, chance, side="right")


def permute(
    numbers: Int64[np.ndarray, "K"], sizes: Int64[np.ndarray, "K"], keys: UInt64[np.ndarray, "K rounds"]
) -> Int64[np.ndarray, "K"]:
    """Where permutations of 0 .. size-1, chosen by their keys, take these numbers; none is ever held in memory.

    A Feistel network over the next power of four, repeated for what falls outside of the range (cycle walking; Black
    and Rogaway, Ciphers with arbitrary finite domains, 2002).
    """
    half = np.ones(len(sizes), np.uint64)  # bits of either half of a number
    while (short := (np.uint64(1) << 2 * half) < sizes.astype(np.uint64)).any():
        half[short] += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = numbers.astype(np.uint64)
    left = np.arange(len(out))  # those that are still outside
    while len(left):
        bits, ones = half[left], mask[left]
        high, low = out[left] >> bits, out[left] & ones
        for own in keys[left].T:
            high, low = low, high ^ (_mixed(low, own) & ones)
        out[left] = (high << bits) | low
        left = left[out[left] >= sizes[left].astype(np.uint64)]
    return out.astype(np.int64)


def round_keys(entropy: tuple[int, ...]) -> UInt64[np.ndarray, "rounds"]:
    """The keys of one permutation."""
    return np.random.SeedSequence(entropy).generate_state(_ROUNDS, np.uint64)


def _mixed(x: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """A hash of each number (the finalizer of SplitMix64; Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
