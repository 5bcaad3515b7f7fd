"""Batches for a GPU are pinned ahead by a thread: the same ones in order, with the same errors."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest
import torch

from anyvla.training.pinning import AHEAD, pin_ahead
from anyvla.types import Batch
from tests import small

GPU = torch.device("cuda")
pinned: list[tuple[str, int]] = []  # the thread and the address of each


@pytest.fixture(autouse=True)
def pinning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Copy instead of pinning, which needs a GPU."""

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        pinned.append((threading.current_thread().name, copy.data_ptr()))
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    pinned.clear()
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("pin")]


class Batches:
    """Batches whose images name their step; notes which were made."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error, self.made, self.closed = count, error, 0, False

    def __call__(self) -> Generator[Batch, None, None]:
        try:
            for step in range(self.count):
                self.made += 1
                batch = small.batch(2, 1)
                batch.images.fill_(step)
                yield batch
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def test_batches_come_in_order_pinned_and_not_all_at_once() -> None:
    source = Batches(9)
    seen = []
    for step, batch in enumerate(pin_ahead(source(), GPU)):
        seen.append(int(batch.images.max()))
        assert batch.images.data_ptr() in {address for _, address in pinned}
        assert source.made <= step + 1 + AHEAD
        assert torch.equal(batch.proprio, small.batch(2, 1).proprio)
    assert seen == list(range(9))
    assert {name.partition("_")[0] for name, _ in pinned} == {"pin"}
    assert source.closed


def test_an_error_comes_after_the_batches_before_it() -> None:
    made = pin_ahead(Batches(3, ValueError("episode 3 is damaged"))(), GPU)
    assert [int(next(made).images.max()) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="episode 3 is damaged"):
        next(made)


def test_closing_ends_the_thread_and_the_batches() -> None:
    source = Batches(1000)
    made = pin_ahead(source(), GPU)
    next(made)
    made.close()
    assert source.closed
    assert source.made <= 2 + AHEAD


def test_batches_for_a_cpu_are_left_alone() -> None:
    given = Batches(2)()
    assert pin_ahead(given, torch.device("cpu")) is given
    given.close()
