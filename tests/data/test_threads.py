from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from anyvla.data.threads import compute_alone, map_in_threads


@pytest.mark.parametrize("count", [0, 3, 64, 150])
def test_results_come_in_order_and_progress_counts_items(count: int) -> None:
    seen: list[tuple[int, int]] = []
    found = list(map_in_threads(lambda i: i * i, range(count), lambda done, total: seen.append((done, total))))
    assert found == [i * i for i in range(count)]
    assert seen == [(min(first + 64, count), count) for first in range(0, count, 64)]


def test_the_first_error_ends_the_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda i: 1 // (i - 5), range(1000)))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_that_compute_alone_leave_the_others_their_helpers() -> None:
    """Else the main thread, or a thread that serves the policy later on, computes on one core from then on."""
    with ThreadPoolExecutor(4, initializer=compute_alone) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(20))) == [1] * 20
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3
