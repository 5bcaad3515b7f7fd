"""A benchmark in another interpreter behaves as it does in this one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla_sim.base import BenchmarkUnusable, ExpertStuck
from anyvla_sim.spec import Spec
from anyvla_sim.workers.remote import RemoteBenchmark, RemoteEnvironment, SimulatorFailed, connect
from tests.evaluation import toy_world
from tests.evaluation.toy_world import GIVES_UP, RAISES, Toy

SETTINGS = {"render": "native", "fails": [4]}
LEFT = np.array([-1, 0, 0, 0], np.float32)


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteBenchmark]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(toy_world.__file__).parent))
    benchmark = connect(Spec("tests.evaluation.toy_world:Toy", SETTINGS, python=sys.executable))
    assert isinstance(benchmark, RemoteBenchmark)
    yield benchmark
    benchmark.close()
    patch.undo()


@pytest.fixture(scope="module")
def spoken(remote: RemoteBenchmark) -> RemoteEnvironment:
    return remote.make("spoken")


@pytest.fixture(scope="module")
def line(remote: RemoteBenchmark) -> RemoteEnvironment:
    return remote.make("line")


def test_without_another_interpreter_connect_returns_the_benchmark_itself() -> None:
    assert isinstance(connect(Spec("tests.evaluation.toy_world:Toy", SETTINGS)), Toy)


def test_a_remote_benchmark_describes_itself_equally(remote: RemoteBenchmark) -> None:
    here = Toy(**SETTINGS)
    assert (remote.name, remote.settings, list(remote.suites())) == (here.name, here.settings, list(here.suites()))
    assert (remote.factors, remote.disturbances) == ({"load": ["light", "heavy"]}, ["push"])
    for name in here.suites():
        there, own = remote.suite(name), here.suite(name)
        assert (there.name, there.horizon, there.episodes, there.starts, there.success_rule) == (
            own.name,
            own.horizon,
            own.episodes,
            own.starts,
            own.success_rule,
        )
        assert [(t.name, t.scene, list(t.instructions), list(t.paraphrases)) for t in there.tasks] == [
            (t.name, t.scene, list(t.instructions), list(t.paraphrases)) for t in own.tasks
        ]
        assert [list(chain) for chain in there.chains] == [list(chain) for chain in own.chains]
        assert [list(pair) for pair in there.pairs] == [list(pair) for pair in own.pairs]
        assert (there.chance, there.curve, there.most_executed) == (own.chance, own.curve, own.most_executed)
        assert remote.embodiment(name) == here.embodiment(name)
        assert remote.protocol(name) == {"render": "native"}
    assert remote.versions()["toy"] == "1"


def test_an_episode_is_the_same_here_and_there(line: RemoteEnvironment) -> None:
    here = Toy(**SETTINGS).make("line")
    for seed, factors in ((1, {}), (2, {"load": "heavy"})):
        line.reset("left", seed, factors)
        here.reset("left", seed, factors)
        for _ in range(3):
            assert line.step(LEFT) == here.step(LEFT)
            assert np.array_equal(line.observe().proprio, here.observe().proprio)
            for camera, image in here.observe().images.items():
                assert np.array_equal(line.observe().images[camera], image)
    line.begin("up")
    assert line.step(LEFT) == {"up": False}
    assert line.disturb("push", 0)
    assert not line.disturb("push", 0)
    assert line.expert("right").tolist() == [1, 0, 0, -1]
    assert line.frame(4, 6).shape == (4, 6, 3)


def test_each_episode_has_its_own_instruction(spoken: RemoteEnvironment, line: RemoteEnvironment) -> None:
    for seed in (1, 2):
        spoken.reset("left", seed, {})
        assert spoken.instruction() == f"go left, {seed}"
    line.reset("left", 1, {})
    assert line.instruction() is None


def test_commands_are_sent_unchanged(monkeypatch: pytest.MonkeyPatch, line: RemoteEnvironment) -> None:
    asked: list[Any] = []

    def ask(verb: str, **command: Any) -> dict[str, Any]:
        asked.append((verb, command))
        return {"disturbed": True, "frame": np.zeros((2, 3, 3)), "goals": {}, "action": np.zeros(4)}

    monkeypatch.setattr(line._remote, "ask", ask)
    line.disturb("push", 41)
    line.frame(2, 3)
    line.begin("up")
    line.expert("left")
    own = {"slot": 0, "suite": "line"}
    assert asked == [
        ("disturb", {**own, "kind": "push", "seed": 41}),
        ("frame", {**own, "height": 2, "width": 3}),
        ("begin", {**own, "task": "up"}),
        ("expert", {**own, "task": "left"}),
    ]


def test_errors_keep_their_types(line: RemoteEnvironment) -> None:
    line.reset("left", GIVES_UP, {})
    for _ in range(4):
        line.step(LEFT)
    with pytest.raises(ExpertStuck, match="the way is blocked"):
        line.expert("left")
    with pytest.raises(SimulatorFailed, match="the cart has no wheels"):
        line.reset("left", RAISES, {})
    with pytest.raises(BenchmarkUnusable, match="did you mean 'left'"):
        line.reset("lefft", 1, {})
