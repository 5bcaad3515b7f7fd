"""The VLA: the one place that joins backbone, history, fuser and decoder.

Training calls `loss(batch)`; acting opens a session with `start(instruction)` and calls `act(observations, sessions)`.
Both read the same window through the same parts, so that step k of a session equals step k of a training window.
No name of a structure appears here: what differs lies in the parts.
"""

from __future__ import annotations

import json
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla.backbones.families.results import backbones_with
from anyvla.checkpoint.allocation import limit_allocations
from anyvla.checkpoint.files import CONFIG, ROBOTS, STATISTICS, WEIGHTS, check_checkpoint, read_document, read_robots
from anyvla.combinations import nearest_valid, why_not
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
from anyvla.decoders.base import DecoderInput, DecoderSpec, Loss
from anyvla.files import documents, weights
from anyvla.histories.base import History, StepInputs, WindowReadouts
from anyvla.limits import STEPS
from anyvla.migrations import RECIPE
from anyvla.observing import Implausible, Observer
from anyvla.representations.codec import Codec, CodecError, Continuous
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Method, Normalizer, StatisticsError, write_statistics
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.views import ViewConfig, center_crop_views
from anyvla.session import Session, check_call, check_length, check_seed, copy_sessions
from anyvla.text import check_instruction
from anyvla.types import Batch, Chunk, ChunkError, Observation

# While a checkpoint's model is built it may make so many bytes and tensors for each of the file of weights (4-bit
# weights are built in 32 bits, and buffers and passing tensors count too), and so many more.
ALLOCATED, BYTES_ANYWAY, TENSORS_ANYWAY = 32, 1 << 29, 10_000


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
    readouts: int = Field(default=1, ge=1, le=STEPS)  # R, queries per step
    chunk: int = Field(default=10, ge=1, le=STEPS)  # N, actions predicted at once
    # actions executed before predicting again; steps of a window are so far apart
    execute: int = Field(default=1, ge=1, le=STEPS)
    proprio: Literal["fuser", "token", "none"] = "fuser"  # who reads proprioception: the fuser, or the backbone
    normalization: NormalizationConfig = NormalizationConfig()
    view: ViewConfig = ViewConfig()
    implausible: Implausible = "error"  # acting on proprio far outside of the training data: error, or warn

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


