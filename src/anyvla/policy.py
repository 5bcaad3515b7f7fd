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
from typing import Any, Literal

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla import weights
from anyvla.actions.codec import Codec, Continuous, held
from anyvla.actions.normalize import Method, Normalizer, Statistics
from anyvla.backbones.families import able
from anyvla.config import (
    STRICT,
    BackbonePart,
    ConfigError,
    DecoderPart,
    FuserPart,
    HistoryPart,
    Part,
    RepresentationPart,
    build,
    to_dict,
)
from anyvla.data.episode import Embodiment
from anyvla.heads.base import Context, Loss, Setting
from anyvla.structures.history import History, Memory, Reading, Steps
from anyvla.structures.validity import nearest_valid, why_not
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
    representation: RepresentationPart = Part("representations", "continuous", Continuous.Config())
    readouts: int = Field(default=1, ge=1)  # R, queries per step
    chunk: int = Field(default=10, ge=1)  # N, actions predicted at once
    execute: int = Field(
        default=1, ge=1
    )  # actions executed before predicting again; steps of a window are so far apart
    proprio: Literal["head", "token", "none"] = "head"  # who reads proprioception: the fuser, or the backbone
    normalization: NormalizationConfig = NormalizationConfig()

    def __post_init__(self) -> None:
        if self.execute > self.chunk:
            raise ValueError(f"execute {self.execute} exceeds chunk {self.chunk}: there is no such action to execute")
        names = (self.history.name, self.fuser.name, self.decoder.name, self.representation.name)
        reason = why_not(*names)
        if reason is not None:
            raise ValueError(f"{reason}; the nearest that is possible: {nearest_valid(*names)}")
        if self.representation.target.kind == "tokens" and self.normalization.action == "meanstd":
            raise ValueError(
                f"representation {self.representation.name} makes tokens of actions in [-1, 1], and "
                "normalization.action meanstd puts a third of them outside: use quantile or minmax"
            )


@dataclasses.dataclass
class Session:
    """The state of one running rollout inside a policy. Opaque: make it with `VLA.start`."""

    instruction: str
    generator: torch.Generator  # of its chunks' noise, on the CPU
    memory: Memory
    proprio: deque[Tensor]  # normalised, of the last steps, at most a window of them
    past: Float[Tensor, "T D"] | None  # its last chunk as the backbone may see it, zeros at first; None: it may not


