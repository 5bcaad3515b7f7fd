"""Finds a benchmark and a suite by a name as `metaworld/half-open`."""

from __future__ import annotations

from anyvla.config import ConfigError
from anyvla.evaluation.environments.base import Benchmark, Suite
from anyvla.registry import benchmarks, nearest


def open_suite(name: str) -> tuple[Benchmark, Suite]:
    """The benchmark and its suite. Raises ConfigError with the nearest names, ImportError if an extra is missing."""
    try:
        benchmark: Benchmark = benchmarks[name.partition("/")[0]]()
    except KeyError as error:
        raise ConfigError(error.args[0]) from None
    suites = benchmark.suites()
    wanted = name.partition("/")[2]
    if wanted not in suites:
        raise ConfigError(f"benchmark {benchmark.name} has no suite {wanted!r}: {nearest(wanted, list(suites))}")
    return benchmark, suites[wanted]
