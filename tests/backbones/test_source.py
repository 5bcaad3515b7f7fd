"""Paths without a usable model are refused with advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.families.unsupported import UNSUPPORTED
from anyvla.backbones.source import how_to_download


def read_refusal(path: Path | str) -> str:
    config = AutoBackbone.Config(path=str(path))
    with pytest.raises(ValueError) as first:
        AutoBackbone(config)
    with pytest.raises(ValueError) as second:  # reads the same file
        AutoBackbone.find_capabilities(config)
    assert str(first.value) == str(second.value)
    return str(first.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"architectures": ["Mine"]}, "is no model of transformers: its config.json has no model_type"),
        ({"model_type": "bert"}, "is a 'bert' model, which does not read images with text: choose one that"),
        ({"model_type": "gr00t"}, "does not know: use a newer version of anyvla, or write a backbone for it"),
        (
            {"model_type": "moondream1", "auto_map": {"AutoConfig": "code.Config"}},
            "ships its own code, which the backbone auto never runs. These backbones run such code on request",
        ),
        ({"model_type": "evolla"}, f"is a 'evolla' model, which {UNSUPPORTED['evolla']}"),
    ],
    ids=lambda value: value.get("model_type", "none") if isinstance(value, dict) else "",
)
def test_the_error_names_the_kind_of_model(tmp_path: Path, content: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert message in read_refusal(tmp_path)


def test_a_path_that_is_no_model_folder_is_refused(tmp_path: Path, llava_folder: Path) -> None:
    file = llava_folder / "model.safetensors"
    assert read_refusal(file) == f"{file} is a file: give the folder that contains it and its config.json"
    missing = tmp_path / "modles" / "llava"
    expected = f"there is no folder {missing}, and it is no hub id (OWNER/NAME) either: check the spelling"
    assert read_refusal(missing) == expected
    assert read_refusal(tmp_path) == (
        f"{tmp_path} has no config.json: give a folder that `save_pretrained` or `hf download` wrote"
    )


def test_the_download_command_names_the_revision(tmp_path: Path) -> None:
    assert "`hf download a/b --revision v1`" in how_to_download("a/b", "v1")
    assert "`hf download a/b`" in how_to_download("a/b", None)
    assert how_to_download(str(tmp_path), None) == "Copy the whole folder again."
