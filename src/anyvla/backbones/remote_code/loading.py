"""Models whose code comes with their weights: run only if the user says so, and only the code of one pinned commit.

Such code can do anything that the user can. So a recipe must say `trust_remote_code: true`, a model of the hub needs
the commit that was read (a branch can change tomorrow), code in further repositories is refused, and a checkpoint that
holds such code is loaded only if the caller says so again (`VLA.load(..., trust_remote_code=True)`).
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

from anyvla.backbones.adapting.options import Options
from anyvla.backbones.base import ModelPart
from anyvla.backbones.composed import ComposedBackbone, Pair
from anyvla.config import STRICT
from anyvla.files.documents import as_mapping, read_object
from anyvla.files.weights import join_first

COMMIT = re.compile(r"[0-9a-f]{40}")
MODEL_CLASSES = ("AutoModelForCausalLM", "AutoModel")
# What any configuration had in version 4 of transformers.
OLD_DEFAULTS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "is_decoder": False}
OTHER = "other"  # folder in a checkpoint
NOT_NEEDED = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.jpg", "*.png"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RemoteConfig(Options):
    """Which model, and the leave to run the code that comes with it."""

    path: str  # a model folder, or an id of the Hugging Face hub
    revision: str | None = None  # of the hub: the commit, 40 hexadecimal digits
    trust_remote_code: bool = False  # the model's own code may run, with all rights of yours: read it first

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trust_remote_code:
            raise ValueError(
                f"{self.path} comes with code of its own, which would run with all your rights. Read its .py files, "
                "then set trust_remote_code: true and, for a model of the hub, revision: to the commit that you read"
            )
        if self.revision is not None and not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"revision {self.revision!r} is no commit: code that runs here must be the code that was read, and "
                "branches and tags can move. Give the 40 hexadecimal digits of a commit of the model's repository"
            )


class RemoteBackbone(ComposedBackbone):
    """A vision tower and a language model out of one model that brings its own code."""

    Config: ClassVar[type] = RemoteConfig
    supported_options = frozenset({"layers", "resampler"})
    about: ClassVar[str]  # whose interface this is, for messages
    needs: ClassVar[tuple[str, ...]]  # the modules of the model that are read here
    elsewhere: ClassVar[str | None] = None  # the setting that names another model, whose configuration the code reads
    generate: Any = None  # such code generates with the version of transformers that it was written for

    def take_apart(self, model: Any, tokenizer: Any) -> Pair:
        """The parts of the loaded model; may set `image_size` and the like from `model.config`."""
        raise NotImplementedError(f"{type(self).__name__} must say which modules of the model it reads")

    def tokenizer_of(self, folder: Path, config: Any) -> Any:
        """The tokenizer, which may be remote code as well."""
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def pair(self, config: Any, assets: Path | None) -> Pair:
        """Run the model's code: build it and, without `assets`, read its weights.

        Raises ValueError if there is no such model, its code lies elsewhere, or it has another interface.
        """
        folder = found(config.path, config.revision) if assets is None else Path(assets)
        name = class_of(folder)
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        complete(settings)
        self.other: str | None = getattr(settings, self.elsewhere, None) if self.elsewhere else None
        if self.other is not None and (folder / OTHER).is_dir():
            self.other = str(folder / OTHER)
            setattr(settings, str(self.elsewhere), self.other)
        tokenizer = self.tokenizer_of(folder, settings)
        made = get_class_from_dynamic_module(name, str(folder))
        with no_init_weights():
            model = made(settings)
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and not hasattr(module, "get_head_mask"):
                module.get_head_mask = _no_head_mask
        lacking = [part for part in self.needs if _module(model, part) is None]
        if lacking:
            raise ValueError(
                f"{config.path}: its {made.__name__} has no {', '.join(lacking)}, so this is not the interface of "
                f"{self.about}; give a revision that has it"
            )
        if assets is None:
            fill(model, folder)
        self.folder = folder
        return self.take_apart(model, tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Copy the model's code and configuration, and what its configuration names elsewhere."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in (*self.folder.glob("*.py"), *self.folder.glob("*.json"), *self.folder.glob("*.tiktoken")):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, Path(folder) / file.name)
        if self.other is not None:
            self.tokenizer.save_pretrained(folder)
            AutoConfig.from_pretrained(self.other, trust_remote_code=False).save_pretrained(Path(folder) / OTHER)

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        """The modules of each part; a projector may lie inside the tower."""
        parts = super().part_modules()
        inside = _module(self.tower, "projection")
        return parts if inside is None else parts | {"projector": (self.projection, inside)}


def complete(config: PretrainedConfig) -> None:
    """Give configurations of remote code what they had under version 4 of transformers, for which it was written."""
    for inner in vars(config).values():
        if isinstance(inner, PretrainedConfig):
            complete(inner)
    if type(config).__module__.startswith("transformers."):
        return
    for name, value in OLD_DEFAULTS.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "default":
        config.rope_scaling = None  # as it was; version 5 says so in words that such code does not know


def found(path: str, revision: str | None) -> Path:
    """The folder of a model: as given, or the pinned snapshot of the hub. Raises ValueError if there is none."""
    if Path(path).is_dir():
        return Path(path)
    if revision is None:
        raise ValueError(
            f"{path} is no folder here; for a model of the hub with code of its own, revision must say which commit "
            "was read: its 40 hexadecimal digits"
        )
    try:
        return Path(snapshot_download(path, revision=revision, ignore_patterns=NOT_NEEDED))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no model at {path!r}, commit {revision} ({type(error).__name__}): check the spelling. Without a network "
            f"here, run `hf download {path} --revision {revision}` where there is one and give the folder it prints"
        ) from None


def class_of(folder: Path) -> str:
    """`module.Class` of the model in the folder. Raises ValueError if it has no code, or code elsewhere."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        told = read_object(file) if file.exists() else {}
        listed = as_mapping(told.get("auto_map", {}), f"{file}, auto_map")
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
        raise ValueError(f"{folder} holds no model with code of its own (auto_map in config.json); try backbone: auto")
    return found_class


@torch.no_grad()
def fill(model: nn.Module, folder: Path) -> None:
    """Load the weights of the folder. Raises ValueError if there are none or some are missing."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no weights (*.safetensors, pytorch_model*.bin): copy it again, whole")
    lacking = set(model.state_dict())
    for file in files:
        tensors: dict[str, Tensor] = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        )
        lacking -= tensors.keys()
        try:
            model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit the model of {folder}/config.json: {error}") from error
    lacking -= _tied(model, lacking)
    computed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    lacking = {name for name in lacking if not any(re.search(pattern, name) for pattern in computed)}
    if lacking:
        raise ValueError(
            f"the weights in {folder} lack {join_first(lacking)}: they belong to another version of its code"
        )


def _no_head_mask(head_mask: None, layers: int, *_: Any) -> list[None]:
    """Inherited from transformers until version 5."""
    return [None] * layers


def _tied(model: nn.Module, names: set[str]) -> set[str]:
    """Those of `names` that are another name's tensor."""
    tensors = model.state_dict(keep_vars=True)
    others = {id(t) for name, t in tensors.items() if name not in names}
    return {name for name in names if id(tensors[name]) in others}


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a dotted name, if there is one."""
    found_module: Any = model
    for step in name.split("."):
        found_module = getattr(found_module, step, None)
    return found_module if isinstance(found_module, nn.Module) else None
