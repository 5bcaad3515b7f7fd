"""The plan of a recipe: its numbers, its limits, its remedies, and what it must not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anyvla.cli.main import main
from anyvla.config import ConfigError, to_dict
from anyvla.data.formats import video
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.planning.gpus import parse_gpu
from anyvla.planning.memory import Budget, find_largest_batch, measure_use
from anyvla.planning.plan import Plan, make_plan
from anyvla.planning.remedies import apply, find_remedies, list_changes
from anyvla.planning.step_profile import Inputs, StepProfile, StepProfiler, profile_step
from anyvla.recipe import Recipe, read
from anyvla.training.config import TrainingConfig
from tests import small
from tests.training.warm_start.policies import JOINTS

LENGTHS = (12, 9, 21)
INPUTS = Inputs((small.robot(),), (32, 32), "open the drawer")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    write_dataset(folder / "data", small.embodiment(), [small.episode(n, i) for i, n in enumerate(LENGTHS)])
    document = {
        "name": "planned",
        "data": {"sources": [{"path": str(folder / "data")}], "cache_gb": 0.1},
        "model": small.SMALLEST,
        "training": {"steps": 100, "batch_size": 6, "device": "cpu", "precision": "float32"},
    }
    path = folder / "planned.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def plan(file: Path, *options: str, **given: Any) -> Plan:
    return make_plan(read(str(file), options), file.parent / "run", **given)


def test_the_json_has_the_numbers_of_the_data_and_of_the_recipe(recipe_file: Path, capsys: Any) -> None:
    assert main(["plan", str(recipe_file), "--json", "--gpu", "h100", "--out", str(recipe_file.parent / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["epoch"] == {"episodes": 3, "samples": 42, "steps": 7, "epochs": pytest.approx(100 * 6 / 42)}
    assert found["memory"]["total"] == pytest.approx(sum(found["memory"]["parts"].values()))
    assert found["fits"]
    assert found["flops"]["per_step"] == 6 * found["flops"]["per_sample"] > 0
    hours = 100 * found["flops"]["per_step"] / found["speed"]["flops"] / 3600
    assert found["hours"] == pytest.approx(hours)
    assert any("assumed: 30% of the 67 TFLOP/s" in note for note in found["notes"])  # in float32
    assert {"part": "x"}.keys() != found["parameters"][0].keys() == {"name", "parameters", "trainable"}
    assert found["remedies"] == []


@pytest.mark.parametrize(("shift", "noted"), [(0, "are computed once"), (2, "computed at each use: training.augment")])
def test_a_note_says_whether_features_of_a_frozen_tower_are_kept(recipe_file: Path, shift: int, noted: str) -> None:
    options = ("--model.backbone.train.vision", "false", "--training.augment.shift", str(shift))
    [note] = [note for note in plan(recipe_file, *options).notes if "frozen vision tower" in note]
    assert noted in note
    assert not [note for note in plan(recipe_file).notes if "frozen vision tower" in note]


def test_a_fitted_codec_is_planned_for_the_dims_of_all_robots(recipe_file: Path) -> None:
    other = to_dict(small.embodiment()) | {"name": "other", "action": {"groups": [JOINTS]}}
    declared = [{"path": "nowhere", "embodiment": of} for of in (to_dict(small.embodiment()), other)]
    model = {"decoder": small.DECODERS["tokens"], "representation": small.REPRESENTATIONS["fast"]}
    options = (
        f"--data.sources={json.dumps(declared)}",
        *(f"--model.{key}={json.dumps(of)}" for key, of in model.items()),
    )
    assert plan(recipe_file, *options).memory.total > 0


def test_the_text_says_what_was_assumed(recipe_file: Path, capsys: Any) -> None:
    assert main(["plan", str(recipe_file), "--out", str(recipe_file.parent / "run")]) == 0
    shown = capsys.readouterr().out
    for text in (
        "tokens per sample",
        "activations",
        "largest batch that fits",
        "42 samples of 3 episodes",
        "--rate RUN",
    ):
        assert text in shown


def test_neither_videos_nor_weights_are_read(recipe_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A model folder without weights suffices, and no frame is decoded."""
    small.policy().backbone.save_assets(tmp_path / "model")
    for name in ("decode_at", "read_info", "read_header"):
        monkeypatch.setattr(video, name, lambda *_, **__: pytest.fail("a video was opened"))
    from anyvla.data.episode import Frames

    monkeypatch.setattr(Frames, "__getitem__", lambda *_: pytest.fail("a frame was read"))
    found = plan(recipe_file, "--model.backbone", f"{{name: auto, path: {tmp_path / 'model'}}}")
    assert found.windows == sum(LENGTHS)


