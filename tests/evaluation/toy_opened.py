"""The toy benchmark as the evaluating side opens it."""

from __future__ import annotations

from typing import Any

from toy_world import EMBODIMENT_JSON

from anyvla.config import build
from anyvla.data.episode import Embodiment
from anyvla.evaluation.suites import Opened, open_suite
from anyvla.registry import benchmarks

EMBODIMENT = build(Embodiment, EMBODIMENT_JSON)
if "toy" not in benchmarks:
    benchmarks.register("toy", "toy_world:Toy")


def opened(suite: str = "line", **settings: Any) -> Opened:
    return open_suite(f"toy/{suite}", settings)
