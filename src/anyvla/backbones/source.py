"""Reading what a model folder or a hub id holds besides weights, and saying what to do where something is missing.

Nothing here needs a network: files come from the folder, or from the hub's local cache (`HF_HOME`) where the hub cannot
be reached or `HF_HUB_OFFLINE=1` forbids it.
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
REMOTE = "moondream, uform, qwen_vl"  # the backbones that run code which comes with a model
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def fetch(source: str, revision: str | None) -> str:
    """What to do about a model that is not here, or not whole."""
    if Path(source).is_dir():
        return "Copy the folder again, whole."
    at = f" --revision {revision}" if revision else ""
    return f"Without a network here, run `hf download {source}{at}` where there is one and give the folder it prints."


def lacking_package(source: str, error: ImportError) -> str:
    """What to do where a family takes parts from other libraries, as Gemma 3n and FastVLM their tower from timm."""
    text = " ".join(str(error).split())
    named = re.search(r"requires the (\w+) library", text)
    package = named[1] if named else error.name
    if package is None:
        return f"the model at {source!r} needs a package that is not here: {text}"
    return (
        f"the model at {source!r} needs the package {package}, which neither anyvla nor most models do: "
        f"`pip install {package}`, or choose another model ({text})"
    )


def _refuse_unknown(source: str, told: dict[str, Any]) -> None:
    """Raises ValueError for a model type that transformers does not know by itself. `told`: its config.json."""
    kind = told.get("model_type")
    if kind is None:
        raise ValueError(f"{source} is no model of transformers: its config.json has no model_type")
    if kind in CONFIG_MAPPING:
        return
    what = f"{source} is a {kind!r} model, which transformers {transformers.__version__} does not know: "
    if "auto_map" in told:
        raise ValueError(
            f"{what}it comes with code of its own, which backbone auto never runs. These backbones do, if told to: "
            f"{REMOTE}"
        )
    raise ValueError(f"{what}use a newer version of anyvla, or write a backbone for it (examples/add_a_backbone.py)")


def read_config(source: str, revision: str | None) -> Any:
    """The model's configuration. Raises ValueError, with the way out, if there is none or the model cannot see."""
    folder = Path(source)
    file = folder / "config.json"
    if folder.is_dir() and not file.is_file():
        raise ValueError(f"{source} holds no config.json: give a folder that `save_pretrained` or `hf download` wrote")
    if folder.is_file():
        raise ValueError(f"{source} is a file: give the folder in which it lies, with its config.json")
    check_regular(file)
    if not folder.is_dir() and not HUB_ID.fullmatch(source):
        raise ValueError(f"there is no folder {source}, and an id of the hub looks like OWNER/NAME: check the spelling")
    try:
        _refuse_unknown(source, PretrainedConfig.get_config_dict(source, revision=revision)[0])
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except OSError as error:
        if folder.is_dir():
            raise ValueError(f"{file} cannot be read: {error}") from error
        raise ValueError(
            f"no model at {source!r}: it is neither a folder here nor readable from the hub or its local cache. "
            f"Check the spelling. {fetch(source, revision)}"
        ) from error
    except ImportError as error:
        raise ValueError(lacking_package(source, error)) from error
    except ValueError:
        raise
    except Exception as error:  # transformers raises anything for values that are wrong
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
    """The tokenizer in a folder inside the model's (see `Quirk.second_tokenizer`). Raises ValueError without one."""
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, subfolder=folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} has no tokenizer in its folder {folder!r}, for the instruction that its vision side reads: copy "
            f"that folder from the model it was trained from. {fetch(source, revision)}"
        ) from error


def read_preprocessor(source: str, revision: str | None) -> dict[str, Any]:
    """The image preprocessing, from either of the files in which transformers keeps it. Raises ValueError."""
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
        f"{source} has no {PREPROCESSOR} that says how its images are scaled: copy that file from the model it was "
        f"trained from. {fetch(source, revision)}"
    )