def test_a_sample_may_be_a_window_or_a_whole_episode(recipe_file: Path) -> None:
    """Two actions at once: two windows more for each episode, or two rows of it; the longest has 11 steps."""
    head = ("--model.history", "{name: policy_head, window: 2}", "--model.execute", "2")
    assert plan(recipe_file, *head, "--model.fuser", "{name: lstm, hidden: 16}").windows == sum(LENGTHS) + 3 * 2
    rows = {}
    for steps in (10, 11):
        history = ("--model.history", f"{{name: recurrent, steps: {steps}}}", "--model.execute", "2")
        rows[steps] = plan(recipe_file, *history, "--model.fuser", "{name: mingru, width: 16}")
        assert (rows[steps].windows, rows[steps].steps_of_a_window) == (6, 11)
    assert any("of the longest, of 11 steps" in note for note in rows[11].notes)
    refused = [note for note in rows[10].notes if note not in rows[11].notes]
    assert refused == ["training would refuse it: model.history.steps allows 10"]


def test_no_weight_is_allocated(recipe_file: Path) -> None:
    """A language model of 4 GB is planned in a fraction of its memory."""
    import psutil

    before = psutil.Process().memory_info().rss
    wide = "{name: nano, width: 4096, layers: 8, heads: 32, mlp: 8192, image_size: 32, channels: [16, 16]}"
    found = plan(recipe_file, "--model.backbone", wide, gpu="100GB")  # where it fits, so that no remedy is planned
    assert found.memory.parts["weights"] > 4e9
    assert psutil.Process().memory_info().rss - before < 0.5e9


def test_the_largest_batch_grows_with_the_memory_and_just_fits(recipe_file: Path) -> None:
    profile = profile_step(small.model(), TrainingConfig(), INPUTS, torch.float32)
    static = measure_use(profile, Budget("", 0, {}), 1, 1).total
    sizes = [find_largest_batch(profile, Budget("", static * factor, {})) for factor in (0.5, 1, 1.5, 3, 10)]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    largest = sizes[-1]
    available = static * 10
    assert measure_use(profile, Budget("", 0, {}), largest, 1).total <= available
    assert measure_use(profile, Budget("", 0, {}), largest + 1, 1).total > available


def test_remedies_fit_and_begin_with_those_that_change_no_result(recipe_file: Path) -> None:
    whole = plan(recipe_file, "--training.batch_size", "4096", gpu="100GB")
    taken = sum(size for name, size in whole.memory.parts.items() if name != "CUDA and fragmentation")
    gpu = f"{(0.6e9 + 0.4 * taken) / 0.95 / 1e9:.4f}GB"
    tight = plan(recipe_file, "--training.batch_size", "4096", gpu=gpu, remedies=2)
    assert not tight.fits
    assert tight.largest_batch < 4096
    first = tight.remedies[0]
    assert first.options == (f"--training.accumulate {first.accumulate}",)
    assert all(remedy.use.total <= tight.available for remedy in tight.remedies)
    assert "--training.gradient_checkpointing true" in tight.remedies[1].options
    recipe = apply(read(str(recipe_file), ["--training.batch_size", "4096"]), tight.remedies[1].options)
    assert recipe.training.gradient_checkpointing


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_change_is_a_valid_recipe(recipe_file: Path, precision: torch.dtype) -> None:
    recipe = read(str(recipe_file))
    changes = list(list_changes(recipe, freezes=True, precision=precision))
    assert len(changes) >= 8
    for change in changes:
        changed = apply(recipe, change.options)
        # Training refuses frozen weights in bfloat16 without autocast to it.
        assert precision == torch.bfloat16 or changed.model.backbone.config.dtype == "float32"


