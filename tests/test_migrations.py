"""Documents of earlier versions load under today's names, and policies act as they did."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyvla import migrations
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.checkpoint.files import read_document
from anyvla.config import ConfigError, to_dict
from anyvla.data.training.mixture import read_source
from anyvla.migrations import migrate_recipe, migrate_result, migrate_weight
from anyvla.policy import VLA
from anyvla.recipe import read
from tests import small

# Policies with random weights, saved by the last version without a schema. `chunks.json`: the chunks that they gave.
SAVED = Path(__file__).parent / "fixtures/checkpoints_schema_1.zip"
NAMES = [
    "diffusion",
    "expert",
    "expert_flow",
    "fast",
    "flow",
    "lm_tokens",
    "regression",
    "regression_gripper",
    "tokens",
]


def extract(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(SAVED) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith(f"{name}/")])
    shutil.copy(TOKENIZER / "tokenizer.json", folder / name / "backbone/tokenizer.json")
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_of_schema_1_acts_as_before(name: str, tmp_path: Path) -> None:
    vla, data = VLA.load(extract(name, tmp_path)), small.batch(1, 2, chunk=2)
    session = vla.start("open the drawer", seed=3)
    chunks = [vla.act([small.observation(data, 0, step)], [session])[0].actions.tolist() for step in range(2)]
    before = json.loads((tmp_path / name / "chunks.json").read_text())
    torch.testing.assert_close(torch.tensor(chunks), torch.tensor(before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_of_schema_1_equals_the_one_written_today(name: str, tmp_path: Path) -> None:
    folder = extract(name, tmp_path)
    VLA.load(folder).save(tmp_path / "again")
    again = (tmp_path / "again/config.yaml").read_text()
    assert again.startswith(f"schema: {migrations.RECIPE}\n")
    assert read_document(folder)["model"] == read_document(tmp_path / "again")["model"]


def test_a_weight_under_both_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_WEIGHTS", ((r"requests\b", "queries"),))
    folder = tmp_path / "policy"
    small.policy().save(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"requests": tensors["queries"].clone()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not of this model: requests"):
        VLA.load(folder)


def test_old_names_of_a_recipe_by_hand_are_accepted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.yaml"
    text = "name: mine\nbenchmark: metaworld/mt10\ncollect: {}\nmodel: {backbone: nano, history: none, fuser: identity,"
    path.write_text(text + " decoder: regression, proprio: head}\ntraining: {}\n")
    with caplog.at_level(logging.WARNING):
        recipe = read(str(path))
    assert recipe.model.proprio == "fuser"
    assert [r.message for r in caplog.records] == [f"{path}: model.proprio: head is called fuser now"]
    assert read(str(path), ["--model.proprio", "token"]).model.proprio == "token"


def test_a_recipe_of_schema_2_keeps_its_names_and_a_later_one_is_refused(tmp_path: Path) -> None:
    document = to_dict(read("quickstart"))
    assert migrate_recipe({"schema": 2, **document}, "x") == document == migrate_recipe(document, "x")
    assert migrate_recipe({"schema": 2, "model": {"proprio": "head"}}, "x") == {"model": {"proprio": "head"}}
    for schema in (3, 0, "2", True):
        with pytest.raises(ValueError, match=r"x: schema .* is unknown"):
            migrate_recipe({"schema": schema}, "x")
    path = tmp_path / "later.yaml"
    path.write_text("schema: 3\n")
    with pytest.raises(ConfigError, match="schema 3 is unknown"):
        read(str(path))


def test_keys_and_values_are_renamed_wherever_a_path_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_RESULT_KEYS", {"task.old": "new", "parts.*.old": "new"})
    monkeypatch.setattr(migrations, "_RESULT_VALUES", {"kinds.*": {"told": "original"}})
    line = {"parts": [{"old": 1, "b": 2}, {"old": 1, "new": 2}, 3], "kinds": ["told", "empty", None], "task": "old"}
    renamed = migrate_result(line)
    assert renamed == {
        "parts": [{"new": 1, "b": 2}, {"old": 1, "new": 2}, 3],
        "kinds": ["original", "empty", None],
        "task": "old",
    }
    assert list(renamed["parts"][0]) == ["new", "b"]
    assert line["kinds"] == ["told", "empty", None]


def test_a_source_of_schema_1_keeps_its_choice_for_episodes_without_an_instruction() -> None:
    document = {"data": {"sources": [{"path": "a"}, {"path": "b", "unlabelled": "drop"}]}}
    assert migrate_recipe(document, "x") == {"data": {"sources": [{"path": "a"}, {"path": "b", "unlabeled": "drop"}]}}


def test_the_file_of_a_source_may_have_old_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "source.yaml"
    path.write_text("unlabelled: drop\nhz: 5\n")
    assert read_source(path) == {"unlabeled": "drop", "hz": 5}
    assert f"{path}: data.sources.0.unlabelled is called unlabeled now" in caplog.text


def test_draws_of_a_decoder_are_called_samples() -> None:
    document = {"model": {"decoder": {"name": "flow", "draws": 8, "steps": 5}}}
    assert migrate_recipe(document, "x")["model"]["decoder"] == {"name": "flow", "samples": 8, "steps": 5}
    both = {"model": {"decoder": {"name": "flow", "draws": 8, "samples": 4}}}
    assert migrate_recipe(both, "x") == both  # building the config then refuses draws


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("decoder.words.embedding", "decoder.vocabulary.embedding"),
        ("decoder.tokens.words.head.weight", "decoder.tokens.vocabulary.head.weight"),
        ("proprio.weight", "proprio_embedding.weight"),
        ("backbone.decoder.words.weight", "backbone.decoder.words.weight"),
    ],
)
def test_weights_of_renamed_modules_get_their_names(old: str, new: str) -> None:
    assert migrate_weight(old) == new
    assert migrate_weight(new) == new
