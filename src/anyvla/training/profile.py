"""Profile some steps of a training: a table of where the time goes, and a trace of each operator.

The table is measured with a clock and the trace in further steps, since recording operators slows small ones down
several times. Neither changes a result.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from anyvla.backbones.images.pixels import Pixels
from anyvla.files import durable
from anyvla.policy import VLA
from anyvla.training.named_methods import methods_of_parts, named_methods
from anyvla.training.spans import SpanClock, measuring, span, tracing

logger = logging.getLogger(__name__)

_WARM_UP = 5  # steps
_TRACED = 3  # steps at most: a trace has a hundred kilobytes for each, and more
_OPERATORS = 15
_REST, _STEP = "rest of the step", "step"
_PREPARATION, _FORWARD = "tokenize and preprocess", "rest of the forward pass"
# In the order of a step. The names of `span` in the loop, in OptimizerStep and here.
PARTS = (
    *("data wait", "to device", _PREPARATION, "vision", "projector", "embeddings", "language", "fuser"),
    *("decoder", _FORWARD, "backward", "clip", "optimizer", "ema", "measure", "log", "checkpoint", _REST),
)


@dataclass(frozen=True)
class Share:
    """A part of the time of a step."""

    part: str
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """The means over the profiled steps."""

    steps: int
    first_step: int
    device: str
    step_ms: float
    parts: list[Share]  # in the order of a step
    operators: list[dict[str, Any]]  # the slowest, of the traced steps

    def __str__(self) -> str:
        """Return the table, a line for each part."""
        width = max(len(p.part) for p in self.parts)
        lines = [f"{p.part:<{width}} {p.ms:>10.2f} ms {p.share:>7.1%}" for p in self.parts]
        last = self.first_step + self.steps - 1
        head = f"{_STEP:<{width}} {self.step_ms:>10.2f} ms  on {self.device}, mean of steps {self.first_step} to {last}"
        return "\n".join((head, *lines))


def profiled(
    steps: range, wanted: int | None, vla: VLA, run: Path, say: Callable[[str], None]
) -> Generator[int, None, None]:
    """Yield the steps of a training. If `wanted` is a number, profile so many of them, into `run/profile`.

    The body of the loop over the steps is profiled.
    """
    if wanted is None:
        yield from steps
        return
    # A run that has hardly any step left is profiled all the same.
    warm_up = min(_WARM_UP, len(steps) // 3)
    measured = steps[warm_up : warm_up + wanted]
    traced = steps[warm_up + wanted : warm_up + wanted + min(_TRACED, wanted)]
    if not measured:
        logger.warning("there is no step left to profile: give training.steps a larger number, or another run folder")
    yield from steps[:warm_up]
    folder = run / "profile"
    clock = SpanClock(vla.device)
    with _named_modules(vla):
        with measuring(clock):
            for step in measured:
                with clock.measure(_STEP):
                    yield step
        operators: list[dict[str, Any]] = []
        if traced:
            with torch.profiler.profile() as profiler, tracing(profiler):
                for step in traced:
                    with span(_STEP):
                        yield step
            folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(folder / "trace.json.gz"))
            operators = _slowest(profiler)
    if measured:
        profile = _summarize(clock, measured, vla.device, operators)
        folder.mkdir(parents=True, exist_ok=True)
        durable.write(folder / "profile.json", json.dumps(asdict(profile), indent=1))
        say(f"{profile}\nprofile: {folder} (profile.json; trace.json.gz opens in https://ui.perfetto.dev)")
    yield from steps[warm_up + len(measured) + len(traced) :]


def _summarize(clock: SpanClock, steps: range, device: torch.device, operators: list[dict[str, Any]]) -> Profile:
    seconds = dict(clock.seconds)
    whole = sum(seconds.values())
    seconds[_REST] = seconds.pop(_STEP)
    order = {part: place for place, part in enumerate(PARTS)}
    parts = [
        Share(part, 1000 * spent / len(steps), spent / whole)
        for part, spent in sorted(seconds.items(), key=lambda item: order.get(item[0], len(order)))
    ]
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Profile(len(steps), steps[0] + 1, kind, 1000 * whole / len(steps), parts, operators)


def _slowest(profiler: torch.profiler.profile) -> list[dict[str, Any]]:
    """Return the operators that take most time, on the device where there is one."""
    events = [e for e in profiler.key_averages() if e.key not in PARTS and e.key != _STEP]
    on_device = any(e.self_device_time_total for e in events)
    events.sort(key=lambda e: e.self_device_time_total if on_device else e.self_cpu_time_total, reverse=True)
    return [
        {
            "name": e.key,
            "calls": e.count,
            "cpu_ms": e.self_cpu_time_total / 1000,
            "device_ms": e.self_device_time_total / 1000,
        }
        for e in events[:_OPERATORS]
    ]


@contextlib.contextmanager
def _named_modules(vla: VLA) -> Iterator[None]:
    """Make spans of the parts of the policy within the context."""
    with named_methods(
        (vla, "loss", _FORWARD),
        (vla.backbone, "tokenize", _PREPARATION),
        *((module, "forward", _PREPARATION) for module in vla.modules() if isinstance(module, Pixels)),
        (vla.fuser, "forward", "fuser"),
        (vla.decoder, "loss", "decoder"),
        *methods_of_parts(vla.backbone),
    ):
        yield
