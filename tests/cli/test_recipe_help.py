"""The keys that `--help` lists, read from source, against the config classes themselves."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from anyvla.cli.main import main
from anyvla.cli.recipe_help import RECIPE, Key, format_keys, list_keys
from anyvla.config import Part, to_dict
from anyvla.demonstrations.collect import CollectConfig
from anyvla.evaluation.protocol import EvaluationConfig
from anyvla.recipe import Recipe
from anyvla.registry import REGISTRIES
from anyvla.training.config import TrainingConfig


@pytest.fixture(scope="module")
def keys() -> dict[str, Key]:
    return {key.name: key for key in list_keys(RECIPE) if not key.choices}


def names_of(cls: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of all keys of a config class."""
    found = set()
    for name, hint in typing.get_type_hints(cls).items():
        found.add(prefix + name)
        many = {tuple: "[]", dict: ".NAME"}.get(typing.get_origin(hint), "")
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind) and kind is not Part:
                found |= names_of(kind, f"{prefix}{name}{many}.")
    return found


def test_every_key_of_a_recipe_is_listed_and_no_other(keys: dict[str, Key]) -> None:
    assert set(keys) == names_of(Recipe)


@pytest.mark.parametrize("registry", ["backbones", "histories", "fusers", "decoders", "representations", "formats"])
def test_every_option_of_every_member_of_a_registry_is_listed(registry: str) -> None:
    word = {"backbones": "model.backbone", "histories": "model.history", "formats": "data.sources[].format"}
    name = word.get(registry, f"model.{registry.removesuffix('s')}")
    for member in REGISTRIES[registry]:
        try:
            config = REGISTRIES[registry][member].Config
        except ImportError:  # an extra that is not installed
            continue
        listed = {
            key.name
            for key in list_keys(RECIPE)
            if key.name.startswith(f"{name}.") and member in " ".join(key.choices).split()
        }
        assert listed == names_of(config, f"{name}."), member


@pytest.mark.parametrize(
    ("section", "config"), [("training", TrainingConfig), ("evaluation", EvaluationConfig), ("collect", CollectConfig)]
)
def test_defaults_are_those_of_the_class(keys: dict[str, Key], section: str, config: Any) -> None:
    def compare(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            key = keys[f"{prefix}.{name}"]
            if key.type.startswith("keys") and isinstance(value, dict):
                compare(value, key.name)
            else:
                assert yaml.safe_load(str(key.default)) == value, key.name

    compare(to_dict(config()), section)


def test_type_range_and_comment(keys: dict[str, Key]) -> None:
    steps = keys["training.steps"]
    assert (steps.type, steps.default, steps.bounds) == ("int", "10000", "1 to 1e9")
    assert "optimizer steps" in steps.comment
    assert keys["model.chunk"].bounds == "1 to 1024"
    assert keys["training.optim.lr"].bounds == "> 0 to 100"
    assert keys["training.optim.betas"].bounds == "0 to < 1"  # of the alias Decay
    assert keys["training.precision"].type == "auto | float32 | bfloat16 | float16"
    assert keys["training.augment.shift"].type == "int | [int, ...]"
    assert keys["evaluation.horizon"].type == "int | null"
    assert keys["model.fuser"].type == "gpt | identity | lstm | mingru | mlp"
    assert keys["model.fuser"].default is None
    assert keys["model.representation"].default == "continuous"


def test_the_default_of_a_field_that_gives_it_by_position() -> None:
    listed = {key.name: key for key in list_keys("anyvla.data.formats.robomimic.dataset:RobomimicConfig")}
    assert (listed["noop"].default, listed["noop"].bounds) == ("0.0001", "> 0 to 1e9")


OTHER = """
import typing
from dataclasses import field
from pathlib import Path

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT

class Part:
    @dataclass(config=STRICT)
    class Config:
        needed: int = field(kw_only=True)
        names: list[str] = field(default_factory=list)
        folder: Path = Path("here")
        unit: typing.Annotated[str, BeforeValidator(str.strip)] = "m"
        heads: set[int] = field(default_factory=lambda: {4})
"""


def test_a_package_of_others_may_declare_keys_as_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part_of_others.py").write_text(OTHER)
    monkeypatch.syspath_prepend(tmp_path)
    listed = {key.name: (key.type, key.default) for key in list_keys("part_of_others:Part.Config")}
    assert listed == {
        "needed": ("int", None),
        "names": ("list[str]", "[]"),
        "folder": ("path", "here"),
        "unit": ("str", "m"),
        "heads": ("set[int]", "[4]"),
    }


def test_every_key_has_a_comment() -> None:
    assert not [key.name for key in list_keys(RECIPE) if not key.comment]


def test_options_that_members_share_are_listed_once() -> None:
    text = "\n".join(format_keys(RECIPE))
    assert text.count("--model.decoder.method ") == 1
    assert "with --model.decoder expert | flow:\n    --model.decoder.time " in text


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["train"], "--training.optim.lr"),
        (["quickstart"], "--model.fuser.layers"),
        (["data", "collect"], "--collect.demonstrations"),
        (["eval"], "--first_seed"),
        (["explain"], "--model.history.window"),
        (["serve"], "--limits.message_bytes"),
    ],
)
def test_the_help_of_a_command_lists_the_keys(arguments: list[str], key: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    assert f"{key} " in capsys.readouterr().out


@pytest.mark.parametrize("command", [["train"], ["quickstart"], ["eval"], ["data", "collect"], ["data", "fit-codec"]])
def test_help_imports_no_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom anyvla.cli.main import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
