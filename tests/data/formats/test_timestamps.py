from __future__ import annotations

import numpy as np
import pytest

from anyvla.data.formats.timestamps import as_relative_seconds

OPTION = "format: {name: folder, times: steady}"
EPOCH = 1.7e9  # seconds


def seconds(times, hz=30.0):
    return as_relative_seconds(np.asarray(times), hz, "a.npz", OPTION)


@pytest.mark.parametrize("first", [0.0, 12.5, -3.0, EPOCH])
def test_times_are_counted_from_the_first(first):
    steps = np.arange(50) / 30
    assert np.allclose(seconds(first + steps), steps, atol=1e-6)


def test_whole_seconds_of_slow_data_are_times():
    assert seconds(np.arange(5), hz=1).tolist() == [0, 1, 2, 3, 4]
    assert seconds(np.arange(5, dtype=np.uint8), hz=1).tolist() == [0, 1, 2, 3, 4]
    assert seconds([4.0]).tolist() == [0]


@pytest.mark.parametrize(
    ("times", "hz", "kind"),
    [
        (20_000 + np.arange(9) / 30, 30, np.float32),  # float32 is 1/512 s apart there, less than a tenth of a step
        (3 + np.arange(9) / 30, 30, np.float16),  # 1/512 s
        (9e7 + 8 * np.arange(9), 1 / 8, np.float64),  # whole seconds, which float32 could hold too
        (np.arange(9) / 10, 30, np.float64),  # a wrong rate is not a wrong unit
        (np.arange(9) * 0.4 * 1000 / 30, 30, np.float64),
        (np.arange(9) * 2.5 * 1000 / 30, 30, np.float64),
        (np.append(np.arange(8) / 30, 8 * 1000 / 30), 30, np.float64),  # one long pause
    ],
)
def test_plausible_times_are_accepted(times, hz, kind):
    given = np.asarray(times, kind)
    expected = given.astype(np.float64) - float(given[0])
    assert seconds(given, hz).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("times", "hz", "kind", "message"),
    [
        (33_000 + np.arange(9) / 30, 30, np.float32, "has steps of 0.00390625 s"),  # more than a tenth of 1/30 s
        (5 + np.arange(9) / 30, 30, np.float16, "has steps of 0.00390625 s"),
        (1.1e8 + 8 * np.arange(9), 1 / 8, np.float64, "kept as float32"),  # counted from 1970, and rounded
        (np.arange(9) * 0.6 * 1000 / 30, 30, np.float64, "milliseconds"),
        (np.arange(9) * 1.9 * 1000 / 30, 30, np.float64, "milliseconds"),
        (np.arange(9) * 1.9e9 / 30, 30, np.float64, "nanoseconds"),
    ],
)
def test_times_that_are_too_coarse_or_in_another_unit_are_refused(times, hz, kind, message):
    with pytest.raises(ValueError, match=message):
        seconds(np.asarray(times, kind), hz)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            (EPOCH + np.arange(50) / 30).astype(np.float32),
            r"kept as float32, which near 1\.7e\+09 s has steps of 128 s",
        ),
        ((EPOCH + np.arange(50) / 30).astype(np.float32).astype(np.float64), "kept as float32"),
        ((2e4 + np.arange(50) / 30).astype(np.float16), "timestamp of step 0 is inf|kept as float16"),
        ((500 + np.arange(50) / 30).astype(np.float16), "kept as float16"),
        (np.zeros(50), "step 1 is not after the one before it, all 50 are 0"),
        (np.full(50, EPOCH + 1), "all 50 are 1700000001"),
        ([0.0, 0.03, 0.03, 0.06], r"step 2 is not after the one before it \(0\.03 after 0\.03\)"),
        ([0.0, 0.03, 0.02, 0.06], "step 2 is not after"),
        ([0.0, np.nan, 0.06], "step 1 is nan"),
        ([0.0, 0.03, np.inf], "step 2 is inf"),
        (np.arange(50) * 1000 / 30, "the timestamps are milliseconds, expected seconds"),
        (np.arange(50) * 1e6 / 30, "microseconds"),
        ((1_700_000_000_000_000_000 + np.arange(50) * (10**9 // 30)), "nanoseconds"),
        ((1_700_000_000_000_000_000 + np.arange(50) * (10**9 // 30)).astype(np.uint64), "nanoseconds"),
        (np.array(["0.0", "0.1"]), "the timestamps are <U3"),
        (np.arange(3).astype("datetime64[ms]"), "datetime64"),
        (np.array([0, 1j, 2]), "complex128"),
        (np.array([False, True]), "bool"),
    ],
)
def test_impossible_times_are_refused_with_a_remedy(times, message):
    with pytest.raises(ValueError, match=rf"a\.npz: .*({message}).*times: steady"):
        seconds(times)