class VLA(nn.Module):
    """A vision-language-action model: a policy for one embodiment."""

    def __init__(
        self,
        config: VLAConfig,
        embodiment: Embodiment,
        statistics: Statistics,
        assets: Path | None = None,
        codec: Path | None = None,
    ) -> None:
        """Build all parts. `assets`: where `Backbone.save_assets` wrote, if weights will be loaded afterwards.

        `codec`: the folder of a fitted codec. Raises CodecError if the representation needs it and it is not there.
        """
        super().__init__()
        self.config, self.embodiment, self.statistics = config, embodiment, statistics
        if not embodiment.cameras:
            raise ConfigError(
                f"embodiment {embodiment.name!r} has no camera; a vision-language-action model needs one at least: "
                "use data with images, and name their cameras in the embodiment"
            )
        self.history: History = config.history.build()
        self.codec = _codec(config, embodiment, codec)
        needs = config.decoder.target.needs_with(config.representation.target.kind)
        known = config.backbone.target.capabilities_of(config.backbone.config, assets)
        if known is not None:  # refused before weights are loaded
            _refuse_what_it_lacks(config, self.history, needs, known)
        self.backbone = config.backbone.build(assets)
        _refuse_what_it_lacks(config, self.history, needs, self.backbone.capabilities)
        self.remembers = not needs.isdisjoint({"continue", "cache"})
        width, proprio = self.backbone.width, embodiment.proprio.size
        self.queries = nn.Parameter(torch.randn(config.readouts, width) * 0.02)
        self.proprio = nn.Linear(proprio, width) if config.proprio == "token" else None
        features = config.readouts * width + (proprio if config.proprio == "head" else 0)
        self.fuser = config.fuser.build(features, self.history.window)
        self.decoder = config.decoder.build(
            Setting(self.fuser.width, config.chunk, embodiment.action, self.codec, self.backbone)
        )
        scaling = config.normalization
        self.action = Normalizer(embodiment.action, statistics.action, scaling.action, what="action", clip=True)
        self.state = Normalizer(embodiment.proprio, statistics.proprio, scaling.proprio, what="proprio", clip=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.queries.device

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """One number to minimise, over every valid step of every window.

        `generator` (CPU): of the noise and the times of decoders that draw some; None: PyTorch's own.
        """
        valid = batch.step_mask
        actions = self.action.normalise(batch.actions)[valid]  # (M, N, A)
        return self.decoder.loss(self.read(batch), actions, batch.action_mask[valid], generator)

    def read(self, batch: Batch) -> Context:
        """What the decoder reads of each of the M valid steps of whole windows, row by row."""
        valid = batch.step_mask
        told = [text for text, row in zip(batch.instructions, valid, strict=True) for _ in range(int(row.sum()))]
        state = self.state.normalise(batch.proprio)  # (B, W, P)
        chunks = held(self.action.normalise(batch.actions)[valid], batch.action_mask[valid])
        past = self.decoder.past(chunks) if self.history.sees_past else None
        if past is not None:
            past = past.roll(1, 0)  # the chunk of the step before; the first step of a window has none
        steps = self._steps(batch.images[valid], told, state[valid], past)
        reading = self.history.windows(self.backbone, steps, valid, remember=self.remembers)
        return Context(self._fuse(reading, state)[valid], reading.continuation)

    def _steps(
        self,
        images: UInt8[Tensor, "M V H W 3"],
        instructions: Sequence[str],
        state: Float[Tensor, "M P"],
        past: Float[Tensor, "M T D"] | None,
    ) -> Steps:
        """Steps as the backbone reads them."""
        written = [] if past is None else [past]
        if self.proprio is not None:
            written.append(self.proprio(state)[:, None])
        written.append(self.queries.expand(len(state), -1, -1))
        before = 0 if past is None else past.shape[1]
        return Steps(images, instructions, torch.cat(written, 1), len(self.queries), before)

    def _fuse(self, reading: Reading, state: Float[Tensor, "B W P"]) -> Float[Tensor, "B W C"]:
        features = reading.readouts.flatten(2)  # (B, W, R*D)
        if self.config.proprio == "head":
            features = torch.cat([features, state.to(features.dtype)], dim=-1)
        return self.fuser(features)

    def start(self, instruction: str, seed: int = 0) -> Session:
        """Open a session: one rollout that is told `instruction`. Raises ValueError if it is empty.

        `seed`: of the noise of decoders that draw some. A session's chunks do not depend on what acts beside it.
        """
        if not instruction.strip():
            raise ValueError("the instruction is empty; say what to do, as in start('open the drawer')")
        generator = torch.Generator().manual_seed(seed)
        past = None
        if self.history.sees_past:
            past = self.decoder.past(torch.zeros(1, self.config.chunk, self.embodiment.action.size, device=self.device))
        return Session(
            instruction,
            generator,
            self.history.start(),
            deque(maxlen=self.history.window),
            None if past is None else torch.zeros_like(past[0]),
        )

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> list[Chunk]:
        """The next chunk of each session, in robot units, from what each robot shows now.

        Call it once every `config.execute` actions, as in training. Raises ValueError for an observation that does
        not fit the embodiment (a camera missing, wrong sizes or types).
        """
        if len(observations) != len(sessions) or not sessions:
            raise ValueError(f"one observation per session: got {len(observations)} and {len(sessions)}")
        images = np.stack([self._views(o) for o in observations])  # (B, V, H, W, 3)
        states = self.state.normalise(torch.from_numpy(np.stack([o.proprio for o in observations])).to(self.device))
        pasts = [s.past for s in sessions if s.past is not None]
        steps = self._steps(
            torch.from_numpy(images).to(self.device),
            [s.instruction for s in sessions],
            states,
            torch.stack(pasts) if pasts else None,
        )
        reading = self.history.step(self.backbone, steps, [s.memory for s in sessions], remember=self.remembers)
        lengths = reading.mask.sum(1)  # (B,), the windows' steps
        proprio = states.new_zeros(*reading.mask.shape, states.shape[-1])
        for row, (session, now, length) in enumerate(zip(sessions, states, lengths.tolist(), strict=True)):
            session.proprio.append(now)
            proprio[row, :length] = torch.stack(tuple(session.proprio)[-length:])
        context = self._fuse(reading, proprio)  # (B, W, C)
        newest = context[torch.arange(len(sessions), device=self.device), lengths - 1]  # (B, C)
        chunks = self.decoder.sample(Context(newest, reading.continuation), [s.generator for s in sessions])
        if self.history.sees_past and (past := self.decoder.past(chunks)) is not None:
            for session, own in zip(sessions, past, strict=True):
                session.past = own
        return [Chunk(a) for a in self.action.denormalise(chunks).cpu().numpy()]

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
        if self.codec is not None:
            self.codec.save(folder / "codec")
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
        statistics = Statistics.load(folder / "statistics.json")
        vla = cls(model, embodiment, statistics, assets=folder / "backbone", codec=folder / "codec")
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


def _codec(config: VLAConfig, embodiment: Embodiment, folder: Path | None) -> Codec | None:
    """The representation's codec. Raises CodecError if it should have been fitted."""
    if config.representation.target.kind == "continuous":
        return None
    assets = folder if folder is not None and folder.is_dir() else None
    codec: Codec = config.representation.build(config.chunk, embodiment.action, assets)
    codec.check_fitted()
    return codec


def _refuse_what_it_lacks(config: VLAConfig, history: History, decoder: frozenset[str], has: frozenset[str]) -> None:
    """Raises ConfigError if the backbone cannot what the history or the decoder needs."""
    for what, needs, instead in (
        (f"history {config.history.name!r}", history.needs, history.instead),
        (f"decoder {config.decoder.name!r}", decoder, "a decoder that reads the context alone, as regression"),
    ):
        lacking = sorted(needs - has)
        if lacking:
            part = config.backbone
            model = getattr(part.config, "path", None)
            raise ConfigError(
                f"{what} needs a backbone that can {', '.join(lacking)}; this one ({part.name}"
                f"{f', {model}' if model else ''}) can {', '.join(sorted(has)) or 'read one step only'}. "
                f"Use {instead}, or a backbone that can: {', '.join(able(needs))}"
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
