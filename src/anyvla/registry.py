"""Registries of the parts of a recipe.

A registry maps a name to `"module:Class"` and imports the module on first use, so listing is cheap and a missing extra
matters only to those who use it. Third parties add parts through an entry point of the group `anyvla.<registry>`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from anyvla_sim.names import suggest
from anyvla_sim.spec import BENCHMARKS


class Registry(Mapping[str, Any]):
    """A mapping of names to classes or functions, which are imported on first use."""

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets: dict[str, Any] = dict(builtin)
        self._entry_points_read = False

    def _all(self) -> dict[str, Any]:
        if not self._entry_points_read:
            for point in metadata.entry_points(group=f"anyvla.{self.kind}"):
                self._targets.setdefault(point.name, point.value)
            self._entry_points_read = True
        return self._targets

    def register(self, name: str, target: Any) -> None:
        """Add a class (or a `"module:Class"` string) under `name`. Raises ValueError if the name is taken."""
        if name in self._all():
            raise ValueError(f"{self.kind}: the name {name!r} is taken already; choose another")
        self._targets[name] = target

    def __getitem__(self, name: str) -> Any:
        self.target(name)
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            self._targets[name] = target
        return target

    def target(self, name: str) -> str:
        """Return `"module:Class"` without importing it. Raises KeyError with the nearest names."""
        targets = self._all()
        if name not in targets:
            raise KeyError(f"{self.kind} has no {name!r}: {suggest(name, targets)}")
        target = targets[name]
        return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())


backbones = Registry(
    "backbones",
    {
        "auto": "anyvla.backbones.auto:AutoBackbone",
        "efficientnet_smollm2": "anyvla.backbones.efficientnet_smollm2:EfficientNetSmolLM2",
        "film": "anyvla.backbones.film:FilmBackbone",
        "flamingo": "anyvla.backbones.flamingo.backbone:FlamingoBackbone",
        "moondream": "anyvla.backbones.remote_code.moondream:MoondreamBackbone",
        "nano": "anyvla.backbones.nano.backbone:NanoBackbone",
        "qwen_vl": "anyvla.backbones.remote_code.qwen_vl:QwenVLBackbone",
        "tiny": "anyvla.backbones.tiny:TinyBackbone",
        "uform": "anyvla.backbones.remote_code.uform:UFormBackbone",
    },
)
histories = Registry(
    "histories",
    {
        "none": "anyvla.histories.policy_head:SingleStep",
        "policy_head": "anyvla.histories.policy_head:SeparateSteps",
        "interleaved": "anyvla.histories.interleaved:Interleaved",
        "recurrent": "anyvla.histories.recurrent:Recurrent",
    },
)
fusers = Registry(
    "fusers",
    {
        "identity": "anyvla.fusers:IdentityFuser",
        "mlp": "anyvla.fusers:MLPFuser",
        "lstm": "anyvla.fusers:LSTMFuser",
        "gpt": "anyvla.fusers:GPTFuser",
        "mingru": "anyvla.fusers:MinGRUFuser",
    },
)
representations = Registry(
    "representations",
    {
        "continuous": "anyvla.representations.codec:Continuous",
        "bins": "anyvla.representations.bins:BinsCodec",
        "fast": "anyvla.representations.fast:FastCodec",
        "vq": "anyvla.representations.vq:VQCodec",
    },
)
decoders = Registry(
    "decoders",
    {
        "regression": "anyvla.decoders.regression:RegressionDecoder",
        "diffusion": "anyvla.decoders.diffusion:DiffusionDecoder",
        "flow": "anyvla.decoders.flow:FlowDecoder",
        "tokens": "anyvla.decoders.tokens:TokensDecoder",
        "lm_tokens": "anyvla.decoders.lm_tokens:LMTokensDecoder",
        "expert": "anyvla.decoders.expert:ExpertDecoder",
    },
)
formats = Registry(
    "formats",
    {
        "calvin": "anyvla.data.formats.calvin.dataset:CalvinDataset",
        "folder": "anyvla.data.formats.folder:FolderDataset",
        "hdf5": "anyvla.data.formats.hdf5.dataset:Hdf5Dataset",
        "lerobot": "anyvla.data.formats.lerobot.dataset:LeRobotDataset",
        "lerobot_v2": "anyvla.data.formats.lerobot.v2:LeRobotV2Dataset",
        "rlds": "anyvla.data.formats.rlds.dataset:RLDSDataset",
        "robomimic": "anyvla.data.formats.robomimic.dataset:RobomimicDataset",
    },
)
benchmarks = Registry("benchmarks", BENCHMARKS)
REGISTRIES = {r.kind: r for r in (backbones, histories, fusers, representations, decoders, formats, benchmarks)}
