"""A damaged or hostile file ends a command with one line that names the file, never with a traceback or a hang."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyvla.cli.main import main
from tests import small

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MAPPING = "cameras: {corner: a, wrist: b}\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    small.policy().save(folder, {"benchmark": "metaworld/mt10", "evaluation": {}})
    return folder


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no weights": ("model.safetensors", Path.unlink),
    "pipe": ("model.safetensors", fifo),
    "half": ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:1000])),
    "bomb": ("config.yaml", lambda p: p.write_text(BOMB)),
    "list": ("config.yaml", lambda p: p.write_text("[1, 2]")),
    "model": ("config.yaml", lambda p: p.write_text("model: 7\n")),
    "evaluation": ("config.yaml", lambda p: p.write_text(p.read_text().replace("evaluation: {}", "evaluation: 7"))),
    "benchmark": ("config.yaml", lambda p: p.write_text(p.read_text().replace("metaworld/mt10", "[1]"))),
    "latin-1": ("config.yaml", lambda p: p.write_bytes(b"a: \xe4\n")),
    "NaN": ("statistics.json", lambda p: p.write_text(p.read_text().replace("2.0", "NaN", 1))),
    "robots": ("embodiments.json", lambda p: p.write_text("{}")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["eval", "serve"])
def test_a_damaged_checkpoint(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, damage: str
) -> None:
    if command == "serve":
        pytest.importorskip("websockets")
        if damage in ("evaluation", "benchmark"):
            pytest.skip("a server reads neither")
    folder = shutil.copytree(whole, tmp_path / "policy")
    name, change = DAMAGE[damage]
    change(folder / name)
    assert main([command, str(folder)]) == 1
    said = capsys.readouterr().err
    assert name in said
    assert "Traceback" not in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "the alias *a0 is not allowed"),
        ("[" * 100_000, "nested more than"),
        ("- 1\n", "expected keys and values"),
        ("name: a\nname: b\n", "the key 'name' is written twice"),
        ("name: .nan\n", "no finite number"),
        ("name: !!python/name:os.system\n", "is not allowed"),
        ("name: x\nmodel: {decoder: regression, chunk: 1000000000}\n", "'model.chunk'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "explain"])
def test_a_hostile_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main([command, str(path)]) == 1
    said = capsys.readouterr().err
    assert "recipe.yaml" in said
    assert message in said
    assert "Traceback" not in said


def test_a_recipe_that_is_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    assert main(["explain", str(tmp_path / "recipe.yaml")]) == 1
    assert "recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", [BOMB, "[1]", "cameras: 7", MAPPING + "execute: 1", MAPPING + "gripper: [.nan, 1]"])
def test_a_hostile_mapping(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    pytest.importorskip("websockets")
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    assert main(["serve", str(whole), "--mapping", str(path)]) == 1
    said = capsys.readouterr().err
    assert "mapping.yaml" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["eval", "serve"])
def test_a_run_whose_training_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for step in ("step-00000002", "step-00000004", "step-00000006.tmp"):
        (tmp_path / "train" / step).mkdir(parents=True)
        (tmp_path / "train" / step / "config.yaml").touch()
    assert main([command, str(tmp_path), *(["--port", "0"] if command == "serve" else [])]) == 1
    message = capsys.readouterr().err
    assert "its training was stopped: run the same `anyvla train` to resume" in message
    assert message.endswith("step-00000004\n")
