"""The scale of scores: success or obeyed instructions in percent, or tasks of a chain in a row."""

from __future__ import annotations

from dataclasses import dataclass

from anyvla.evaluation.intervals import Interval
from anyvla.report import plots


@dataclass(frozen=True)
class Scale:
    """From 0 to the largest possible score."""

    top: float = 1.0
    percent: bool = True
    title: str = "Success"  # the name of the score

    def format(self, value: float) -> str:
        """Format a score: "42 %", "2.31"."""
        return plots.format_percent(value) if self.percent else f"{value:.2f}"

    def format_range(self, score: Interval) -> str:
        """Format the ends of an interval."""
        if self.percent:
            return plots.format_interval(score)
        return f"{score.low:.2f}\N{EN DASH}{score.high:.2f}"

    def describe(self, score: Interval) -> str:
        """Format a score with its interval."""
        return f"{self.format(score.value)}, interval {self.format_range(score)}"

    @property
    def ticks(self) -> list[float]:
        """Five numbers from 0 to the top, or fewer for few tasks."""
        if self.percent:
            return [0.0, 0.25, 0.5, 0.75, 1.0]
        return [float(n) for n in range(int(self.top) + 1)] if self.top <= 6 else plots.make_ticks(0.0, self.top)


PERCENT = Scale()
OBEYED = Scale(title="Instruction obeyed")
