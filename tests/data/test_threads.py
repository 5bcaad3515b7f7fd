from __future__ import annotations

import pytest

from anyvla.data.threads import map_in_threads


@pytest.mark.parametrize("count", [0, 3, 64, 150])
def test_results_come_in_order_and_progress_counts_items(count: int) -> None:
    seen: list[tuple[int, int]] = []
    found = list(map_in_threads(lambda i: i * i, range(count), lambda done, total: seen.append((done, total))))
    assert found == [i * i for i in range(count)]
    assert seen == [(min(first + 64, count), count) for first in range(0, count, 64)]


def test_the_first_error_ends_the_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda i: 1 // (i - 5), range(1000)))
