"""Commands with LeRobot data of a real robot that declares no embodiment."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anyvla.cli.main import main
from anyvla.config import build
from anyvla.data.training.mixture import Source, open_source
from tests.hub_like import SO101, so101, write_hub_like
from tests.small import policy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return so101(tmp_path_factory.mktemp("hub") / "so101_pick")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def test_info_shows_everything_and_proposes(data: Path, capsys: Any) -> None:
    assert main(["data", "info", str(data), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["episodes"], facts["steps"], facts["cameras"]) == (3, 123, {"front": "32x32", "wrist": "32x32"})
    assert facts["columns"]["action"] == "float32 6: " + ", ".join(SO101)
    assert facts["columns"]["observation.images.front"] == "video 32x32x3 h264 30.0"
    assert facts["tasks"]["most"] == {"Pick up the cube.": 3}
    assert facts["statistics"]["action"]["max"][5] == 96
    assert yaml.safe_load(facts["proposal"]["text"])["embodiment"]["control_hz"] == 30
    assert main(["data", "info", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "{name: joints, size: 5, kind: joints, mode: absolute, unit: normalized" in shown
    assert f"anyvla data info {data} --write robot.yaml" in shown


def test_the_proposal_is_a_file_for_every_command_and_for_training(data: Path, capsys: Any) -> None:
    assert main(["data", "info", str(data), "--write", "robot.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "Answer its 2 lines marked CHECK" in shown
    assert f"--data.sources '[{{path: {data}, embodiment: robot.yaml}}]'" in shown
    assert main(["data", "check", str(data), "--source", "robot.yaml"]) == 0
    assert "0 errors" in capsys.readouterr().out
    training = ["--training.steps", "1", "--training.batch_size", "2", "--data.sources"]
    training += [f"[{{path: {data}, embodiment: robot.yaml}}]", "--model.view.size", "[32, 32]"]
    assert main(["train", "quickstart", "--out", "run", "--data.cache_gb", "0.1", *training]) == 0
    assert "trained weights, 0 frozen" in capsys.readouterr().err
    written = (Path("run/checkpoint/embodiments.json")).read_text()
    assert "elbow_flex.pos" in written
    assert main(["data", "info", str(data), "--write", "robot.yaml"]) == 1
    assert "robot.yaml exists already" in capsys.readouterr().err


def test_inspection_needs_no_embodiment(data: Path, capsys: Any) -> None:
    assert main(["data", "check", str(data)]) == 0
    shown = capsys.readouterr()
    assert "0 errors, 0 warnings in 3 episodes" in shown.out
    assert "does not declare the meaning of its numbers; they are shown unchanged" in shown.err
    assert main(["data", "statistics", str(data)]) == 0
    assert "wrist_roll.pos" in capsys.readouterr().out
    assert main(["data", "view", str(data), "--out", "page"]) == 0
    page = Path("page/index.html").read_text()
    assert page.count("elbow_flex.pos") == 2
    assert page.count("<video") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "convert", "{data}", "copy"],
        ["data", "check", "{data}", "--fix", "copy"],
        ["train", "quickstart", "--out", "run", "--data.sources", "[{{path: {data}}}]"],
    ],
)
def test_commands_that_need_an_embodiment_say_how_to_get_one(data: Path, arguments: list[str], capsys: Any) -> None:
    assert main([a.format(data=data) for a in arguments]) == 1
    assert f"anyvla data info {data} --write robot.yaml" in capsys.readouterr().err
    assert not Path("copy").exists()


def test_a_wrong_answer_is_an_error_of_check(data: Path, capsys: Any) -> None:
    assert main(["data", "info", str(data), "--write", "robot.yaml"]) == 0
    text = Path("robot.yaml").read_text().replace("unit: normalized", "unit: rad").replace("100.0", "1.0")
    Path("wrong.yaml").write_text(text)
    capsys.readouterr()
    assert main(["data", "check", str(data), "--source", "wrong.yaml", "--json"]) == 1
    texts = " ".join(finding["text"] for finding in json.loads(capsys.readouterr().out))
    assert "declared in rad" in texts
    assert "dim 0 (gripper.pos), goes from 2 to 96, outside of its declared range 0 to 1" in texts


def test_a_file_of_an_embodiment_is_checked(data: Path, tmp_path: Path) -> None:
    for text, message in (
        (None, "nothing.yaml"),
        ("[1, 2]", "expected keys and values"),
        ("cameras: {a: b}", "has no key embodiment"),
        ("embodiment: {name: x}", "'embodiment.cameras' is required"),
    ):
        if text is not None:
            (tmp_path / "robot.yaml").write_text(text)
        name = "nothing.yaml" if text is None else "robot.yaml"
        with pytest.raises(ValueError, match=message):
            open_source(build(Source, {"path": str(data), "embodiment": str(tmp_path / name)}))


def test_the_keys_of_a_source_win_over_those_of_the_file(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "info", str(data), "--write", "robot.yaml"]) == 0
    with Path("robot.yaml").open("a") as file:
        file.write("hz: 10\nper_task: 2\n")
    source = build(Source, {"path": str(data), "embodiment": "robot.yaml", "hz": 15})
    assert (source.hz, source.per_task) == (15, 2)
    assert source.embodiment is not None
    assert source.embodiment.action.groups[0].names[4] == "wrist_roll.pos"


def test_a_damaged_episode_does_not_hide_other_findings(data: Path, tmp_path: Path, capsys: Any) -> None:
    root = so101(tmp_path / "so101", "v2.1")
    path = root / "data/chunk-000/episode_000000.parquet"
    path.write_bytes(path.read_bytes()[:300])
    assert main(["data", "info", str(root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["wrong"]["counts"] == {"error: damaged": 1}
    assert facts["cameras"]["front"] == "32x32"
    assert "kind: gripper" in facts["proposal"]["text"]


def test_a_plain_folder_without_a_description(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        np.savez(
            folder / f"episode_{number}.npz",
            actions=rng.normal(size=(20, 3)),
            proprio=rng.normal(size=(20, 2)),
            instruction="lift it",
            **{"images/front": rng.integers(0, 255, (20, 16, 16, 3), np.uint8)},
        )
    assert main(["data", "info", str(folder)]) == 1
    assert "Files of your own: format: folder" in capsys.readouterr().err
    assert main(["data", "info", str(folder), "--format", "folder", "--write", "mine.yaml"]) == 0
    assert "CHECK control_hz" in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--source", "mine.yaml"]) == 0


def test_columns_that_are_not_read_are_shown_with_their_ranges(tmp_path: Path, capsys: Any) -> None:
    rows = [np.linspace(0, 1, 20)[:, None] for _ in range(2)]
    features = {"action": (["joint1"], rows), "observation.state": (["joint1"], rows)}
    root = write_hub_like(tmp_path / "arm", {**features, "next.reward": (None, [7 * r for r in rows])})
    assert main(["data", "info", str(root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["columns"]["next.reward"] == "float32 1; from 0 to 7"
    assert facts["columns"]["action"] == "float32 1: joint1"
    assert facts["action"] == {"action": "1 dims"}  # without a meaning


def test_a_policy_without_a_benchmark_is_not_sent_to_one(tmp_path: Path, capsys: Any) -> None:
    policy().save(tmp_path / "run/checkpoint")
    assert main(["eval", "run"]) == 1
    facts = capsys.readouterr().err
    assert "the recipe names no benchmark" in facts
    assert "anyvla serve run" in facts


def test_options_of_the_format_stay_in_the_file_and_paths_are_quoted(tmp_path: Path, capsys: Any) -> None:
    rows = [np.linspace(0, 1, 20)[:, None] for _ in range(2)]
    features = {key: (["joint1"], rows) for key in ("action", "observation.state", "observation.goal")}
    root = write_hub_like(tmp_path / "my, data" / "arm", features)
    given = "{name: lerobot_v2, state: observation.goal}"
    assert main(["data", "info", str(root), "--format", given, "--write", "my robot.yaml"]) == 0
    file = yaml.safe_load(Path("my robot.yaml").read_text())
    assert file["format"] == {"name": "lerobot_v2", "state": "observation.goal"}
    line = next(line for line in capsys.readouterr().out.splitlines() if "anyvla train" in line)
    sources = shlex.split(line)[-1]
    assert yaml.safe_load(sources) == [{"path": str(root), "embodiment": "my robot.yaml"}]
