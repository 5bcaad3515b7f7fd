"""Loads models that ship their own code: only if the user allows it, and only the code of one pinned commit.

Such code can do anything that the user can. Therefore a recipe must set `trust_remote_code: true`, a model of the hub
needs the commit that the user reviewed (a branch can change), code in further repositories is refused, and a checkpoint
with such code is loaded only if the caller allows it again (`VLA.load(..., trust_remote_code=True)`).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.initialization import no_init_weights

from anyvla.backbones.adapting.architecture_only import builds_architecture_only
from anyvla.backbones.adapting.options import Options
from anyvla.backbones.base import ModelPart
from anyvla.backbones.composed import Components, ComposedBackbone
from anyvla.config import STRICT
from anyvla.files.documents import as_mapping, read_object
from anyvla.files.tensor_files import join_first

COMMIT = re.compile(r"[0-9a-f]{40}")
MODEL_CLASSES = ("AutoModelForCausalLM", "AutoModel")
# Attributes that every configuration had in version 4 of transformers.
OLD_DEFAULTS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "is_decoder": False}
OTHER = "other"  # folder in a checkpoint
NOT_NEEDED = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.jpg", "*.png"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RemoteConfig(Options):
    """The model, and the permission to run its code."""

    path: str  # a model folder, or an id of the Hugging Face hub
    revision: str | None = None  # of the hub: the commit, 40 hexadecimal digits
    trust_remote_code: bool = False  # allow the model's code to run with all your rights: read it first

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trust_remote_code:
            raise ValueError(
                f"{self.path} ships its own code, which would run with all your rights. Read its .py files, then set "
                "trust_remote_code: true and, for a model of the hub, revision: to the commit that you read"
            )
        if self.revision is not None and not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"revision {self.revision!r} is no commit: the code that runs must be the code that you read, but "
                "branches and tags can move. Give the 40 hexadecimal digits of a commit of the model's repository"
            )


class RemoteBackbone(ComposedBackbone):
    """A vision tower and a language model from one model that ships its own code."""

    Config: ClassVar[type] = RemoteConfig
    supported_options = frozenset({"layers", "resampler"})
    about: ClassVar[str]  # the model with this interface, for messages
    required_modules: ClassVar[tuple[str, ...]]  # of the model
    other_model_key: ClassVar[str | None] = None  # the config key naming another model whose configuration is read
    generate: Any = None  # such code generates only with the version of transformers that it was written for

    def split_model(self, model: Any, tokenizer: Any) -> Components:
        """Return the parts of the loaded model; may set `image_size` and the like from `model.config`."""
        raise NotImplementedError(f"{type(self).__name__} does not define split_model()")

    def load_tokenizer(self, folder: Path, config: Any) -> Any:
        """Return the tokenizer, which may be remote code as well."""
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def load_components(self, config: Any, assets: Path | None) -> Components:
        """Run the model's code: build the model and, without `assets`, read its weights.

        Raises ValueError if there is no such model, its code is in another repository, or its interface differs.
        """
        folder = find_folder(config.path, config.revision) if assets is None else Path(assets)
        name = find_model_class(folder)
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        add_v4_defaults(settings)
        self.other: str | None = getattr(settings, self.other_model_key, None) if self.other_model_key else None
        if self.other is not None and (folder / OTHER).is_dir():
            self.other = str(folder / OTHER)
            setattr(settings, str(self.other_model_key), self.other)
        tokenizer = self.load_tokenizer(folder, settings)
        made = get_class_from_dynamic_module(name, str(folder))
        with no_init_weights():
            model = made(settings)
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and not hasattr(module, "get_head_mask"):
                module.get_head_mask = _no_head_mask
        modules = dict(model.named_modules(remove_duplicate=False))
        missing = [part for part in self.required_modules if part not in modules]
        if missing:
            raise ValueError(
                f"{config.path}: its {made.__name__} has no {', '.join(missing)}, so its interface is not the one of "
                f"{self.about}; give a revision with that interface"
            )
        if assets is None and not builds_architecture_only():
            load_weights(model, folder)
        self.folder = folder
        return self.split_model(model, tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Copy the model's code and configuration, and the configuration of the other model that it names."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in (*self.folder.glob("*.py"), *self.folder.glob("*.json"), *self.folder.glob("*.tiktoken")):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, Path(folder) / file.name)
        if self.other is not None:
            self.tokenizer.save_pretrained(folder)
            AutoConfig.from_pretrained(self.other, trust_remote_code=False).save_pretrained(Path(folder) / OTHER)

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        """Return the modules of each part; a projector may be inside the tower."""
        parts = super().part_modules()
        inside = dict(self.tower.named_modules()).get("projection")
        return parts if inside is None else parts | {"projector": (self.projection, inside)}


def add_v4_defaults(config: PretrainedConfig) -> None:
    """Add the attributes of version 4 of transformers, for which remote code was written, to its configurations."""
    for inner in vars(config).values():
        if isinstance(inner, PretrainedConfig):
            add_v4_defaults(inner)
    if type(config).__module__.startswith("transformers."):
        return
    for name, value in OLD_DEFAULTS.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "default":
        config.rope_scaling = None  # as in version 4; such code does not know the form of version 5


def find_folder(path: str, revision: str | None) -> Path:
    """Return the folder of a model: as given, or the pinned snapshot of the hub. Raises ValueError if none exists."""
    if Path(path).is_dir():
        return Path(path)
    if revision is None:
        raise ValueError(
            f"{path} is no local folder; for a model of the hub with its own code, set revision to the commit that you "
            "read: its 40 hexadecimal digits"
        )
    try:
        return Path(snapshot_download(path, revision=revision, ignore_patterns=NOT_NEEDED))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no model at {path!r}, commit {revision} ({type(error).__name__}): check the spelling. Without a network "
            f"here, run `hf download {path} --revision {revision}` on another machine and give the folder it prints"
        ) from None


def find_model_class(folder: Path) -> str:
    """Return `module.Class` of the model in the folder.

    Raises ValueError if it ships no code, or uses code from another repository.
    """
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        content = read_object(file) if file.exists() else {}
        listed = as_mapping(content.get("auto_map", {}), f"{file}, auto_map")
        named = [n for names in listed.values() for n in (names if isinstance(names, list) else [names]) if n]
        elsewhere = sorted({n.partition("--")[0] for n in named if "--" in n})
        if elsewhere:
            raise ValueError(
                f"{file} names code in {', '.join(elsewhere)}, which no revision pins: copy its .py files into "
                f"{folder} and take the part before `--` out of auto_map"
            )
        if name == "config.json":
            found_class = next((listed[auto] for auto in MODEL_CLASSES if auto in listed), None)
    if found_class is None:
        raise ValueError(f"{folder} holds no model with its own code (auto_map in config.json); try backbone: auto")
    return found_class


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of the folder. Raises ValueError if some or all are missing."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no weights (*.safetensors, pytorch_model*.bin): copy the whole folder again")
    missing = set(model.state_dict())
    for file in files:
        tensors: dict[str, Tensor] = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        )
        missing -= tensors.keys()
        try:
            model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit the model of {folder}/config.json: {error}") from error
    tensors = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    missing = {name for name in missing if id(tensors[name]) not in loaded}  # without other names of tied weights
    computed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    missing = {name for name in missing if not any(re.search(pattern, name) for pattern in computed)}
    if missing:
        raise ValueError(
            f"the weights in {folder} lack {join_first(missing)}: they belong to another version of its code"
        )


def _no_head_mask(head_mask: None, layers: int, *_: Any) -> list[None]:
    """Replace the method that models inherited from transformers until version 5."""
    return [None] * layers
