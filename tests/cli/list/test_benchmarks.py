from __future__ import annotations

import json

import pytest

from anyvla.cli.list import benchmarks as list_benchmarks
from anyvla_sim.base import BenchmarkUnusable, Suite, Task
from tests.evaluation import toy_world

TASKS = (Task("a", "x", ("a",), episodes=7), Task("b", "x", ("b",)), Task("c", "x", ("c",)))
SUITES = {
    "line": Suite("line", TASKS, 90, episodes=4, groups={"easy": ("a",), "dull": ("b", "c")}),
    "chains": Suite("chains", TASKS, 30, episodes=40, chains=[("a", "b")] * 50),
}


class Registered(dict[str, str]):
    """A registry of benchmarks."""

    def target(self, name: str) -> str:
        return self[name]


class Away:
    """A benchmark whose simulator is not installed."""

    def __init__(self) -> None:
        raise BenchmarkUnusable("pip install away")


@pytest.fixture(autouse=True)
def two_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Registered(toy="tests.evaluation.toy_world:Toy", away=f"{__name__}:Away")
    monkeypatch.setattr(list_benchmarks, "benchmarks", found)
    monkeypatch.setattr(toy_world, "SUITES", SUITES)
    monkeypatch.setenv("COLUMNS", "160")


def test_suites_are_listed_with_the_episodes_of_a_whole_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_benchmarks.show(as_json=True) == 0
    toy, away = json.loads(capsys.readouterr().out)
    assert toy["suites"] == [
        {"name": "toy/line", "tasks": 3, "episodes": 7 + 4 + 4, "horizon": 90, "robot": "cart",
         "groups": ["dull", "easy"]},
        {"name": "toy/chains", "tasks": 3, "episodes": 40, "horizon": 30, "robot": "cart", "groups": []},
    ]  # fmt: skip
    assert (toy["factors"], toy["disturbances"]) == ({"load": ["light", "heavy"]}, ["push"])
    assert away == {"name": "away", "suites": [], "missing": "pip install away"}


def test_the_table_has_the_same_numbers_in_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_benchmarks.show(as_json=False) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "suite tasks episodes actions robot",
        "toy/line 3 15 90 cart",
        "toy/chains 3 40 30 cart",
        "toy, factors: load: light, heavy",
        "toy, disturbances: push",
        "away: pip install away",
    ]
