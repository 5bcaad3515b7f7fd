"""The toy benchmark as the evaluating side opens it."""

from __future__ import annotations

from typing import Any

from anyvla.config import build
from anyvla.evaluation.suites import OpenedSuite, open_suite
from anyvla.registry import benchmarks
from anyvla.robot.embodiment import Embodiment
from tests.evaluation.toy_world import EMBODIMENT_JSON

EMBODIMENT = build(Embodiment, EMBODIMENT_JSON)
if "toy" not in benchmarks:
    benchmarks.register("toy", "tests.evaluation.toy_world:Toy")


def opened(suite: str = "line", **settings: Any) -> OpenedSuite:
    return open_suite(f"toy/{suite}", settings)