def test_frozen_weights_in_bfloat16_come_first_where_precision_allows_them(recipe_file: Path) -> None:
    recipe = read(str(recipe_file), ("--model.backbone.lora", "{rank: 4}", "--training.batch_size", "1"))
    profiler = StepProfiler(INPUTS, torch.bfloat16)

    def profile(changed: Recipe) -> StepProfile:
        return profiler.profile(changed.model, changed.training)

    base = profile(recipe)
    budget = Budget("", 0.95 * measure_use(base, Budget("", 0, {}), 1, 1).total, {})
    (remedy,), _ = find_remedies(recipe, base, budget, profile, 1, precision=torch.bfloat16)
    assert remedy.options == ("--model.backbone.dtype bfloat16",)


def test_a_change_that_cannot_be_planned_is_named_with_its_reason(recipe_file: Path) -> None:
    recipe = read(str(recipe_file))
    base = profile_step(recipe.model, recipe.training, INPUTS, torch.float32)

    def profile(changed: Recipe) -> StepProfile:
        if changed.model.backbone.config.quantize is not None:
            raise ImportError("no module named bitsandbytes")
        return base

    remedies, notes = find_remedies(recipe, base, Budget("", 1, {}), profile, 4, precision=torch.float32)
    assert remedies == []
    assert len(notes) == 1
    assert "quantize int8" in notes[0]
    assert "quantize int4" in notes[0]
    assert notes[0].count("(no module named bitsandbytes)") == 1


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("16 GiB", 16 * 2**30), ("8", 8e9), ("H100", 79.1 * 2**30)])
def test_sizes_and_names_of_gpus(text: str, size: float) -> None:
    assert parse_gpu(text).memory == pytest.approx(size)
    assert parse_gpu(text).name == ("h100" if text == "H100" else f"a GPU of {size / 1e9:.4g} GB")


@pytest.mark.parametrize("text", ["24TB", "h10", "GB", "-3GB", "0GB", "1e30GB", ""])
def test_what_is_no_gpu_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--gpu"):
        parse_gpu(text)


def test_a_gpu_without_bfloat16_is_planned_in_float32(recipe_file: Path) -> None:
    automatic = ("--training.precision", "auto")
    assert plan(recipe_file, *automatic, gpu="v100").precision == "float32"
    assert plan(recipe_file, *automatic, gpu="a100").precision == "bfloat16"


def test_the_speed_of_an_earlier_run_is_taken(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    lines = [{"step": 20 * i, "samples_per_s": rate} for i, rate in enumerate((1.0, 60.0, 60.0, 60.0), 1)]
    (tmp_path / "train/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    found = plan(recipe_file, rate=tmp_path)
    assert found.hours() == pytest.approx(100 * 6 / 60 / 3600)
    window = plan(recipe_file, "--model.history", "{name: interleaved, window: 3}", rate=tmp_path)
    assert window.hours() == pytest.approx(100 * 6 * 3 / 60 / 3600)  # the log counts the steps of windows
    assert any("20 windows/s of 3 steps" in note for note in window.notes)
    with pytest.raises(ConfigError, match="there is no log"):
        plan(recipe_file, rate=tmp_path / "nowhere")


def test_without_data_the_plan_says_what_is_needed(recipe_file: Path, tmp_path: Path) -> None:
    found = plan(recipe_file, "--data.sources", f"[{{path: {tmp_path / 'none'}}}]")
    assert found.windows is None
    assert found.to_dict()["epoch"] is None
    assert any("there is no data set at" in note and "an ordinary arm" in note for note in found.notes)


def test_without_data_the_views_that_training_will_use_are_planned(recipe_file: Path, tmp_path: Path) -> None:
    """An ordinary arm has two cameras; Open X-Embodiment's presets use one."""
    preset = ("--data", f"{{preset: bridge, root: {tmp_path}, sources: [], cache_gb: 0.1}}")
    both, one = plan(recipe_file, *preset), plan(recipe_file, *preset, "--data.views", "[primary]")
    assert one.tokens < both.tokens
    assert one.flops < 0.7 * both.flops
