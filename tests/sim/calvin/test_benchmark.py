from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyvla.config import build
from anyvla.data.formats.calvin.dataset import calvin_embodiment
from anyvla.evaluation.conditions import Condition, parse
from anyvla.evaluation.protocol import EvaluationConfig, plan_episodes
from anyvla.robot.embodiment import Embodiment
from anyvla_sim.base import BenchmarkUnusable, NotInstalled
from anyvla_sim.calvin import installation
from anyvla_sim.calvin.benchmark import Calvin
from anyvla_sim.calvin.sequences import SEQUENCES
from tests.sim.calvin import calvin_root

CHAIN = ["turn_on_led", "open_drawer"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a folder with the layout of a checkout. No package is required."""
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(installation, "PACKAGES", {})
    root = calvin_root.write(tmp_path / "calvin")
    source = root / SEQUENCES
    drawn = "[str(np.random.randint(100)) for _ in range(5)]"
    source.write_text(source.read_text().replace(drawn, str(CHAIN)))
    return str(root)


def _json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_the_embodiment_equals_that_of_the_data_sets() -> None:
    """As in the README of CALVIN's dataset folder: robot_obs, rel_actions in units of 0.02 m and 0.05 rad, 30 Hz."""
    described = Calvin.embodiment(Calvin.__new__(Calvin), "ABC-D")
    position = {"name": "position", "size": 3, "kind": "position", "frame": "base"}
    rotation = {"name": "rotation", "size": 3, "kind": "rotation"}
    gripper = {"size": 1, "kind": "gripper"}
    command = {**gripper, "low": -1, "high": 1, "open": 1}
    step = {"mode": "delta", "low": -1, "high": 1}
    assert described == {
        "name": "calvin_panda",
        "cameras": ["static", "gripper"],
        "control_hz": 30,
        "proprio": {
            "groups": [
                {**position, "unit": "m"},
                {**rotation, "rotation": "euler", "unit": "rad", "frame": "base"},
                {**gripper, "name": "gripper", "low": 0, "high": 0.08, "open": 0.08, "unit": "m"},
                {"name": "joints", "size": 7, "kind": "joints", "unit": "rad"},
                {**command, "name": "gripper_command"},
            ]
        },
        "action": {
            "groups": [
                {**position, **step, "unit": "0.02 m"},
                {**rotation, **step, "unit": "0.05 rad"},
                {**command, "name": "gripper"},
            ]
        },
    }
    assert build(Embodiment, described) == calvin_embodiment("relative")


def test_a_suite_has_the_official_tasks_and_chains(root: str) -> None:
    benchmark = Calvin(root, render="tiny")
    suite = benchmark.suite("ABCD-D")
    assert [(t.name, list(t.instructions)) for t in suite.tasks] == [
        ("turn_on_led", ["press the button"]),
        ("open_drawer", ["pull the handle"]),
    ]
    assert (suite.horizon, suite.success_rule, suite.episodes, len(suite.chains)) == (360, "reached", 1000, 1000)
    episodes = plan_episodes(suite, EvaluationConfig(episodes=2), [Condition()])
    assert [[subtask.instruction for subtask in e.subtasks] for e in episodes] == [
        ["press the button", "pull the handle"]
    ] * 2
    assert (benchmark.protocol("ABCD-D")["trained_in"], benchmark.protocol("ABC-D")["trained_in"]) == ("ABCD", "ABC")


def test_fewer_chains_are_the_first_of_the_official_list(root: str) -> None:
    every, few = Calvin(root, render="tiny"), Calvin(root, render="tiny", chains=3)
    assert [c.start for c in few.chains()] == [c.start for c in every.chains()][:3]
    assert few.suite("ABC-D").episodes == 3


def test_the_seed_chooses_a_paraphrase(root: str, tmp_path: Path) -> None:
    phrases = {"turn_on_led": ["light it", "make it green"], "open_drawer": ["draw it out"]}
    benchmark = Calvin(root, render="tiny", language=_json(tmp_path / "words.json", phrases))
    episodes = plan_episodes(benchmark.suite("ABC-D"), EvaluationConfig(episodes=3), [parse("paraphrased")])
    instructions = [[subtask.instruction for subtask in e.subtasks] for e in episodes]
    assert instructions == [["light it", "draw it out"], ["make it green", "draw it out"], ["light it", "draw it out"]]
    assert benchmark.protocol("ABC-D")["other_words"] != Calvin(root, render="tiny").protocol("ABC-D")["other_words"]


def test_settings_open_an_equal_benchmark(root: str, tmp_path: Path) -> None:
    phrases = {"turn_on_led": ["light it"], "open_drawer": ["draw it out"]}
    one = Calvin(root, render="tiny", chains=7, language=_json(tmp_path / "words.json", phrases))
    again = Calvin(**json.loads(json.dumps(dict(one.settings))))
    assert again.settings == one.settings
    assert again.suite("ABC-D") == one.suite("ABC-D")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"render": "elg"}, "no renderer 'elg': did you mean 'egl'"),
        ({"chains": 0}, "chains: 1 to 1000 of the official list, not 0"),
        ({"chains": 1001}, "chains: 1 to 1000"),
        ({"language": "/nowhere.json"}, "language: /nowhere.json cannot be read"),
    ],
)
def test_bad_settings_are_refused(root: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calvin(root, **{"render": "tiny", **settings})


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (["press"], "must map each task to a list of phrases"),
        ({"turn_on_led": []}, "must map each task to a list of phrases"),
        ({"turn_on_let": ["press"]}, "no task 'turn_on_let': did you mean 'turn_on_led'"),
        ({"turn_on_led": ["press"]}, "has no phrases for open_drawer; every task needs some"),
    ],
)
def test_bad_paraphrases_are_refused(root: str, tmp_path: Path, phrases: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calvin(root, render="tiny", language=_json(tmp_path / "words.json", phrases))


def test_unknown_suites_are_refused(root: str) -> None:
    benchmark = Calvin(root, render="tiny")
    for verb in (benchmark.suite, benchmark.make):
        with pytest.raises(ValueError, match=r"no suite 'ABCD->D': did you mean 'ABCD-D'"):
            verb("ABCD->D")


def test_missing_packages_are_reported_first(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(NotInstalled, match="no-such-package"):
        Calvin(root)


def test_calvin_is_unusable_without_egl(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installation.find_egl_driver.cache_clear()
    monkeypatch.setattr(installation, "_PROBE", "raise SystemExit('no display')")
    with pytest.raises(BenchmarkUnusable, match="no display"):
        Calvin(root)
