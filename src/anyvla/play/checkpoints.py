"""Find the checkpoints to play with, and the suite that can show their robot, before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError, build
from anyvla.files.documents import as_mapping, read_json, read_yaml
from anyvla.registry import benchmarks
from anyvla.robot.embodiment import Embodiment
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import Spec

SHIPPED = Path(__file__).parent / "policy"  # its README.md says how it was made


@dataclass(frozen=True)
class PlayedCheckpoint:
    """A checkpoint, as its small files describe it."""

    folder: Path
    name: str  # for the page
    robots: tuple[Embodiment, ...]
    recipe: Mapping[str, Any]

    @property
    def benchmark(self) -> str | None:
        """The suite of its recipe; None if it names none."""
        return self.recipe.get("benchmark")


def read_checkpoint(folder: Path, name: str) -> PlayedCheckpoint:
    """Read the small files of a checkpoint. Raises ConfigError if `folder` holds none."""
    for file in ("config.yaml", "embodiments.json"):
        if not (folder / file).is_file():
            raise ConfigError(f"{name} holds no trained policy, {folder / file} is missing: give a run folder")
    robots = tuple(
        build(Embodiment, robot, where=str(folder / "embodiments.json"))
        for robot in read_json(folder / "embodiments.json")
    )
    if not robots:
        raise ConfigError(f"{folder / 'embodiments.json'} names no robot")
    config = folder / "config.yaml"
    return PlayedCheckpoint(folder, name, robots, as_mapping(read_yaml(config), str(config)))


def choose_suite(played: Sequence[PlayedCheckpoint], asked: str | None) -> str:
    """Return the suite to play in: the one asked for, else that of the recipe.

    Raises ConfigError if the checkpoints have different robots, or if no recipe names a benchmark; the message then
    names the suites of their robot.
    """
    first = played[0]
    for other in played[1:]:
        if _differ(first.robots, other.robots):
            raise ConfigError(
                f"{first.name} and {other.name} have different robots ({_name(first)}; {_name(other)}): two policies "
                "can be compared only on the same robot, with the same cameras and control rate"
            )
    suite = asked or first.benchmark
    if suite is None:
        found = find_suites(first.robots)
        can = f"give --benchmark {found[0]}" if len(found) == 1 else f"give --benchmark, one of {', '.join(found)}"
        raise ConfigError(
            f"the recipe of {first.name} names no benchmark, and a page needs a simulator of its robot "
            f"({_name(first)}): {can if found else _explain_missing()}"
        )
    return suite


def check_robot(played: PlayedCheckpoint, given: Embodiment, suite: str) -> Embodiment:
    """Return the checkpoint's robot of that suite. Raises ConfigError, with the suites that have it, if it has none."""
    for robot in played.robots:
        if not _differ([robot], [given]):
            return robot
    found = find_suites(played.robots)
    can = f"these show it: {', '.join(found)}" if found else _explain_missing()
    raise ConfigError(
        f"{suite} simulates another robot ({given.name}) than {played.name} moves ({_name(played)}): {can}"
    )


def find_suites(robots: Sequence[Embodiment]) -> list[str]:
    """Return the suites of the simulators installed here that have one of the robots."""
    found = []
    for kind in benchmarks:
        try:
            benchmark = Spec(benchmarks.target(kind)).open()
        except (BenchmarkUnusable, ImportError, ValueError):  # not installed, or needs settings as gym does
            continue
        for suite in benchmark.suites():
            given = build(Embodiment, benchmark.embodiment(suite), where=f"{kind}/{suite}")
            if any(not _differ([robot], [given]) for robot in robots):
                found.append(f"{kind}/{suite}")
    return found


def _differ(some: Sequence[Embodiment], others: Sequence[Embodiment]) -> bool:
    return list(some) != list(others)


def _name(played: PlayedCheckpoint) -> str:
    return ", ".join(robot.name for robot in played.robots)


def _explain_missing() -> str:
    return "no simulator installed here has it (anyvla list benchmarks); anyvla eval --open-loop needs none"
