"""Samples the windows of the batch of each step, as a pure function of the seed and the step.

So the order of training does not depend on the number of workers, and a resumed run needs the step number only. Each
window of a source is used exactly once before any is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

_BLOCK = 1 << 16  # positions whose sources are sampled together
_ROUNDS = 6


@dataclass(frozen=True)
class WindowIndices:
    """The windows of a batch."""

    sources: Int64[np.ndarray, "B"]
    windows: Int64[np.ndarray, "B"]  # within their source
    chance: UInt64[np.ndarray, "B"]  # random numbers that choose among the instructions of an episode

    def __len__(self) -> int:
        return len(self.sources)

    def cut(self, rows: range) -> WindowIndices:
        """Return the windows of some rows, one after another."""
        return WindowIndices(*(numbers[rows.start : rows.stop] for numbers in vars(self).values()))


class MixtureSampler:
    """Samples windows from sources of `sizes` windows (at least one each), by their shares (above 0)."""

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], batch_size: int, seed: int) -> None:
        self.sizes, self.batch_size, self.seed = np.asarray(sizes, np.int64), batch_size, seed
        self._edges = np.cumsum(np.asarray(shares, np.float64) / np.sum(shares))[:-1]
        self._before = [np.zeros(len(sizes), np.int64)]  # counts of each source before each block
        self._block: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))  # the last one asked for

    def sample(self, step: int) -> WindowIndices:
        """Return the batch of a step (0, 1, ...)."""
        positions = step * self.batch_size + np.arange(self.batch_size)
        sources, turns = self._count_turns(positions)
        epochs, offsets = np.divmod(turns, self.sizes[sources])
        orders = list(zip(sources.tolist(), epochs.tolist(), strict=True))
        keys = {order: round_keys((self.seed, 1, *order)) for order in set(orders)}
        windows = permute(offsets, self.sizes[sources], np.stack([keys[order] for order in orders]))
        return WindowIndices(sources, windows, _mix(positions.astype(np.uint64), round_keys((self.seed, 2))[0]))

    def _count_turns(self, positions: Int64[np.ndarray, "B"]) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position, and how often that source was sampled before."""
        parts = []
        for block in range(positions[0] // _BLOCK, positions[-1] // _BLOCK + 1):
            sources, turns = self._read_block(block)
            here = positions[positions // _BLOCK == block] % _BLOCK
            parts.append((sources[here], turns[here]))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _read_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position of a block, and how often that source was sampled before."""
        known = self._block  # read once: another thread may put its own there
        if known[0] == block:
            return known[1:]
        while len(self._before) <= block:
            sampled = self._sample_sources(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(sampled, minlength=len(self.sizes)))
        sources = self._sample_sources(block)
        order = np.argsort(sources, kind="stable")
        counts = np.bincount(sources, minlength=len(self.sizes))
        turns = np.empty(_BLOCK, np.int64)
        turns[order] = np.arange(_BLOCK) - np.repeat(np.cumsum(counts) - counts, counts)
        turns += self._before[block][sources]
        self._block = (block, sources, turns)
        return sources, turns

    def _sample_sources(self, block: int) -> np.ndarray:
        chance = np.random.default_rng((self.seed, 0, block)).random(_BLOCK)
        return np.searchsorted(self._edges, chance, side="right")


def spread_at_random(count: int, most: int, seed: int) -> Int64[np.ndarray, "K"]:
    """Return at most `most` of the numbers 0 .. count-1: all, or one at random of each of `most` equal stretches."""
    if count <= most:
        return np.arange(count)
    stretches = np.linspace(0, count, most + 1).astype(np.int64)
    return np.random.default_rng(seed).integers(stretches[:-1], stretches[1:])


def permute(
    numbers: Int64[np.ndarray, "K"], sizes: Int64[np.ndarray, "K"], keys: UInt64[np.ndarray, "K rounds"]
) -> Int64[np.ndarray, "K"]:
    """Map numbers by pseudo-random permutations of 0 .. size-1 that are never held in memory.

    A Feistel network over the next power of four is repeated while a number is out of range (cycle walking; Black and
    Rogaway, Ciphers with arbitrary finite domains, 2002).
    """
    half = np.ones(len(sizes), np.uint64)  # bits of either half of a number
    while (short := (np.uint64(1) << 2 * half) < sizes.astype(np.uint64)).any():
        half[short] += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = numbers.astype(np.uint64)
    left = np.arange(len(out))  # the numbers that are still out of range
    while len(left):
        bits, ones = half[left], mask[left]
        high, low = out[left] >> bits, out[left] & ones
        for own in keys[left].T:
            high, low = low, high ^ (_mix(low, own) & ones)
        out[left] = (high << bits) | low
        left = left[out[left] >= sizes[left].astype(np.uint64)]
    return out.astype(np.int64)


def round_keys(entropy: tuple[int, ...]) -> UInt64[np.ndarray, "rounds"]:
    """Return the round keys of one permutation."""
    return np.random.SeedSequence(entropy).generate_state(_ROUNDS, np.uint64)


def _mix(x: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """Hash each number (the finalizer of SplitMix64; Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
