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


@contextmanager
def planned_shapes(recipe: Recipe) -> Iterator[tuple[Recipe, tuple[str, ...]]]:
    """Yield the recipe with a folder of bundled shapes as its model, and a note, if the model is known and not here."""
    part = recipe.model.backbone
    name = str(getattr(part.config, "path", ""))
    if name not in known_models() or Path(name).exists() or _in_cache(name):
        yield recipe, ()
        return
    with TemporaryDirectory() as folder:
        write_shapes(known_models()[name], Path(folder))
        changed = dataclasses.replace(part, config=dataclasses.replace(part.config, path=folder, revision=None))
        model = dataclasses.replace(recipe.model, backbone=changed)
        unchecked = known_models()[name].unchecked
        caution = f" (not compared with its config.json: {unchecked})" if unchecked else ""
        note = (
            f"{name} is not on this machine: its shapes come with anyvla{caution}, and instructions are planned with a "
            "token a byte or less; training needs the model (a network, or model.backbone.path FOLDER)"
        )
        yield dataclasses.replace(recipe, model=model), (note,)


def write_shapes(model: KnownModel, folder: Path) -> None:
    """Write the configuration, preprocessing and a small tokenizer of a known model into a folder."""
    from transformers import AutoTokenizer

    from anyvla.backbones.nano.backbone import TOKENIZER

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(list(_SPECIAL), special_tokens=True)
    tokenizer.save_pretrained(folder)
    config = dict(model.config)
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
