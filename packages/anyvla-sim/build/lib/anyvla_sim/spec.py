"""A benchmark's class, settings and interpreter, from which any process can open it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Mapping

from anyvla_sim.base import Benchmark

BENCHMARKS = {
    "calvin": "anyvla_sim.calvin.benchmark:Calvin",
    "gym": "anyvla_sim.gym:Gym",
    "libero": "anyvla_sim.libero.benchmark:Libero",
    "metaworld": "anyvla_sim.metaworld.benchmark:MetaWorld",
    "simpler": "anyvla_sim.simpler.benchmark:Simpler",
}


@dataclass(frozen=True)
class Spec:
    """A benchmark that can be opened in any process."""

    target: str  # "module:Class"
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON; the arguments of the class
    python: str | None = None  # the interpreter of its workers; None: this one

    def open(self) -> Benchmark:
        """Open the benchmark in this process. Raises ValueError for unknown settings, NotInstalled."""
        module, _, name = self.target.partition(":")
        benchmark_class = getattr(importlib.import_module(module), name)
        try:
            return benchmark_class(**self.settings)
        except TypeError as error:
            raise ValueError(f"the benchmark {name}: {error}") from None
