"""The checkpoint that a training starts from: checked, described, and read tensor by tensor.

`Origin` reads checkpoints of anyvla. A released policy of another package becomes one as soon as something describes
its tensors under the names and with the meanings of a policy of ours, and reads them: a table for each family.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyvla.backbones.adapting.options import Lora
from anyvla.checkpoint.files import (
    CONFIG,
    WEIGHTS,
    check_checkpoint,
    checkpoint_of,
    download_checkpoint,
    read_document,
    read_robots,
)
from anyvla.config import ConfigError, build
from anyvla.files import tensor_files, weights
from anyvla.policy import VLA, VLAConfig
from anyvla.registry import suggest
from anyvla.robot.shared_layout import Robot
from anyvla.training.warm_start.description import Description, describe

KEY = "training.init_from"


@dataclass(frozen=True)
class Origin:
    """A checkpoint to start from."""

    given: str  # as the recipe names it
    folder: Path
    model: VLAConfig
    robots: tuple[Robot, ...]

    def describe(self) -> tuple[Description, dict[str, str]]:
        """Return the description of the policy, and the name of each tensor in the file of weights.

        The policy is built without its weights for this, and removed again. Raises ValueError for a damaged checkpoint.
        """
        with torch.random.fork_rng(devices=[]):  # the seed alone decides new weights
            vla = VLA.build_unloaded(self.folder, self.model, self.robots)
        stored = weights.find_stored(vla, self.folder / WEIGHTS)
        found = describe(vla)
        first = {alias: tensor.names[0] for tensor in found.tensors.values() for alias in tensor.names}
        return found, {first[name]: name_there for name_there, name in stored.items()}

    @contextlib.contextmanager
    def opened(self, stored: dict[str, str], scale: float | None) -> Iterator[Callable[[str], Tensor]]:
        """Yield a function that reads a tensor. With `scale`, adapters of LoRA are merged into the layers' weights."""
        with tensor_files.opened(self.folder / WEIGHTS) as file:

            def read(name: str) -> Tensor:
                tensor: Tensor = file.get_tensor(stored[name])
                at, layer, kind = name.rpartition(".base_layer.")
                a, b = (f"{at}.lora_{side}.default.weight" for side in "AB")
                if scale is None or not layer or kind != "weight" or a not in stored:
                    return tensor
                low, high = (file.get_tensor(stored[n]).float() for n in (a, b))
                return tensor.float() + scale * (high @ low)

            yield read


def open_origin(given: str) -> Origin:
    """Return the checkpoint at a path or of the hub: a run folder, or any checkpoint folder.

    Raises ConfigError if there is none, it is not complete, of another package, or of a later version of anyvla.
    """
    path = Path(given).expanduser()
    try:
        if path.is_dir():
            folder = checkpoint_of(path)
        elif path.is_absolute() or given.startswith((".", "~")) or (path.parent.is_dir() and path.parent != Path()):
            near = sorted(str(p) for p in path.parent.glob("*/")) if path.parent.is_dir() else []
            raise ConfigError(f"there is no folder {path}" + (f": {suggest(str(path), near)}" if near else ""))
        else:
            folder = download_checkpoint(given)
        if not (folder / CONFIG).exists() and (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} is no checkpoint of anyvla: it has a config.json, as models of other packages do. A "
                "vision-language model is named under model.backbone.path"
            )
        check_checkpoint(folder)
        document = read_document(folder)
        model = build(VLAConfig, document["model"], where=f"{folder / CONFIG}, model")
        return Origin(given, folder, model, tuple(read_robots(folder)))
    except ValueError as error:
        raise ConfigError(f"{KEY}: {error}") from None


def check_usable(origin: Origin, new: VLAConfig) -> None:
    """Raise ConfigError for a policy that cannot be read into the new one.

    Its backbone brings code that the recipe does not trust, or keeps quantized weights, which cannot be restored, and
    the new one keeps them in another way.
    """
    old = origin.model
    if _trusted(old) and not _trusted(new):
        raise ConfigError(
            f"{KEY}: {origin.folder} runs its own code when loaded, with all your rights: read the .py files in "
            f"{origin.folder / 'backbone'}, then give the same backbone with trust_remote_code: true"
        )
    was, now = _quantize(old), _quantize(new)
    if was is not None and (was != now or not _keeps_adapters(old, new)):
        raise ConfigError(
            f"{KEY}: its language model is kept in {was}, from which the weights cannot be restored: give "
            f"model.backbone the same quantize and lora as the checkpoint ({was}, {_lora(old)})"
        )


def find_merged_adapters(old: VLAConfig, new: VLAConfig, policy: Description) -> tuple[dict[str, str], float | None]:
    """Return the adapters of LoRA to merge, with the reason, and their scale; none if the new policy has the same."""
    lora = _lora(old)
    if lora is None or _keeps_adapters(old, new):
        return {}, None
    reason = "merged into the weight that it adapts"
    return {name: reason for name in policy.tensors if ".lora_" in name}, lora.alpha / lora.rank


def _keeps_adapters(old: VLAConfig, new: VLAConfig) -> bool:
    was, now = (None if of is None else dataclasses.replace(of, dropout=0) for of in (_lora(old), _lora(new)))
    return was is None or was == now


def _trusted(model: VLAConfig) -> bool:
    return getattr(model.backbone.config, "trust_remote_code", False)


def _lora(model: VLAConfig) -> Lora | None:
    return getattr(model.backbone.config, "lora", None)


def _quantize(model: VLAConfig) -> str | None:
    return getattr(model.backbone.config, "quantize", None)
