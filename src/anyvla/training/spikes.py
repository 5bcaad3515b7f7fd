"""Log the steps whose loss leaps, with their samples: often a damaged episode, sometimes a learning rate too high."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from statistics import median

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.limits import COUNT
from anyvla.training.log import TrainingLog
from anyvla.training.nonfinite import Describe
from anyvla.training.processes import Processes
from anyvla.types import Batch

logger = logging.getLogger(__name__)

_NORMAL = 1.4826  # standard deviations in a median absolute deviation of normal noise
_LEAST = 0.01  # of the median: below, a nearly constant loss would have spikes all the time


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SpikesConfig:
    """The section `training.spikes:` of a recipe."""

    # Standard deviations above the median of recent losses; their median absolute deviation estimates them.
    threshold: float = Field(default=10.0, gt=0, le=1e6)
    window: int = Field(default=100, ge=10, le=COUNT)  # recent losses; the search begins with half of them


@plain_dataclass(frozen=True)
class Spike:
    """A loss far above the recent ones."""

    loss: float
    median: float  # of the recent losses
    deviation: float  # of the recent losses, as a standard deviation


class SpikeDetector:
    """Compares each loss with the ones before it."""

    def __init__(self, config: SpikesConfig) -> None:
        self.config = config
        self.recent: deque[float] = deque(maxlen=config.window)

    def look(self, loss: float) -> Spike | None:
        """Return the spike that the loss of the next step is, if it is one."""
        found = None
        if len(self.recent) >= self.config.window // 2:
            middle = median(self.recent)
            spread = _NORMAL * median(abs(value - middle) for value in self.recent)
            spread = max(spread, _LEAST * abs(middle))
            if loss > middle + self.config.threshold * spread:
                found = Spike(loss, middle, spread)
        self.recent.append(loss)
        return found


class SpikeLog:
    """Writes the spikes of a training to a file, which exists once there is one.

    A resumed run forgets the losses before it, so that it finds spikes again after half a window. No weight depends on
    that.
    """

    def __init__(
        self, config: SpikesConfig | None, path: Path, start: int, describe: Describe, processes: Processes
    ) -> None:
        self.processes = processes
        self.detector = None if config is None else SpikeDetector(config)
        self.path, self.start, self.describe = path, start, describe
        self._log = TrainingLog(path, start) if processes.is_main and path.is_file() else None

    def look(self, step: int, loss: float, batch: Batch) -> None:
        """Log the loss of a step, with the samples of all processes, if it is a spike: it is one in all of them."""
        found = None if self.detector is None else self.detector.look(loss)
        if found is None:
            return
        samples = [] if batch.samples is None else batch.samples.tolist()
        named = [
            {"source": row[0], "episode": row[1], "step": row[2], "instruction": text, "name": self.describe(row, text)}
            for row, text in zip(samples, batch.instructions, strict=False)  # no samples: nothing is known of them
        ]
        named = [one for own in self.processes.gather(named) for one in own]
        if self._log is None:
            self._log = TrainingLog(self.path if self.processes.is_main else None, self.start)
        self._log.write({"step": step, **asdict(found), "samples": named})
        logger.warning(
            "step %d: the loss leaps to %.4g, from a median of %.4g over the last steps; its samples are in %s",
            *(step, found.loss, found.median, self.path),
        )
