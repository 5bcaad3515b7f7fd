"""Tests of failing simulators and policies, and of refused evaluations."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.config import ConfigError
from anyvla.evaluation.conditions import Condition
from anyvla.evaluation.protocol import EpisodePlan, Subtask
from anyvla.evaluation.results import read_results
from anyvla.evaluation.runner import check_embodiment, hash_checkpoint
from anyvla.evaluation.tracks import read_track
from anyvla.evaluation.workers import EnvironmentFailed
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from tests import small
from tests.evaluation.playing import PLANS, Obedient, make_plans, play
from tests.evaluation.toy_opened import EMBODIMENT, opened
from tests.evaluation.toy_world import DIES, DIES_ONCE, RAISES


def after(count: int) -> tuple[Callable[[int, int], None], Callable[[], bool]]:
    seen = [0]

    def progress(done: int, total: int) -> None:
        seen[0] = done

    return progress, lambda: seen[0] >= count


def test_a_policy_that_returns_nan(obedient: Obedient, tmp_path: Path) -> None:
    sample, calls = obedient.decoder.sample, [0]

    def breaks(*arguments: Any) -> torch.Tensor:
        """NaN from the second call on."""
        calls[0] += 1
        return sample(*arguments) * (1 if calls[0] <= 1 else np.nan)

    obedient.decoder.sample = breaks  # type: ignore[method-assign]
    results = play(obedient, make_plans(tasks=("left",), episodes=1), tmp_path)
    assert {(r.outcome, r.steps, r.success) for r in results} == {("invalid_action", 2, False)}
    assert len(read_track(tmp_path, results[0].key).actions) == 2
    calls[0] = -3  # NaN in the second chunk of the second task; the first takes six actions, in three chunks
    (chain,) = play(obedient, make_plans(suite="chains", episodes=1), tmp_path / "chain", opened=opened("chains"))
    assert (chain.outcome, chain.completed, chain.steps) == ("invalid_action", 1, 8)


def test_a_simulator_in_other_units_is_an_error_or_a_warning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    near = {key: [x * 1e-3 for x in of] for key, of in small.statistics().proprio.items()}  # data in another unit
    robot = Robot(EMBODIMENT, dataclasses.replace(small.statistics(), proprio=near))
    vla = Obedient(small.model(), [robot]).eval()
    plans = make_plans(tasks=("left",), episodes=2)
    results = play(vla, plans, tmp_path / "a")
    assert {r.outcome for r in results} == {"error"}
    assert (
        "refuses the simulator's observation: observation 0: proprio of robot 'cart' is far"
        in results[0].extra["error"]
    )
    assert {r.outcome for r in play(vla, plans, tmp_path / "b", config={"implausible": "warn"})} == {"success"}


def test_a_simulator_that_fails_once_changes_nothing(obedient: Obedient, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    plans = [p for seed in (1, DIES_ONCE, 2) for p in make_plans(tasks=("left",), episodes=1, first_seed=seed)]
    results = play(obedient, plans, tmp_path, opened=opened(marks=str(tmp_path / "marks")))
    assert [(r.seed, r.outcome) for r in results] == [(1, "success"), (DIES_ONCE, "success"), (2, "success")]
    assert results[1].attempts == 2
    assert len(read_results(tmp_path / "results.jsonl")) == 3


@pytest.mark.parametrize(("seed", "message"), [(RAISES, "the cart has no wheels"), (DIES, "exit status -9")])
def test_a_simulator_that_fails_twice_is_an_error_of_the_simulator(
    obedient: Obedient, tmp_path: Path, seed: int, message: str
) -> None:
    plans = [p for s in (1, seed, 2) for p in make_plans(tasks=("left",), episodes=1, first_seed=s)]
    results = play(obedient, plans, tmp_path, slots=1)
    assert [(r.outcome, r.attempts) for r in results] == [("success", 1), ("error", 2), ("success", 1)]
    assert message in results[1].extra["error"]
    assert play(obedient, plans, tmp_path) == results  # reported, not played again


def test_a_simulator_that_always_fails_ends_the_evaluation(obedient: Obedient, tmp_path: Path) -> None:
    plans = [EpisodePlan(Condition(), "left", RAISES, (Subtask("left", "left", "go left"),))] * 8
    start = time.monotonic()
    with pytest.raises(EnvironmentFailed, match=r"(?s)failed in 6 episodes in a row.*Reported episodes are kept"):
        play(obedient, plans, tmp_path, slots=1)
    assert time.monotonic() - start < 30


def test_an_interrupted_evaluation_is_resumed(policy: VLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, stop = after(3)
    with pytest.raises(
        Interrupted, match=rf"stopped after \d of {len(PLANS)} episodes; run the same command to resume"
    ):
        play(policy, PLANS, tmp_path, progress=progress, stop=stop)
    lines = (tmp_path / "results.jsonl").read_text()
    kept = len(lines.splitlines())
    assert 3 <= kept < len(PLANS)
    seen: list[int] = []
    results = play(policy, PLANS, tmp_path, progress=lambda done, _: seen.append(done))
    assert seen[0] == kept
    assert (tmp_path / "results.jsonl").read_text().startswith(lines)
    assert len(read_results(tmp_path / "results.jsonl")) == len(PLANS)  # no episode is there twice
    assert [r.key for r in results] == [p.key for p in PLANS]

    def never(*args: object, **keys: object) -> None:
        raise AssertionError("everything is played already")

    monkeypatch.setattr("anyvla.evaluation.runner.EnvironmentPool", never)
    assert play(policy, PLANS, tmp_path) == results
    assert play(policy, PLANS[4:6], tmp_path) == results[4:6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"checkpoint": "beef"},
            r"other results \(checkpoint: 'c0ffee', 'beef': there, here\); choose another",
        ),
        ({"opened": opened(render="native")}, r"\(settings.render: 'fast', 'native': there, here\)"),
        ({"opened": opened("kept")}, r"benchmark: 'toy/line', 'toy/kept'; judged: 'reached', 'end'"),
        ({"config": {"execute": 3}}, r"execute: 2, 3"),
        ({"config": {"horizon": 20}}, r"horizon: 12, 20"),
    ],
)
def test_results_of_another_protocol_or_checkpoint_are_refused(
    policy: VLA, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    play(policy, PLANS[:1], tmp_path)
    with pytest.raises(ConfigError, match=message):
        play(policy, PLANS, tmp_path, **change)


def test_another_robot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained for another robot \\(name: 'small' there, 'cart' here"):
        play(small.policy(), PLANS, tmp_path)
    turned = dataclasses.replace(EMBODIMENT, cameras=("wrist", "corner"), control_hz=5.0)
    with pytest.raises(ConfigError, match=r"cameras.0: 'wrist' there, 'corner' here; .*control_hz: 5.0 there, 10"):
        check_embodiment([turned], EMBODIMENT)


@pytest.mark.parametrize("field", ["name", "cameras", "proprio", "action", "control_hz"])
def test_each_difference_of_a_robot_is_enough_to_refuse_it(field: str) -> None:
    closed = dataclasses.replace(EMBODIMENT.action.groups[1], open=1.0)
    changes: dict[str, Any] = {
        "name": "wagon",
        "cameras": ("wrist", "corner"),
        "proprio": EMBODIMENT.action,
        "action": dataclasses.replace(EMBODIMENT.action, groups=(EMBODIMENT.action.groups[0], closed)),
        "control_hz": 20.0,
    }
    other = dataclasses.replace(EMBODIMENT, **{field: changes[field]})
    with pytest.raises(ConfigError, match=f"trained for another robot \\({field}"):
        check_embodiment([other], EMBODIMENT)


def test_a_robot_is_compared_with_its_namesake() -> None:
    first, faster = (dataclasses.replace(EMBODIMENT, **keys) for keys in ({"name": "wagon"}, {"control_hz": 20.0}))
    check_embodiment([first, EMBODIMENT], EMBODIMENT)
    with pytest.raises(ConfigError, match=r"\(control_hz: 20.0 there, 10.0 here\) \(trained for: wagon, cart\)"):
        check_embodiment([first, faster], EMBODIMENT)


def test_the_hash_covers_every_file_that_decides_how_a_checkpoint_acts(tmp_path: Path) -> None:
    parts = {"model.safetensors": b"w", "statistics.json": b"s", "embodiments.json": b"e", "config.yaml": b"c"}
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "optimizer.pt").write_bytes(b"o")
    assert hash_checkpoint(tmp_path) == "1e337f877c48d4ed"  # printf wsec | sha256sum
    for name in parts:
        (tmp_path / name).write_bytes(b"x")
        assert hash_checkpoint(tmp_path) != "1e337f877c48d4ed"
        (tmp_path / name).write_bytes(parts[name])
