"""Every setting of training and of its data reaches the code: changing it changes something that can be observed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.augment import AugmentConfig
from anyvla.data.training.mixture import Mixture
from anyvla.recipe import read
from anyvla.training import loop
from anyvla.training.config import TrainingConfig
from anyvla.training.device import pick_device, pick_precision
from anyvla.training.ema import EmaConfig
from anyvla.training.loop import train
from anyvla.training.meter import Progress
from anyvla.training.muon import MuonConfig
from anyvla.training.optim import OptimConfig, WsdConfig
from tests.small import DECODERS, NANO, embodiment, episode, mixture, model
from tests.small import recipe as small_recipe

NOISE = {**DECODERS["flow"], "width": 16, "layers": 1}
BASE: dict[str, Any] = {
    "steps": 3,
    "batch_size": 2,
    "log_every": 1,
    "precision": "float32",
    "optim": {"lr": 1e-2, "warmup_steps": 1, "clip": 100.0},
    "augment": {"shift": 0},
}
WEIGHTS: dict[str, Any] = {  # settings that change the weights
    "steps": 4,
    "batch_size": 4,
    "seed": 1,
    "precision": "bfloat16",
    "ema": {"decay": 0.5},
    "optim.name": "muon",
    "optim.lr": 2e-2,
    "optim.schedule": "constant",
    "optim.warmup_steps": 2,
    "optim.final_lr": 5e-3,
    "optim.weight_decay": 0.2,
    "optim.betas": (0.5, 0.95),
    "optim.clip": 0.01,
    "optim.parts": {"decoder": {"lr": 1e-3}},
    "augment.shift": 3,
    "augment.brightness": 0.5,
    "augment.contrast": 0.5,
    "augment.saturation": 0.5,
    "augment.hue": 0.2,
}
# settings of sections that another one turns on: the keys to turn it on, and the changed value
WITHIN: dict[str, tuple[dict[str, Any], Any]] = {
    "optim.wsd.decay_share": ({"optim": {"schedule": "wsd"}}, 1.0),
    "optim.wsd.decay_steps": ({"optim": {"schedule": "wsd"}}, 2),
    "optim.wsd.shape": ({"optim": {"schedule": "wsd", "wsd": {"decay_steps": 2}}}, "linear"),
    "optim.muon.momentum": ({"optim": {"name": "muon"}}, 0.5),
    "optim.muon.min_side": ({"optim": {"name": "muon"}}, 33),
    "ema.decay": ({"ema": {"warmup": False}}, 0.5),
    "ema.warmup": ({"ema": {}}, False),
    "ema.start": ({"ema": {}}, 2),
}
# each has a test of its own
OTHERS = {
    "accumulate",  # tests/training/test_rows.py
    "gradient_checkpointing",
    "shard",
    "compile",
    "spikes",
    "device",
    "log_every",
    "checkpoint_every",
    "keep",
    "init_from",
    "statistics",
    "features_gb",  # tests/training/test_features.py
}
OTHERS |= {"track", "track_project", "without_gradient"}
OTHERS |= {"validate_every", "best", "evaluate"}  # tests/training/test_validation.py, tests/cli/test_in_training.py


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(8 + i, seed=i) for i in range(3)])
    return mixture(root)


def changed(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return BASE | ({section: BASE[section] | {name: value}} if section else {name: value})


def run(data: Mixture, folder: Path, training: dict[str, Any], structure: Any = None, **keys: Any) -> Path:
    return train(small_recipe(structure or model(decoder=NOISE), training), data, folder, **keys)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return weights(run(data, tmp_path_factory.mktemp("run"), BASE))


def test_every_setting_is_tested() -> None:
    sections = {"optim": OptimConfig, "augment": AugmentConfig, "optim.wsd": WsdConfig, "optim.muon": MuonConfig}
    names = {f.name for f in dataclasses.fields(TrainingConfig)}
    for section, of in (sections | {"ema": EmaConfig}).items():
        names |= {f"{section}.{f.name}" for f in dataclasses.fields(of)}
    assert names - sections.keys() == WEIGHTS.keys() | WITHIN.keys() | OTHERS


@pytest.mark.parametrize("key", WEIGHTS)
def test_a_setting_changes_the_weights(key: str, data: Mixture, plain: bytes, tmp_path: Path) -> None:
    assert weights(run(data, tmp_path, changed(key, WEIGHTS[key]))) != plain


@pytest.mark.parametrize("key", WITHIN)
def test_a_setting_of_a_section_that_is_on_changes_the_weights(key: str, data: Mixture, tmp_path: Path) -> None:
    on, value = WITHIN[key]
    before = BASE | {"optim": BASE["optim"] | on.get("optim", {})} | {k: v for k, v in on.items() if k != "optim"}
    after = json.loads(json.dumps(before))
    *sections, name = key.split(".")
    section = after
    for inner in sections:
        section = section.setdefault(inner, {})
    section[name] = value
    assert weights(run(data, tmp_path / "after", after)) != weights(run(data, tmp_path / "before", before))


def test_the_same_settings_give_the_same_weights(data: Mixture, plain: bytes, tmp_path: Path) -> None:
    assert weights(run(data, tmp_path, BASE | {"checkpoint_every": 1, "log_every": 3})) == plain


def test_layers_computed_again_give_the_same_weights(data: Mixture, plain: bytes, tmp_path: Path) -> None:
    assert weights(run(data, tmp_path, BASE | {"gradient_checkpointing": True})) == plain


@pytest.mark.parametrize("keys", [{"gradient_checkpointing": True}, {"compile": True}, {}])
def test_layers_are_prepared_as_asked(
    keys: dict[str, bool], data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, bool] = {}
    monkeypatch.setattr(loop, "prepare_layers", lambda _, **asked: given.update(asked))
    run(data, tmp_path, BASE | {"steps": 1} | keys)
    assert given == {
        "recomputed": keys.get("gradient_checkpointing", False),
        "compiled": keys.get("compile", False),
    }


@pytest.mark.parametrize("view", [{"size": (16, 24)}, {"size": (16, 24), "fit": "pad"}, {"crop": 0.5}])
def test_the_view_of_the_model_changes_the_weights(
    view: dict[str, Any], data: Mixture, plain: bytes, tmp_path: Path
) -> None:
    found = weights(run(data, tmp_path / "run", BASE, model(decoder=NOISE, view=view)))
    assert found != plain
    if "fit" in view:
        stretched = model(decoder=NOISE, view={"size": (16, 24)})
        assert found != weights(run(data, tmp_path / "stretched", BASE, stretched))


@pytest.mark.parametrize("every", [1, 2, 3, 5, 9])
def test_lines_are_logged_every_so_many_steps_and_at_the_end(every: int, data: Mixture, tmp_path: Path) -> None:
    shown: list[Progress] = []
    run(data, tmp_path, BASE | {"steps": 5, "log_every": every}, model(), progress=shown.append)
    wanted = {1: [1, 2, 3, 4, 5], 2: [2, 4, 5], 3: [3, 5], 5: [5], 9: [5]}[every]
    assert [p.step for p in shown] == wanted
    assert all(p.steps == 5 for p in shown)
    lines = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    unknown = {"steps", *(name for name, value in vars(shown[0]).items() if value is None)}
    assert lines == [{name: value for name, value in vars(p).items() if name not in unknown} for p in shown]


def test_a_checkpoint_is_written_every_so_many_steps_and_replaces_the_one_before(data: Mixture, tmp_path: Path) -> None:
    there: dict[int, list[str]] = {}

    def look(progress: Progress) -> None:
        there[progress.step] = sorted(p.name for p in (tmp_path / "train").glob("step-*"))

    final = run(data, tmp_path, BASE | {"steps": 6, "checkpoint_every": 2}, model(), progress=look)
    second, fourth = ["step-00000002"], ["step-00000004"]
    assert there == {1: [], 2: [], 3: second, 4: second, 5: fourth, 6: fourth}
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["log.jsonl", "tensorboard"]
    assert json.loads((final / "training" / "state.json").read_text()) == {"schema": 2, "step": 6}
    assert "6 training steps" in (final / "README.md").read_text()


def test_a_device_that_cannot_be_used_is_refused(data: Mixture, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the device 'meta' cannot be used here"):
        run(data, tmp_path, BASE | {"device": "meta"})


def test_auto_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch, "zeros", lambda _, device: torch.ones(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (True, True), (False, False)])
def test_auto_is_bfloat16_on_processors_that_multiply_it(
    avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == (torch.bfloat16 if avx512 or amx else torch.float32)
    assert pick_precision("bfloat16", cpu) == torch.bfloat16
    assert pick_precision("float32", cpu) == torch.float32


@pytest.mark.parametrize(("workers", "share"), [(0, 0.6), (1, 0.6), (3, 0.2)])
def test_workers_timeout_and_share_of_the_cache_reach_the_batches(
    workers: int, share: float, data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def batches(*args: Any, **keys: Any) -> Any:
        given.extend(args)
        yield from loop_batches(*args[:4], 0, *args[5:], **keys)

    loop_batches = loop.make_batches
    monkeypatch.setattr(loop, "make_batches", batches)
    recipe = small_recipe(model(), BASE | {"steps": 1}, cache_gb=0.6, workers=workers, worker_timeout_s=7.0)
    train(recipe, data, tmp_path)
    start, windows, config, view, asked, timeout_s, stop = given
    assert (start, asked, timeout_s, stop()) == (0, workers, 7.0, False)
    assert windows.config.cache_gb == pytest.approx(share)
    assert (config.batch_size, view) == (2, model().view)


def test_the_defaults_are_the_documented_ones() -> None:
    config = TrainingConfig()
    assert (config.steps, config.batch_size, config.accumulate, config.seed) == (10_000, 32, 1, 0)
    assert (config.precision, config.device, config.log_every, config.checkpoint_every) == ("auto", "auto", 20, 500)
    assert config.augment == AugmentConfig(shift=3, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def recipe_file(folder: Path, data: dict[str, Any]) -> Path:
    document = {
        "name": "small",
        "data": data,
        "model": {"backbone": NANO, "history": "none", "fuser": "identity", "decoder": "regression", "chunk": 4},
        "training": {"steps": 2, "batch_size": 2},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_command_passes_the_recipe_and_its_data_to_training(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def training(*args: Any, **keys: Any) -> Path:
        given.update(keys, args=args)
        return tmp_path

    monkeypatch.setattr(loop, "train", training)
    root = str(data.datasets[0].root)
    sources = [{"path": root, "leave_out": [1]}, {"path": root, "leave_out": [0]}]
    path = recipe_file(tmp_path, {"sources": sources, "cache_gb": 0.25})
    options = ["--data.workers", "3", "--data.worker_timeout_s", "7.5", "--training.optim.lr", "0.5", "--model.chunk=3"]
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(path), *options]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
    recipe = read(str(path), options)
    found, opened, run_folder = given.pop("args")
    assert found == recipe
    assert (found.model.chunk, found.training.optim.lr, found.training.steps) == (3, 0.5, 2)
    assert (found.data.cache_gb, found.data.workers, found.data.worker_timeout_s) == (0.25, 3, 7.5)
    assert [d.lengths.tolist() for d in opened.datasets] == [[8, 10], [9, 10]]
    assert run_folder == Path("outputs/small")
    assert not given["stop"]()
    assert main(["train", str(path), "--out", str(tmp_path / "there")]) == 0
    assert given["args"][2] == tmp_path / "there"


def test_a_signal_stops_training_by_the_command(data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    def training(*args: Any, stop: Any, **keys: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        stopped.append(stop())
        return tmp_path

    monkeypatch.setattr(loop, "train", training)
    path = recipe_file(tmp_path, {"sources": [{"path": str(data.datasets[0].root)}]})
    main(["train", str(path), "--out", str(tmp_path / "run")])
    assert stopped == [True]
