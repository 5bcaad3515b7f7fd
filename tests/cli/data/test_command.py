from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.cli.main import main
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from tests.small import SIZE, embodiment, episode

RLDS = Path(__file__).parents[2] / "data/formats/rlds/fixtures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_dataset(root, embodiment(), [episode(20 + i, seed=i) for i in range(4)] + [episode(20, seed=0)])
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


def test_info_prints_contents_and_faults(folder: Path, capsys: Any) -> None:
    assert main(["data", "info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["made"]["format"] == "lerobot"
    assert (facts["robot"], facts["episodes"], facts["steps"]) == ("small", 5, 106)
    assert facts["cameras"] == {"corner": f"{SIZE}x{SIZE}", "wrist": f"{SIZE}x{SIZE}"}
    assert facts["length"] == {"min": 20, "median": 21.0, "max": 23}
    assert facts["action"]["gripper"] == "1 dims, absolute, -1 to 1"
    assert facts["instructions"] == {"looked_at": 5, "different": 1, "without": 0, "most": {"open the drawer": 5}}
    assert facts["wrong"]["counts"] == {"error: duplicate": 1}
    assert len(facts["statistics"]["action"]["q99"]) == 4
    assert main(["data", "info", str(folder)]) == 0
    assert "error: duplicate (1)" in capsys.readouterr().out


def test_info_recognizes_other_formats_and_says_what_to_declare(capsys: Any) -> None:
    assert main(["data", "info", str(RLDS / "bridge_orig"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["made"]["format"], facts["robot"], facts["instructions"]["without"]) == ("rlds", "widowx_bridge", 1)
    assert main(["data", "info", str(RLDS / "my_arm")]) == 0
    shown = capsys.readouterr().out
    assert "format: {name: rlds, action: [action], proprio: [observation/counts, observation/joints]}" in shown
    assert "CHECK control_hz: the data does not declare its number of steps per second" in shown


def test_a_source_can_be_declared_in_a_file(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "source.yaml").write_text(
        "format: {name: rlds, proprio: [observation/joints]}\n"
        "embodiment:\n  name: mine\n  cameras: [front]\n  control_hz: 5\n"
        "  proprio: {groups: [{name: joints, size: 3, kind: joints}]}\n"
        "  action: {groups: [{name: joints, size: 3, kind: joints}]}\n"
    )
    assert main(["data", "info", str(RLDS / "my_arm"), "--source", str(tmp_path / "source.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cameras"] == {"front": "24x24"}
    (tmp_path / "source.yaml").write_text("embodimnt: {}\n")
    assert main(["data", "info", str(RLDS / "my_arm"), "--source", str(tmp_path / "source.yaml")]) == 1
    assert "unknown key 'embodimnt': did you mean 'embodiment'?" in capsys.readouterr().err


def test_info_proposes_commands_for_the_same_data(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    copy = tmp_path / "my set"
    copy.symlink_to(folder)
    (tmp_path / "source.yaml").write_text("hz: 5\n")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "info", "my set", "--format", "lerobot", "--source", "source.yaml"]) == 0
    shown = capsys.readouterr().out
    for command in ("check", "statistics"):
        assert f"anyvla data {command} 'my set' --format lerobot --source source.yaml" in shown


def test_check_finds_and_fixes_in_a_copy(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "the same as episode 0" in out
    assert "1 errors, 0 warnings in 5 episodes" in out
    before = open_dataset(folder).fingerprint
    assert main(["data", "check", str(folder), "--fix", str(tmp_path / "clean")]) == 0
    capsys.readouterr()
    assert open_dataset(folder).fingerprint == before
    assert json.loads((tmp_path / "clean/meta/fixes.json").read_text())["dropped"] == {"4": "the same as episode 0"}
    assert main(["data", "check", str(tmp_path / "clean"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_convert_writes_the_reported_episodes(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    arguments = ["data", "convert", str(RLDS / "fractal20220817_data"), str(out), "--processes", "1"]
    assert main([*arguments, "--episodes", "1:3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(out)
    assert "2 episodes of 13 steps; read back: numbers equal, primary" in shown.err
    assert np.array_equal(open_dataset(out)[0].actions, open_dataset(RLDS / "fractal20220817_data")[1].actions)
    assert main([*arguments, "--episodes", "0:9"]) == 1
    assert "give FIRST:END within 0:3" in capsys.readouterr().err


def test_statistics(folder: Path, capsys: Any) -> None:
    assert main(["data", "statistics", str(folder)]) == 0
    assert "position" in capsys.readouterr().out
    assert main(["data", "statistics", str(folder), "--json"]) == 0
    rows = np.concatenate([open_dataset(folder)[i].actions for i in range(5)])
    np.testing.assert_allclose(json.loads(capsys.readouterr().out)["action"]["max"], rows.max(0), atol=1e-6)


def test_view_writes_a_page_with_a_video_of_each_camera(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "view", str(folder), "--episode", "2", "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page/index.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "page/index.html")
    assert "open the drawer" in page
    assert page.count("<video") == 2
    assert {p.name for p in (tmp_path / "page").iterdir()} == {"index.html", "camera-0.mp4", "camera-1.mp4"}
    assert page.count('class="now"') == 3  # position and gripper of the action, position of proprio
    assert main(["data", "view", str(folder), "--episode", "9"]) == 1
    assert "has 5 episodes; no episode 9" in capsys.readouterr().err


def test_a_rerun_recording(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    assert main(["data", "view", str(folder), "--rerun", str(tmp_path / "e.rrd")]) == 0
    assert (tmp_path / "e.rrd").read_bytes()[:4] == b"RRF2"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["data"], 2, ""),
        (["data", "inof", "x"], 2, "there is no verb 'inof': did you mean 'info'"),
        (["data", "info", "nowhere"], 1, "there is no data set at nowhere"),
        (["data", "info", "/", "--nothing"], 2, "unrecognized arguments: --nothing"),
    ],
)
def test_an_invalid_command_is_an_error(arguments: list[str], status: int, message: str, capsys: Any) -> None:
    try:
        got = main(arguments)
    except SystemExit as stopped:
        got = stopped.code
    assert got == status
    assert message in capsys.readouterr().err


def test_an_episode_that_the_index_misplaces_is_named_and_the_others_are_shown(tmp_path: Path, capsys: Any) -> None:
    write_dataset(tmp_path / "set", embodiment(), [episode(20, i) for i in range(3)])
    path = next((tmp_path / "set").glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    lengths = table["length"].to_pylist()
    changed = table.set_column(table.column_names.index("length"), "length", [[25, *lengths[1:]]])
    pq.write_table(changed, path)
    assert main(["data", "info", str(tmp_path / "set"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["episodes"] == 3
    assert "the index says 25 rows" in facts["unreadable"]["0"]
    assert main(["data", "info", str(tmp_path / "set")]) == 0
    assert "leave_out: [0]" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "set"), "--fix", str(tmp_path / "clean")]) == 0
    assert len(open_dataset(tmp_path / "clean")) == 2
