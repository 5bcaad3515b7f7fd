"""A run resumes wherever it and its data are, under settings that change no result; otherwise it is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyvla.config import ConfigError, build, to_dict
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.files import durable
from anyvla.files.documents import to_yaml
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.recipe import Recipe
from anyvla.robot.shared_layout import Robot
from anyvla.training import checkpoint
from anyvla.training.loop import train
from anyvla.training.resume import check_same_data, check_same_recipe
from anyvla.training.schedules import learning_rate
from tests.small import embodiment, episode, mixture, model, recipe

MODEL = model({"name": "policy_head", "window": 2}, {"name": "lstm", "hidden": 32, "layers": 1})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(folder, embodiment(), [episode(12 + i, seed=i) for i in range(3)])
    return folder


def made(root: Path, **training: Any) -> Recipe:
    given = {"steps": 4, "batch_size": 2, "log_every": 2, "checkpoint_every": 2, "optim": {"warmup_steps": 1}}
    return recipe(MODEL, given | training, root)


def run(folder: Path, root: Path, recipe: Recipe | None = None, **keys: Any) -> Path:
    return train(recipe or made(root), mixture(root), folder, **keys)


@pytest.fixture(scope="module")
def begun(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 2 of 4 steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(Interrupted):
        run(folder, root, stop=lambda: True)
    with pytest.raises(Interrupted):
        run(folder, root, stop=lambda: True)
    return folder


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("straight") / "run", root)


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "copy")


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_and_its_data_may_move(
    root: Path, begun: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(begun, tmp_path / "moved")
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "data")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert same(run(Path("link"), Path("elsewhere/data"), made(moved)), straight)
    assert (tmp_path / "moved" / "checkpoint").is_dir()


@pytest.mark.parametrize("key", ["device", "log_every", "checkpoint_every"])
def test_settings_that_change_no_result_may_change(root: Path, copy: Path, straight: Path, key: str) -> None:
    value = "cpu" if key == "device" else 1
    assert same(run(copy, root, made(root, **{key: value})), straight)


def test_a_run_of_an_older_version_lacks_newer_keys(root: Path, copy: Path, straight: Path) -> None:
    document = to_dict(made(root))
    del document["training"]["augment"], document["model"]["view"]
    config = copy / "train" / "step-00000002" / "config.yaml"
    config.write_text(to_yaml(document))
    assert same(run(copy, root), straight)


def test_a_run_on_whole_rows_resumes(root: Path, tmp_path: Path) -> None:
    """Rows of 6 or 7 steps: a piece of a batch may be shorter than the batch, which is as long as its longest row."""
    structure = model({"name": "recurrent", "steps": 7, "at_once": 4}, {"name": "mingru", "width": 32, "layers": 2})
    keys = {"steps": 4, "batch_size": 2, "log_every": 1, "checkpoint_every": 2, "precision": "float32"}
    wanted = recipe(structure, keys | {"accumulate": 2}, root)
    whole = run(tmp_path / "straight", root, wanted)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", root, wanted, stop=lambda: True)
    assert same(run(tmp_path / "stopped", root, wanted), whole)


def test_a_setting_that_changes_results_is_refused_with_both_values(root: Path, copy: Path) -> None:
    document = to_dict(made(root, seed=3, optim={"lr": 0.5, "warmup_steps": 1}))
    document["data"]["sources"][0]["instruction"] = "go " * 500
    with pytest.raises(ConfigError) as caught:
        run(copy, root, build(Recipe, document))
    message = str(caught.value)
    assert "training.seed: 0 there, 3 now" in message
    assert "training.optim.lr: 0.0001 there, 0.5 now" in message
    assert "data.sources.0.instruction: None there, 'go go" in message
    assert "choose another output folder" in message
    assert len(message) < 600 + 2 * len(str(copy))


MAY_CHANGE = {  # speed, places, rounding, and what is written; all other settings change the policy
    "data.workers", "data.worker_timeout_s", "data.cache_gb", "data.root", "data.missing", "data.sources.0.path",
    "training.steps", "training.device", "training.precision", "training.log_every", "training.checkpoint_every",
    "training.keep.last", "training.keep.best", "training.keep.every", "training.validate_every", "training.best",
    "training.track_project", "training.spikes.threshold", "training.gradient_checkpointing", "training.compile",
    "training.features_gb", "training.accumulate", "training.shard",
}  # fmt: skip
TEXTS = ["constant", "bfloat16", "cpu", "skip", "drop", "rot6d", "tool", "pad", "warn", "minmax", "head", "token", "l2"]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path


def with_another(document: dict[str, Any], path: tuple[str, ...]) -> Recipe | None:
    """Return the recipe with another value at this key; None if none of those tried here is valid."""
    for value in [
        3,
        2,
        1,
        0.5,
        True,
        False,
        [0.3, 0.4],
        [16, 16],
        ["wrist"],
        [1],
        *TEXTS,
        "wave",
        {"a": "corner"},
        {"decoder": {"lr": 3}},
    ]:
        changed = json.loads(json.dumps(document))
        node = changed
        for key in path[:-1]:
            node = node[int(key)] if isinstance(node, list) else node[key]
        if node[path[-1]] == value:
            continue
        node[path[-1]] = value
        try:
            found = build(Recipe, changed)
        except ConfigError:
            continue
        if to_dict(found) != document:
            return found
    return None


def test_a_change_of_any_setting_but_a_few_is_refused(root: Path, begun: Path) -> None:
    """Every key of the recipe, one at a time."""
    [folder] = (begun / "train").glob("step-*")
    robots = mixture(root).robots()
    whole = to_dict(made(root))
    paths = [path for path in leaves(whole) if path[0] in ("model", "data", "training")]
    paths.remove(("data", "sources"))
    paths += [("data", "sources", "0", key) for key in whole["data"]["sources"][0]]
    refused, allowed = set[str](), set[str]()
    for path in paths:
        key, changed = ".".join(path), with_another(whole, path)
        if changed is None:
            continue
        message = refusal(folder, changed, robots)
        assert message is None or f"made by another recipe ({key}" in message
        (allowed if message is None else refused).add(key)
    assert allowed <= MAY_CHANGE
    assert MAY_CHANGE - allowed <= {"data.root"}  # which needs a preset
    assert len(refused) > 50


def refusal(folder: Path, recipe: Recipe, robots: list[Robot]) -> str | None:
    """Return why the run in a folder cannot resume with the recipe; None if it can."""
    try:
        check_same_recipe(folder, recipe)
        check_same_data(folder, robots)
    except ConfigError as error:
        return str(error)
    return None


def test_a_change_that_rounds_differently_is_reported(root: Path, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(copy, root, made(root, precision="float32"))
    assert "training.precision was 'auto' and is 'float32': computes in another precision" in caplog.text
    assert "Results differ by rounding" in caplog.text


def test_a_run_resumes_without_the_checkpoint_that_it_started_from(root: Path, straight: Path, tmp_path: Path) -> None:
    origin = shutil.copytree(straight, tmp_path / "origin")
    warm = made(root, init_from=str(origin))
    expected = run(tmp_path / "whole", root, warm)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", root, warm, stop=lambda: True)
    shutil.rmtree(origin)
    assert same(run(tmp_path / "run", root, warm), expected)
    assert not same(expected, straight)


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_can_be_made_longer(root: Path, copy: Path, finished: bool, caplog: pytest.LogCaptureFixture) -> None:
    if finished:
        run(copy, root)
    seen: list[float] = []
    longer = made(root, steps=8)
    with caplog.at_level(logging.WARNING):
        final = run(copy, root, longer, progress=lambda p: seen.append(p.lr))
    begin = 4 if finished else 2
    assert f"training.steps was 4 and is 8: from step {begin + 1} on the learning rate" in caplog.text
    assert seen == [learning_rate(longer.training.optim, step - 1, 8) for step in range(begin + 2, 9, 2)]
    assert checkpoint.read_step(final) == 8
    assert not list((copy / "train").glob("step-*"))
    assert run(copy, root, longer) == final


def test_more_steps_can_be_taken_back_before_one_is_made(root: Path, copy: Path, straight: Path) -> None:
    final = run(copy, root)
    checkpoint.reopen(final)  # and then the data cannot be read, say
    assert run(copy, root) == final
    assert same(final, straight)


@pytest.mark.parametrize("lost", [checkpoint.STATE, checkpoint.OPTIMIZER])
def test_a_run_that_cannot_be_made_longer_keeps_its_checkpoint(root: Path, copy: Path, lost: str) -> None:
    final = run(copy, root)
    with pytest.raises(ConfigError, match=r"the device 'cuda:99' cannot be used here: this machine has cpu"):
        run(copy, root, made(root, steps=8, device="cuda:99"))
    with pytest.raises(ConfigError, match=r"'evaluation\.succes' is not measured"):
        run(copy, root, made(root, steps=8, best="evaluation.succes", evaluate={}))
    assert final.is_dir()
    (final / lost).rename(copy / "kept")
    with pytest.raises(ValueError, match=rf"checkpoint lacks {lost}, .*copy the folder again"):
        run(copy, root, made(root, steps=8))
    (final / lost).write_bytes(b"{")
    with pytest.raises(ValueError, match=lost):
        run(copy, root, made(root, steps=8))
    assert final.is_dir()
    assert not list((copy / "train").glob("step-*"))


def test_a_run_cannot_be_made_shorter(root: Path, copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"step-00000002 has 2 steps already, and training\.steps is 2: give more"):
        run(copy, root, made(root, steps=2))
    run(copy, root)
    with pytest.raises(ConfigError, match=r"checkpoint has 4 steps already, and training\.steps is 3: give more"):
        run(copy, root, made(root, steps=3))
    assert run(copy, root) == copy / "checkpoint"


def state(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        path = folder / checkpoint.OPTIMIZER
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def step(value: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / checkpoint.STATE).write_text(json.dumps({"step": value}))


def fifo(folder: Path) -> None:
    (folder / checkpoint.OPTIMIZER).unlink()
    os.mkfifo(folder / checkpoint.OPTIMIZER)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "lacks training/state.json": lambda f: (f / checkpoint.STATE).unlink(),
    "lacks training/state.safetensors": lambda f: (f / checkpoint.OPTIMIZER).unlink(),
    "model.safetensors": lambda f: (f / "model.safetensors").unlink(),
    "it lacks statistics.json": lambda f: (f / "statistics.json").unlink(),
    "it has no config.yaml": lambda f: (f / "config.yaml").unlink(),
    "state.json, step: expected a whole number above 0, found -1": step(-1),
    "state.json, step: expected a whole number above 0, found 0": step(0),
    "state.json, step: expected a whole number above 0, found '2'": step("2"),
    "state.json, step: expected a whole number above 0, found True": step(True),
    "state.json, step: expected a whole number above 0, found 2.0": step(2.0),
    "state.json, step: expected a whole number above 0, found None": lambda f: (f / checkpoint.STATE).write_text("{}"),
    "state.json: NaN is no number": step(float("nan")),
    "state.json: expected keys and values": lambda f: (f / checkpoint.STATE).write_text("[2]"),
    "state.json, step: 3 is not the step of step-00000002": step(3),
    "state.safetensors is a pipe": fifo,
    "state.safetensors cannot be read": lambda f: (f / checkpoint.OPTIMIZER).write_bytes(struct.pack("<Q", 2**40)),
    "state.safetensors lacks part": state(lambda t: t.pop("0.exp_avg")),
    "NaN or infinity in 0.exp_avg": state(lambda t: t["0.exp_avg"].fill_(torch.nan)),
    "0.exp_avg_sq is below 0": state(lambda t: t["0.exp_avg_sq"].fill_(-1)),
    "0.exp_avg is (3,)": state(lambda t: t.update({"0.exp_avg": torch.ones(3)})),
    "holds 0.exp_avg (torch.int8)": state(lambda t: t.update({"0.exp_avg": t["0.exp_avg"].to(torch.int8)})),
    "holds 999.exp_avg": state(lambda t: t.update({"999.exp_avg": torch.ones(3)})),
    "holds x (torch": state(lambda t: t.update({"x": torch.ones(3)})),
    "state.safetensors lacks part of": state(lambda t: t.clear()),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_kept(root: Path, copy: Path, message: str) -> None:
    folder = copy / "train" / "step-00000002"
    DAMAGE[message](folder)
    with pytest.raises(ValueError) as caught:
        run(copy, root)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert folder.is_dir()


class Killed(BaseException):
    """A kill, after which no code may clean up."""


@pytest.mark.parametrize("point", ["before the rename", "after the rename", "in the removal"])
@pytest.mark.parametrize("at", ["step", "end"])
def test_a_kill_at_any_point_of_saving_leaves_nothing_stale(
    root: Path, copy: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, point: str, at: str
) -> None:
    recipe = made(root, checkpoint_every=1 if at == "step" else 9)
    put, rmtree = durable.put, shutil.rmtree

    def killed_put(temporary: Path, target: Path) -> None:
        if target.name.startswith(("step-", "checkpoint")) and point == "before the rename":
            raise Killed
        put(temporary, target)
        if target.name.startswith(("step-", "checkpoint")) and point == "after the rename":
            raise Killed

    def killed_rmtree(path: Any, *args: Any, **keys: Any) -> None:
        if Path(path).name == "step-00000002.tmp":
            (Path(path) / "config.yaml").unlink()
            raise Killed
        rmtree(path, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "put", killed_put)
        if point == "in the removal":
            patch.setattr(shutil, "rmtree", killed_rmtree)
        with pytest.raises(Killed):
            run(copy, root, recipe)
    assert same(run(copy, root, recipe), straight)
    assert sorted(p.name for p in copy.iterdir() if p.is_dir()) == ["checkpoint", "train"]
    assert {p.name for p in (copy / "train").iterdir()} == {"log.jsonl", "tensorboard"}
    VLA.load(copy / "checkpoint")


def test_a_checkpoint_is_on_the_disk_before_its_rename(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    sync, replace = durable.sync, Path.replace

    def noted_replace(self: Path, target: Path) -> Path:
        events.append(("rename", self.name))
        return replace(self, target)

    monkeypatch.setattr(durable, "sync", lambda path: (events.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(Path, "replace", noted_replace)
    final = run(tmp_path, root, made(root, steps=1))
    renamed = events.index(("rename", "checkpoint.tmp"))
    written = {p.name for p in final.rglob("*")}
    assert {("sync", name) for name in written} <= set(events[:renamed])
    assert events[renamed - 1] == ("sync", "checkpoint.tmp")
    assert events[renamed + 1] == ("sync", tmp_path.name)


def test_other_data_is_refused_by_its_contents(root: Path, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_dataset(other, embodiment(), [dataclasses.replace(episode(12 + i, seed=i + 7)) for i in range(3)])
    with pytest.raises(ConfigError, match="was trained on other data"):
        run(copy, other)
