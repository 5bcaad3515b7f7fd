"""Reads the files of a model folder or hub id other than weights, with advice for users if one is missing.

No network is required: files come from the folder, or from the hub's local cache (`HF_HOME`) if the hub cannot be
reached or `HF_HUB_OFFLINE=1` is set.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import cached_file

from anyvla.backbones.families.unsupported import UNSUPPORTED
from anyvla.files.documents import as_mapping, read_object
from anyvla.files.inside import check_regular

PREPROCESSOR = "preprocessor_config.json"
REMOTE = "moondream, uform, qwen_vl"  # the backbones that run code shipped with a model
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def how_to_download(source: str, revision: str | None) -> str:
    """Return the advice for a model that is missing or incomplete."""
    if Path(source).is_dir():
        return "Copy the whole folder again."
    at = f" --revision {revision}" if revision else ""
    return (
        f"Without a network on this machine, run `hf download {source}{at}` on one with a network and give the folder "
        "it prints."
    )


def describe_missing_package(source: str, error: ImportError) -> str:
    """Return the advice for a family that needs another library, as Gemma 3n and FastVLM need timm for their tower."""
    text = " ".join(str(error).split())
    named = re.search(r"requires the (\w+) library", text)
    package = named[1] if named else error.name
    if package is None:
        return f"the model at {source!r} needs a package that is not installed: {text}"
    return (
        f"the model at {source!r} needs the package {package}, which anyvla does not install: "
        f"`pip install {package}`, or choose another model ({text})"
    )


def _refuse_unknown(source: str, config: dict[str, Any]) -> None:
    """Raise ValueError for a model type that transformers does not know. `config`: the content of config.json."""
    kind = config.get("model_type")
    if kind is None:
        raise ValueError(f"{source} is no model of transformers: its config.json has no model_type")
    if kind in CONFIG_MAPPING:
        return
    unknown = f"{source} is a {kind!r} model, which transformers {transformers.__version__} does not know: "
    if "auto_map" in config:
        raise ValueError(
            f"{unknown}it ships its own code, which the backbone auto never runs. These backbones run such code on "
            f"request: {REMOTE}"
        )
    raise ValueError(f"{unknown}use a newer version of anyvla, or write a backbone for it (examples/add_a_backbone.py)")


def read_config(source: str, revision: str | None) -> Any:
    """Return the model's configuration. Raises ValueError if there is none or the model does not read images."""
    folder = Path(source)
    file = folder / "config.json"
    if folder.is_dir() and not file.is_file():
        raise ValueError(f"{source} has no config.json: give a folder that `save_pretrained` or `hf download` wrote")
    if folder.is_file():
        raise ValueError(f"{source} is a file: give the folder that contains it and its config.json")
    check_regular(file)
    if not folder.is_dir() and not HUB_ID.fullmatch(source):
        raise ValueError(f"there is no folder {source}, and it is no hub id (OWNER/NAME) either: check the spelling")
    try:
        _refuse_unknown(source, PretrainedConfig.get_config_dict(source, revision=revision)[0])
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except OSError as error:
        if folder.is_dir():
            raise ValueError(f"{file} cannot be read: {error}") from error
        raise ValueError(
            f"no model at {source!r}: it is neither a local folder nor available from the hub or its local cache. "
            f"Check the spelling. {how_to_download(source, revision)}"
        ) from error
    except ImportError as error:
        raise ValueError(describe_missing_package(source, error)) from error
    except ValueError:
        raise
    except Exception as error:  # transformers raises many kinds of errors for wrong values
        raise ValueError(f"{source}: its config.json describes no model ({type(error).__name__}: {error})") from error
    if config.model_type in UNSUPPORTED:
        raise ValueError(f"{source} is a {config.model_type!r} model, which {UNSUPPORTED[config.model_type]}")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{source} is a {config.model_type!r} model, which does not read images with text: "
            "choose one that AutoModelForImageTextToText knows (LLaVA, PaliGemma, SmolVLM, KosMos-2, ...)"
        )
    return config


def read_second_tokenizer(source: str, revision: str | None, folder: str) -> Any:
    """Return the tokenizer in a subfolder of the model (see `Quirk.second_tokenizer`). Raises ValueError if missing."""
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, subfolder=folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} has no tokenizer in its folder {folder!r}, which encodes the instruction for its vision side: "
            f"copy that folder from the base model. {how_to_download(source, revision)}"
        ) from error


def read_preprocessor(source: str, revision: str | None) -> dict[str, Any]:
    """Return the image preprocessing, from either of the two files of transformers. Raises ValueError if missing."""
    for name in (PREPROCESSOR, "processor_config.json"):
        path = cached_file(
            source, name, revision=revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is not None:
            content = read_object(Path(path))
            content = as_mapping(content.get("image_processor", content), f"{path}, image_processor")
            if content.keys() & {"image_mean", "size", "image_processor_type"}:
                return content
    raise ValueError(
        f"{source} has no {PREPROCESSOR} with the scaling of its images: copy that file from the base model. "
        f"{how_to_download(source, revision)}"
    )
