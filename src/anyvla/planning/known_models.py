"""Plan published models before they are downloaded: their shapes come with anyvla."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyvla.files.documents import as_mapping, read_yaml
from anyvla.recipe import Recipe

_FILE = Path(__file__).with_name("known_models.yaml")
_KEYS = ("path", "language", "vision")  # of a backbone, that name models
_LANGUAGE = ("mpt", "gpt_neox")
_SPECIAL = ("</image>", "<patch_index_0000>", "<fake_token_around_image>", "<global-img>")  # around images


@dataclass(frozen=True)
class KnownModel:
    """The shapes of a published model."""

    parameters: float  # published
    image_size: int
    config: dict[str, Any]  # of config.json
    source: str  # the copy of config.json that the shapes were compared with
    unchecked: str  # shapes that no copy was found for; empty: none


@functools.cache
def known_models() -> dict[str, KnownModel]:
    """Return the shapes by hub id."""
    found = as_mapping(read_yaml(_FILE), str(_FILE))
    return {
        name: KnownModel(float(of["parameters"]), of["image_size"], of["config"], of["source"], of.get("unchecked", ""))
        for name, of in found.items()
    }


def count_known(recipe: Recipe) -> float:
    """Return the published number of weights of the models that a recipe names, as far as they are known."""
    config = recipe.model.backbone.config
    names = {str(getattr(config, key, "")) for key in _KEYS}
    return sum(known_models()[name].parameters for name in names & known_models().keys())


@contextmanager
def planned_shapes(recipe: Recipe) -> Iterator[tuple[Recipe, tuple[str, ...]]]:
    """Yield the recipe with folders of bundled shapes as its models, and notes, for models that are known and not here.

    Without such a model the recipe is yielded as it is.
    """
    part = recipe.model.backbone
    named = {key: str(getattr(part.config, key, "")) for key in _KEYS}
    absent = {
        key: name
        for key, name in named.items()
        if name in known_models() and not Path(name).exists() and not _in_cache(name)
    }
    if not absent:
        yield recipe, ()
        return
    with TemporaryDirectory() as folder:
        changed: dict[str, Any] = {"revision": None} if "path" in absent else {}
        for key, name in absent.items():
            changed[key] = str(Path(folder) / key)
            write_shapes(known_models()[name], Path(folder) / key)
        backbone = dataclasses.replace(part, config=dataclasses.replace(part.config, **changed))
        model = dataclasses.replace(recipe.model, backbone=backbone)
        yield dataclasses.replace(recipe, model=model), tuple(_describe(key, name) for key, name in absent.items())


def _describe(key: str, name: str) -> str:
    unchecked = known_models()[name].unchecked
    caution = f" (not compared with its config.json: {unchecked})" if unchecked else ""
    return (
        f"{name} is not on this machine: its shapes come with anyvla{caution}, and instructions are planned with a "
        f"token a byte or less; training needs the model (a network, or model.backbone.{key} FOLDER)"
    )


def write_shapes(model: KnownModel, folder: Path) -> None:
    """Write the configuration, preprocessing and a small tokenizer of a known model into a folder."""
    from transformers import AutoTokenizer

    from anyvla.backbones.nano.backbone import TOKENIZER

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(list(_SPECIAL), special_tokens=True)
    config = dict(model.config)
    if config["model_type"] in _LANGUAGE:  # Flamingo gives its language model as many embeddings as the tokenizer has
        # and adds two tokens itself.
        tokenizer.add_tokens([f"<unused-{n}>" for n in range(config["vocab_size"] - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    for key in ("image_token_id", "image_token_index"):
        if key in config:
            config[key] = tokenizer.convert_tokens_to_ids(config[key])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    size = {"height": model.image_size, "width": model.image_size}
    preprocessor = {"size": size, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")


def _in_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)
