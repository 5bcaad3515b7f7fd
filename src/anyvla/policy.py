"""The VLA: the one place that joins backbone, history, fuser and decoder.

Training calls `loss(batch)`; acting opens a session with `start(instruction)` and calls `act(observations, sessions)`.
Both read the same window through the same parts, so that step k of a session equals step k of a training window.
No name of a structure appears here: what differs lies in the parts.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla import weights
from anyvla.actions.normalize import Method, Normalizer, Statistics
from anyvla.backbones.families import able
from anyvla.config import STRICT, BackbonePart, ConfigError, DecoderPart, FuserPart, HistoryPart, build, to_dict
from anyvla.data.episode import Embodiment
from anyvla.heads.base import Loss
from anyvla.structures.history import Memory
from anyvla.types import Batch, Chunk, Observation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NormalizationConfig:
    """How vectors are scaled; grippers always by their declared range."""

    action: Method = "quantile"
    proprio: Method = "meanstd"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VLAConfig:
    """The section `model:` of a recipe."""

    backbone: BackbonePart
    history: HistoryPart
    fuser: FuserPart
    decoder: DecoderPart
    readouts: int = Field(default=1, ge=1)  # R, queries per step
    chunk: int = Field(default=10, ge=1)  # N, actions predicted at once
    execute: int = Field(
        default=1, ge=1
    )  # actions executed before predicting again; steps of a window are so far apart
    proprio: bool = True  # the head reads proprioception too
    normalization: NormalizationConfig = NormalizationConfig()

    def __post_init__(self) -> None:
        if self.execute > self.chunk:
            raise ValueError(f"execute {self.execute} exceeds chunk {self.chunk}: there is no such action to execute")
        window = self.history.build().window
        if window == 1 and self.fuser.target.fuses_time:
            raise ValueError(
                f"fuser {self.fuser.name!r} fuses a window of steps, but history {self.history.name!r} has one step; "
                "use fuser: identity, or history: policy_head"
            )


@dataclasses.dataclass
class Session:
    """The state of one running rollout inside a policy. Opaque: make it with `VLA.start`."""

    instruction: str
    memory: Memory
    proprio: deque[Tensor]  # normalised, as long as the memory


class VLA(nn.Module):
    """A vision-language-action model: a policy for one embodiment."""

    def __init__(
        self, config: VLAConfig, embodiment: Embodiment, statistics: Statistics, assets: Path | None = None
    ) -> None:
        """Build all parts. `assets`: where `Backbone.save_assets` wrote, if weights will be loaded afterwards."""
        super().__init__()
        self.config, self.embodiment, self.statistics = config, embodiment, statistics
        if not embodiment.cameras:
            raise ConfigError(
                f"embodiment {embodiment.name!r} has no camera; a vision-language-action model needs one at least: "
                "use data with images, and name their cameras in the embodiment"
            )
        self.history = config.history.build()
        known = config.backbone.target.capabilities_of(config.backbone.config, assets)
        if known is not None:  # refused before weights are loaded
            _refuse_what_it_lacks(config, self.history.needs, known)
        self.backbone = config.backbone.build(assets)
        _refuse_what_it_lacks(config, self.history.needs, self.backbone.capabilities)
        self.queries = nn.Parameter(torch.randn(config.readouts, self.backbone.width) * 0.02)
        features = config.readouts * self.backbone.width + (embodiment.proprio.size if config.proprio else 0)
        self.fuser = config.fuser.build(features, self.history.window)
        self.decoder = config.decoder.build(self.fuser.width, config.chunk, embodiment.action)
        scaling = config.normalization
        self.action = Normalizer(embodiment.action, statistics.action, scaling.action, what="action", clip=True)
        self.state = Normalizer(embodiment.proprio, statistics.proprio, scaling.proprio, what="proprio", clip=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.queries.device

    def loss(self, batch: Batch) -> Loss:
        """One number to minimise, over every valid step of every window."""
        readouts = self.history.windows(
            self.backbone, self.queries, batch.images, batch.instructions, batch.step_mask
        )  # (B, W, R, D)
        context = self._context(readouts, self.state.normalise(batch.proprio))
        return self.decoder.loss(context, self.action.normalise(batch.actions), batch.action_mask)

    def _context(self, readouts: Float[Tensor, "B W R D"], proprio: Float[Tensor, "B W P"]) -> Float[Tensor, "B W C"]:
        features = readouts.flatten(2)  # (B, W, R*D)
        if self.config.proprio:
            features = torch.cat([features, proprio.to(features.dtype)], dim=-1)
        return self.fuser(features)

    def start(self, instruction: str) -> Session:
        """Open a session: one rollout that is told `instruction`. Raises ValueError if it is empty."""
        if not instruction.strip():
            raise ValueError("the instruction is empty; say what to do, as in start('open the drawer')")
        return Session(instruction, self.history.start(), deque(maxlen=self.history.window))

    @torch.inference_mode()
    def act(
        self,
        observations: Sequence[Observation],
        sessions: Sequence[Session],
        generator: torch.Generator | None = None,
    ) -> list[Chunk]:
        """The next chunk of each session, in robot units, from what each robot shows now.

        Call it once every `config.execute` actions, as in training. Raises ValueError for an observation that does
        not fit the embodiment (a camera missing, wrong sizes or types).
        """
        if len(observations) != len(sessions) or not sessions:
            raise ValueError(f"one observation per session: got {len(observations)} and {len(sessions)}")
        images = np.stack([self._views(o) for o in observations])  # (B, V, H, W, 3)
        states = self.state.normalise(torch.from_numpy(np.stack([o.proprio for o in observations])).to(self.device))
        readouts, mask = self.history.step(
            self.backbone,
            self.queries,
            torch.from_numpy(images).to(self.device),
            [s.instruction for s in sessions],
            [s.memory for s in sessions],
        )
        proprio = states.new_zeros(*mask.shape, states.shape[-1])
        for row, (session, now) in enumerate(zip(sessions, states, strict=True)):
            session.proprio.append(now)
            proprio[row, : len(session.proprio)] = torch.stack(tuple(session.proprio))
        context = self._context(readouts, proprio)  # (B, W, C)
        newest = context[torch.arange(len(sessions), device=self.device), mask.sum(1) - 1]  # (B, C)
        actions = self.action.denormalise(self.decoder.sample(newest, generator)).cpu().numpy()
        return [Chunk(a) for a in actions]

    def _views(self, observation: Observation) -> np.ndarray:
        cameras = self.embodiment.cameras
        missing = [c for c in cameras if c not in observation.images]
        if missing:
            raise ValueError(
                f"the observation lacks camera {', '.join(map(repr, missing))}; this policy was trained with "
                f"{', '.join(cameras)} and the observation has {', '.join(observation.images) or 'none'}"
            )
        if observation.proprio.shape != (self.embodiment.proprio.size,):
            raise ValueError(
                f"proprio has shape {observation.proprio.shape}, this policy was trained with "
                f"({self.embodiment.proprio.size},): {[g.name for g in self.embodiment.proprio.groups]}"
            )
        views = [_image(c, observation.images[c]) for c in cameras]
        if len({view.shape for view in views}) > 1:
            shapes = {c: view.shape for c, view in zip(cameras, views, strict=True)}
            raise ValueError(f"the images of all cameras must have one size, got {shapes}")
        return np.stack(views)

    def save(self, folder: Path, recipe: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint that `VLA.load` reads with nothing else: config, weights, statistics, backbone assets.

        `recipe` is the document to keep as `config.yaml`; its section `model` must be this model's configuration.
        """
        folder.mkdir(parents=True, exist_ok=True)
        document = dict(recipe or {}) | {"model": to_dict(self.config)}
        (folder / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120))
        (folder / "statistics.json").write_text(self.statistics.to_json())
        (folder / "embodiment.json").write_text(json.dumps(to_dict(self.embodiment), indent=1))
        self.backbone.save_assets(folder / "backbone")
        weights.save(self, folder / "model.safetensors")

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu", *, trust_remote_code: bool = False) -> VLA:
        """Read a checkpoint folder, or one of that name on the hub. Raises ValueError if it is none.

        A checkpoint whose backbone brings its own code is refused without `trust_remote_code`: whoever trained it
        trusted that code, which says nothing about who loads it.
        """
        folder = Path(path)
        if not folder.is_dir():
            folder = _download(str(path))
        config = folder / "config.yaml"
        if not config.is_file():
            raise ValueError(f"{folder} is no checkpoint of anyvla: it has no config.yaml")
        document = yaml.safe_load(config.read_text())
        model = build(VLAConfig, document["model"], where=f"{config}, model")
        if getattr(model.backbone.config, "trust_remote_code", False) and not trust_remote_code:
            raise ValueError(
                f"{folder} runs code of its own when loaded, with all your rights (backbone {model.backbone.name!r}): "
                f"read the .py files in {folder / 'backbone'}, then use VLA.load(path, trust_remote_code=True) "
                "or anyvla eval --trust-remote-code"
            )
        embodiment = build(Embodiment, json.loads((folder / "embodiment.json").read_text()), where="embodiment.json")
        vla = cls(model, embodiment, Statistics.load(folder / "statistics.json"), assets=folder / "backbone")
        weights.load(vla, folder / "model.safetensors")
        return vla.to(device).eval()


