"""anyvla-sim in an interpreter that is too old for anyvla: Python 3.8 with numpy and msgpack."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from anyvla.evaluation.conditions import Condition
from anyvla.evaluation.protocol import EvaluationConfig, plan_episodes
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.runner import evaluate
from anyvla.evaluation.suites import open_suite
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla_sim.base import BenchmarkUnusable
from tests import small
from tests.evaluation import toy_world
from tests.evaluation.toy_opened import EMBODIMENT


def make_environment(folder: Path, *options: str) -> Path:
    """Make an empty environment. Return its interpreter."""
    if shutil.which("python3.8") is None:
        pytest.skip("not run: there is no Python 3.8 here")
    chosen = os.environ | {"PYENV_VERSION": "3.8"}  # pyenv's python3.8 needs a version
    subprocess.run(["python3.8", "-m", "venv", *options, folder], check=True, env=chosen)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python38(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the packages that anyvla-sim needs."""
    made = make_environment(tmp_path_factory.mktemp("python38"))
    done = subprocess.run([made, "-m", "pip", "install", "-q", "numpy", "msgpack"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not run: numpy and msgpack cannot be installed for Python 3.8 here: {done.stderr[-200:]}")
    return made


@pytest.fixture(autouse=True)
def find_toy_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(toy_world.__file__).parent))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    bare = make_environment(tmp_path / "bare", "--without-pip")
    with pytest.raises(
        BenchmarkUnusable, match=rf"the interpreter {bare} lacks (numpy|msgpack): run .* -m pip install anyvla-sim"
    ):
        open_suite("toy/line", python=str(bare))


def test_an_evaluation_in_python38_is_the_same(python38: Path, tmp_path: Path) -> None:
    vla = VLA(small.model(), [Robot(EMBODIMENT, small.statistics())]).eval()
    config = EvaluationConfig(episodes=2, processes=1, slots=2)

    def play(python: str | None) -> list[EpisodeResult]:
        opened = open_suite("toy/line", {"fails": []}, python)
        try:
            plans = plan_episodes(opened.suite, config, [Condition()])
            return evaluate(vla, plans, opened, config, tmp_path / str(python is None), checkpoint="0")
        finally:
            opened.benchmark.close()

    for here, there in zip(play(None), play(str(python38)), strict=True):
        assert (here.key, here.steps, here.reached) == (there.key, there.steps, there.reached)
        assert here.protocol["settings"] == there.protocol["settings"]
        assert there.protocol["simulator"]["python"].startswith("3.8.")


def test_the_whole_contract_in_python38(python38: Path) -> None:
    opened = open_suite("toy/spoken", python=str(python38))
    assert opened.embodiment == EMBODIMENT
    assert (opened.suite.tasks[0].name, opened.suite.starts) == ("left", 4)
    environment = opened.benchmark.make("spoken")
    environment.reset("left", 3, {"load": "heavy"})
    assert environment.instruction() == "go left, 3"  # type: ignore[attr-defined]
    assert environment.expert("left").tolist() == [-1, 0, 0, -1]  # type: ignore[attr-defined]
    before = environment.observe()
    assert environment.step(np.array([1, 0, 0, 0], np.float32)) == {"left": False, "right": False}
    assert environment.observe().proprio[0] == pytest.approx(before.proprio[0] + 0.1)
    assert environment.frame(4, 6).shape == (4, 6, 3)
    with pytest.raises(BenchmarkUnusable, match="suite 'line' has no task 'lift'"):
        environment.reset("lift", 0, {})
    opened.benchmark.close()
