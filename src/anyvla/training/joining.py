"""Let the processes of a sharded training join the measurements that process 0 makes.

Process 0 measures alone, with all weights. The others gather their parts for it at the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anyvla.training.measurements import Measurement
from anyvla.training.processes import Processes


class JoinedMeasurement:
    """A measurement that process 0 makes, as it is in another process."""

    names: Mapping[str, bool] = {}

    def __init__(self, every: int, saves_first: bool) -> None:
        self.every, self.saves_first = every, saves_first

    def describe(self) -> str:
        return f"process 0 measures every {self.every} steps"

    def measure(self, step: int) -> Mapping[str, float]:
        return {}


def join_measurements(measured: Sequence[Measurement], writers: Processes) -> list[Measurement]:
    """Return the measurements of process 0, and in the other processes those that stand for them."""
    plans = writers.on_main(lambda: [(m.every, m.saves_first) for m in measured])
    return list(measured) if writers.is_main else [JoinedMeasurement(every, saves) for every, saves in plans]