class VLA(nn.Module):
    """A vision-language-action model: a policy for one robot, or for several, each with statistics of its own."""

    def __init__(
        self,
        config: VLAConfig,
        robots: Sequence[Robot],
        assets: Path | None = None,
        codec: Path | None = None,
    ) -> None:
        """Build all parts. `assets`: where `Backbone.save_assets` wrote, if weights will be loaded afterwards.

        `codec`: the folder of a fitted codec. Raises CodecError if the representation needs it and it is not there,
        ValueError for robots that cannot share one layout.
        """
        super().__init__()
        self.config, self.robots = config, tuple(robots)
        self.layout = SharedLayout([r.embodiment for r in robots])
        self.embodiment = embodiment = self.layout.embodiment  # all robots in one
        if not embodiment.cameras:
            raise ConfigError(
                f"embodiment {embodiment.name!r} has no camera; a vision-language-action model needs one at least: "
                "use data with images, and name their cameras in the embodiment"
            )
        self.history: History = config.history.build()
        self.codec = _codec(config, embodiment, codec)
        needs = config.decoder.target.needs_with(config.representation.target.kind)
        known = config.backbone.target.find_capabilities(config.backbone.config, assets)
        if known is not None:  # refused before weights are loaded
            _refuse_what_it_lacks(config, self.history, needs, known)
        self.backbone = config.backbone.build(assets)
        _refuse_what_it_lacks(config, self.history, needs, self.backbone.capabilities)
        self.keeps_cache = not needs.isdisjoint({"continue", "cache"})
        width, proprio = self.backbone.width, embodiment.proprio.size
        self.queries = nn.Parameter(torch.randn(config.readouts, width) * 0.02)
        self.proprio_embedding = nn.Linear(proprio, width) if config.proprio == "token" else None
        features = config.readouts * width + (proprio if config.proprio == "fuser" else 0)
        self.fuser = config.fuser.build(features, self.history.window)
        self.decoder = config.decoder.build(
            DecoderSpec(self.fuser.width, config.chunk, embodiment.action, self.codec, self.backbone)
        )
        scaling = config.normalization
        actions = [(r.embodiment.action, r.statistics.action) for r in robots]
        states = [(r.embodiment.proprio, r.statistics.proprio) for r in robots]
        self.action_normalizer = Normalizer(embodiment.action, actions, scaling.action, what="action", clip=True)
        self.proprio_normalizer = Normalizer(embodiment.proprio, states, scaling.proprio, what="proprio", clip=False)
        self.implausible: Implausible = config.implausible
        self._observer = Observer(self.robots, self.layout, config.view)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.queries.device

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """One number to minimize, over every valid step of every window.

        `generator` (CPU): of the noise and the times of decoders that draw some; None: PyTorch's own.
        """
        valid = batch.step_mask
        actions = self.action_normalizer.normalize(batch.actions, batch.robots)[valid]  # (M, N, A)
        return self.decoder.loss(self.read(batch), actions, batch.action_mask[valid], generator)

    def elements(self, batch: Batch) -> int:
        """How many action elements of a batch are learned: what its loss is a mean over."""
        dims = self.action_normalizer.learned[batch.robots.to(self.device)].sum(1)  # (B,)
        return int((batch.action_mask.sum((1, 2)).to(self.device) * dims).sum())

    def read(self, batch: Batch) -> DecoderInput:
        """What the decoder reads of each of the M valid steps of whole windows, row by row."""
        valid = batch.step_mask
        told = [text for text, row in zip(batch.instructions, valid, strict=True) for _ in range(int(row.sum()))]
        state = self.proprio_normalizer.normalize(batch.proprio, batch.robots)  # (B, W, P)
        chunks = pad_with_last_action(
            self.action_normalizer.normalize(batch.actions, batch.robots)[valid], batch.action_mask[valid]
        )
        past = self.decoder.embed_chunks(chunks) if self.history.sees_past else None
        if past is not None:
            past = past.roll(1, 0)  # the chunk of the step before; the first step of a window has none
        steps = self._steps(batch.images[valid], told, state[valid], past)
        reading = self.history.read_windows(self.backbone, steps, valid, keep_cache=self.keeps_cache)
        robots = batch.robots[:, None].expand_as(valid)[valid]  # (M,)
        return DecoderInput(self._fuse(reading, state)[valid], reading.continuation, self._dims(robots))

    def _dims(self, robots: Int64[Tensor, "M"]) -> Bool[Tensor, "M A"] | None:
        return None if self.action_normalizer.learns_all else self.action_normalizer.learned[robots]

    def _steps(
        self,
        images: UInt8[Tensor, "M V H W 3"],
        instructions: Sequence[str],
        state: Float[Tensor, "M P"],
        past: Float[Tensor, "M T D"] | None,
    ) -> StepInputs:
        """Steps as the backbone reads them."""
        written = [] if past is None else [past]
        if self.proprio_embedding is not None:
            written.append(self.proprio_embedding(state)[:, None])
        written.append(self.queries.expand(len(state), -1, -1))
        before = 0 if past is None else past.shape[1]
        return StepInputs(images, instructions, torch.cat(written, 1), len(self.queries), before)

    def _fuse(self, reading: WindowReadouts, state: Float[Tensor, "B W P"]) -> Float[Tensor, "B W C"]:
        features = reading.readouts.flatten(2)  # (B, W, R*D)
        if self.config.proprio == "fuser":
            features = torch.cat([features, state.to(features.dtype)], dim=-1)
        return self.fuser(features)

    def start(
        self, instruction: str, seed: int = 0, robot: str | None = None, *, may_be_empty: bool = False
    ) -> Session:
        """Open a session: one rollout that is told `instruction`.

        `seed`: of the noise of decoders that draw some. A session's chunks do not depend on what acts beside it.
        `robot`: the name of the embodiment that acts; not needed where there is one. Raises ValueError for an
        instruction that `act` could not read: no text, empty (unless that is what is studied: `may_be_empty`), or too
        long for the backbone; and for a robot that the policy was not trained for.
        """
        text = check_instruction(instruction, may_be_empty=may_be_empty)
        index = self._robot(robot)
        generator = torch.Generator().manual_seed(check_seed(seed))
        past = None
        if self.history.sees_past:
            past = self.decoder.embed_chunks(
                torch.zeros(1, self.config.chunk, self.embodiment.action.size, device=self.device)
            )
        written = len(self.queries) + (self.proprio_embedding is not None) + (0 if past is None else past.shape[1])
        check_length(
            text, self.backbone, self.history, len(self.embodiment.cameras), written, self.decoder.suffix_length
        )
        return Session(
            weakref.ref(self),
            text,
            index,
            generator,
            self.history.start(),
            deque(maxlen=self.history.window),
            None if past is None else torch.zeros_like(past[0]),
        )

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> list[Chunk]:
        """The next chunk of each session, in robot units, from what each robot shows now.

        Call it once every `config.execute` actions, as in training. Raises ValueError for an observation that does
        not fit the embodiment (a camera missing, wrong sizes or types, numbers that are not finite or, see
        `VLAConfig.implausible`, far from those of the training data), for a session twice or of another policy, and
        ChunkError for a chunk that is not finite. Sessions of a call that raises are as they were before.
        """
        check_call(observations, sessions, self)
        given, sessions = sessions, copy_sessions(sessions, self.history)
        chosen = [s.robot for s in sessions]
        robots = torch.tensor(chosen, device=self.device)
        images = torch.from_numpy(self._observer.images(observations, chosen)).to(self.device)  # (B, V, H, W, 3)
        vectors = torch.from_numpy(self._observer.states(observations, chosen)).to(self.device)
        if self.config.proprio != "none":
            self._observer.judge(observations, sessions, self.implausible)
        states = self.proprio_normalizer.normalize(vectors, robots)
        pasts = [s.past for s in sessions if s.past is not None]
        steps = self._steps(
            center_crop_views(images, self.config.view.crop),
            [s.instruction for s in sessions],
            states,
            torch.stack(pasts) if pasts else None,
        )
        reading = self.history.read_step(
            self.backbone, steps, [s.history_state for s in sessions], keep_cache=self.keeps_cache
        )
        lengths = reading.mask.sum(1)  # (B,), the windows' steps
        proprio = states.new_zeros(*reading.mask.shape, states.shape[-1])
        for row, (session, now, length) in enumerate(zip(sessions, states, lengths.tolist(), strict=True)):
            session.proprio.append(now)
            proprio[row, :length] = torch.stack(tuple(session.proprio)[-length:])
        context = self._fuse(reading, proprio)  # (B, W, C)
        newest = context[torch.arange(len(sessions), device=self.device), lengths - 1]  # (B, C)
        read = DecoderInput(newest, reading.continuation, self._dims(robots))
        chunks = self.decoder.sample(read, [s.generator for s in sessions])
        if self.history.sees_past and (past := self.decoder.embed_chunks(chunks)) is not None:
            for session, own in zip(sessions, past, strict=True):
                session.past = own
        actions = self.action_normalizer.denormalize(chunks, robots)
        # Clipping hides an infinite chunk, and choosing tokens a context that is not finite.
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in (newest, chunks, actions)]).all(0)
        if not finite.all():
            raise ChunkError(
                f"the policy predicted a chunk that is not finite (session {(~finite).nonzero().flatten().tolist()} of "
                "this call), and nothing is sent: its weights or the precision that it computes in are at fault"
            )
        for session, changed in zip(given, sessions, strict=True):
            session.take(changed)
        names, rows = self.layout.names, actions.cpu().numpy()
        return [Chunk(a[:, self.layout.robots[names[i]].action]) for a, i in zip(rows, chosen, strict=True)]

    def _robot(self, name: str | None) -> int:
        names = self.layout.names
        if name is None and len(names) == 1:
            return 0
        if name not in names:
            asked = "say which robot acts" if name is None else f"there is no robot {name!r}"
            raise ValueError(
                f"{asked}: this policy was trained for {', '.join(names)}, as in start(text, robot={names[0]!r})"
            )
        return names.index(name)

    def save(self, folder: Path, recipe: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint that `VLA.load` reads with nothing else: config, weights, statistics, backbone assets.

        `recipe` is the document to keep as `config.yaml`; its section `model` must be this model's configuration.
        """
        folder.mkdir(parents=True, exist_ok=True)
        document = {"schema": RECIPE} | dict(recipe or {}) | {"model": to_dict(self.config)}
        (folder / CONFIG).write_text(documents.to_yaml(document), encoding="utf-8")
        robots = {r.embodiment.name: r for r in self.robots}
        (folder / STATISTICS).write_text(
            write_statistics({n: r.statistics for n, r in robots.items()}), encoding="utf-8"
        )
        (folder / ROBOTS).write_text(
            json.dumps([to_dict(r.embodiment) for r in self.robots], indent=1), encoding="utf-8"
        )
        self.backbone.save_assets(folder / "backbone")
        if self.codec is not None:
            self.codec.save(folder / "codec")
        weights.save(self, folder / WEIGHTS)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu", *, trust_remote_code: bool = False) -> VLA:
        """Read a checkpoint folder, or one of that name on the hub. Raises ValueError if it is none.

        A checkpoint whose backbone brings its own code is refused without `trust_remote_code`: whoever trained it
        trusted that code, which says nothing about who loads it.
        """
        folder = Path(path)
        if not folder.is_dir():
            folder = _download(str(path))
        check_checkpoint(folder)
        model = build(VLAConfig, read_document(folder)["model"], where=f"{folder / CONFIG}, model")
        if getattr(model.backbone.config, "trust_remote_code", False) and not trust_remote_code:
            raise ValueError(
                f"{folder} runs code of its own when loaded, with all your rights (backbone {model.backbone.name!r}): "
                f"read the .py files in {folder / 'backbone'}, then use VLA.load(path, trust_remote_code=True) "
                "or anyvla eval --trust-remote-code"
            )
        vla = cls._described(folder, model, read_robots(folder))
        weights.load(vla, folder / WEIGHTS)
        return vla.to(device).eval()

    @classmethod
    def _described(cls, folder: Path, model: VLAConfig, robots: Sequence[Robot]) -> VLA:
        """Build the policy of a checkpoint, without its weights. Raises ValueError that names the folder."""
        with weights.opened(folder / WEIGHTS) as file:
            tensors = ALLOCATED * len(file.keys()) + TENSORS_ANYWAY
        size = ALLOCATED * (folder / WEIGHTS).stat().st_size + BYTES_ANYWAY
        if getattr(model.representation.config, "path", None) is not None and not (folder / "codec").is_dir():
            raise CodecError(f"{folder / 'codec'} is missing: copy the checkpoint again, whole")
        try:
            with limit_allocations(size, tensors, "it describes a model"):
                vla = cls(model, robots, assets=folder / "backbone", codec=folder / "codec")
            vla.start("open the drawer", robot=vla.layout.names[0])  # a damaged tokenizer may fail only here
            return vla
        except (ImportError, ConfigError, CodecError, StatisticsError) as error:
            raise type(error)(f"{folder}: {str(error)[:1000]}") from error
        except BaseException as error:  # transformers and tokenizers raise anything for files that are wrong
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # tokenizers, in Rust
                raise
            reason = " ".join(str(error).split())[:500]
            raise ValueError(
                f"{folder} cannot be built from its {CONFIG} and its folder backbone: "
                f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{reason}"
            ) from error


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
                f"Use {instead}, or a backbone that can: {', '.join(backbones_with(needs))}"
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