def _image(camera: str, image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The image of a camera. Raises ValueError that says what is wrong with it and the line that mends it."""
    if not isinstance(image, np.ndarray):
        got, mend = type(image).__name__, "np.asarray(image)"
    elif image.ndim == 3 and image.shape[-1] != 3 and image.shape[0] in (1, 3, 4):
        got, mend = f"{image.dtype} {image.shape}, channels first", "image.transpose(1, 2, 0)"
    elif image.ndim == 3 and image.shape[-1] == 4:
        got, mend = f"{image.dtype} {image.shape}, with an alpha channel", "image[..., :3]"
    elif image.ndim != 3 or image.shape[-1] != 3:
        got, mend = f"{image.dtype} {image.shape}", "one RGB frame; a grey one as np.stack([image] * 3, -1)"
    elif image.dtype != np.uint8:
        unit = image.size and np.issubdtype(image.dtype, np.floating) and image.max() <= 1
        scaled = "(image * 255)" if unit else "image"
        got, mend = f"{image.dtype} {image.shape}", f"{scaled}.round().astype(np.uint8)"
    else:
        return image
    raise ValueError(f"camera {camera!r}: expected a uint8 array (H, W, 3), RGB, 0..255, got {got}: give {mend}")


def _refuse_what_it_lacks(config: VLAConfig, needs: frozenset[str], has: frozenset[str]) -> None:
    lacking = sorted(needs - has)
    if not lacking:
        return
    part = config.backbone
    model = getattr(part.config, "path", None)
    raise ConfigError(
        f"history {config.history.name!r} needs a backbone that can {', '.join(lacking)}; this one ({part.name}"
        f"{f', {model}' if model else ''}) can {', '.join(sorted(has)) or 'read one step only'}. "
        f"Use history: policy_head, or a backbone that can: {', '.join(able(needs))}"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no checkpoint at {name!r}: it is no folder here, and the hub gave none ({type(error).__name__})"
        ) from None
