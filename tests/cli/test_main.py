import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.recipe import bundled, read
from tests.small import SMALLEST, embodiment, episode


@pytest.fixture
def recipe(tmp_path):
    write_dataset(tmp_path / "dataset", embodiment(), [episode(12, seed=i) for i in range(3)])
    document = {
        "name": "small",
        "data": {"sources": [{"path": str(tmp_path / "dataset")}]},
        "model": SMALLEST,
        "training": {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 1000},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, anyvla, anyvla.cli.main as m; assert m.main(['--help']) == 0; "
        "heavy = {'torch', 'transformers', 'pydantic', 'pyarrow', 'av', 'rich', 'mujoco'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["quikstart"]) == 2
    assert "there is no command 'quikstart'; did you mean 'quickstart'?" in capsys.readouterr().err


def test_a_current_folder_that_was_removed_is_named(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["data", "info", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "data: the current folder was removed: cd to another one\n"


def test_a_typo_in_a_recipe_is_an_error_with_the_nearest_key(recipe, capsys):
    assert main(["train", str(recipe), "--training.stebs", "3"]) == 1
    assert "unknown key 'training.stebs': did you mean 'steps'?" in capsys.readouterr().err


def test_a_recipe_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no recipe 'quikstart', .*did you mean 'quickstart'\?"):
        read("quikstart")
    with pytest.raises(ConfigError, match=r"there is no recipe file nowhere.yaml"):
        read("nowhere.yaml")


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_recipe_is_valid(name):
    assert read(name).name == name


@pytest.mark.simulator("metaworld")
def test_a_task_suite_that_does_not_exist_names_the_nearest(tmp_path, capsys):
    arguments = ["data", "collect", "quickstart", "--out", str(tmp_path), "--benchmark", "metaworld/half-opne"]
    assert main(arguments) == 1
    assert "has no suite 'half-opne': did you mean 'half-open'?" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["backbones", "decoders", "benchmarks", "formats", "recipes"])
def test_lists_are_tables_and_json(what, capsys):
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert main(["list", what]) == 0
    assert all(row["name"] in capsys.readouterr().out for row in rows[:1])


def test_doctor_says_what_is_missing_and_how_to_fix_it(capsys, monkeypatch):
    main(["doctor", "--json"])
    found = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert found["python"]["state"] == "ok"
    assert {"cores", "memory", "GPU", "rendering", "extra metaworld", "video"} <= set(found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["doctor", "--json"]) == 1
    found = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert found["extra metaworld"]["fix"] == 'pip install "anyvla[metaworld]"'


def test_training_from_the_command_line(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    checkpoint = Path(capsys.readouterr().out.strip())
    assert checkpoint == tmp_path / "run" / "checkpoint"
    assert yaml.safe_load((checkpoint / "config.yaml").read_text())["name"] == "small"
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--training.seed", "9"]) == 1
    assert "made by another recipe" in capsys.readouterr().err


def test_missing_demonstrations_are_an_error_that_names_the_command(tmp_path, capsys):
    assert main(["train", "quickstart", "--out", str(tmp_path)]) == 1
    assert "anyvla data collect quickstart" in capsys.readouterr().err


def test_evaluating_a_folder_without_a_policy_is_refused(tmp_path, capsys):
    assert main(["eval", str(tmp_path)]) == 1
    assert "holds no trained policy" in capsys.readouterr().err


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_resumes(recipe, tmp_path):
    """Other signals are tested in `test_stopping`."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "anyvla.cli.main", "train", str(recipe), "--out", str(run)]
    long = [*command, "--training.steps", "100000"]
    process = subprocess.Popen(long, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = run / "train" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command to resume" in err
    [left] = (run / "train").glob("step-*")
    behind = int(left.name.removeprefix("step-"))
    assert len(log.read_text().splitlines()) == behind
