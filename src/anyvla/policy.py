"""The VLA: joins backbone, history, fuser and decoder into one policy.

Training calls `loss(batch)`. Acting opens a session with `start(instruction)` and calls `act(observations, sessions)`.
Both run the same window through the same parts, so step k of a session equals step k of a training window.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor, nn

from anyvla.checkpoint.allocation import AllocationLimit
from anyvla.checkpoint.files import (
    CONFIG,
    ROBOTS,
    STATISTICS,
    WEIGHTS,
    check_checkpoint,
    download_checkpoint,
    read_document,
    read_robots,
)
from anyvla.combinations import check_capabilities
from anyvla.config import ConfigError, build, to_dict
from anyvla.decoders.base import Committed, DecoderInput, DecoderSpec, Loss
from anyvla.files import documents, tensor_files, weights
from anyvla.histories.base import History, StepInputs, WindowReadouts
from anyvla.migrations import RECIPE
from anyvla.observing import Implausible, Observer
from anyvla.policy_config import NormalizationConfig as NormalizationConfig
from anyvla.policy_config import VLAConfig as VLAConfig
from anyvla.representations.codec import Codec, CodecError
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Normalizer, StatisticsError, write_statistics
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.views import center_crop_views
from anyvla.sequence.valid_steps import ValidSteps
from anyvla.session import (
    Session,
    carry_states,
    check_call,
    check_length,
    check_seed,
    copy_sessions,
    remember_proprio,
)
from anyvla.text import check_instruction
from anyvla.transfer import send
from anyvla.types import Batch, Chunk, ChunkError, Observation

# Limits for building the model of a checkpoint: allocated bytes and tensors for each byte and tensor of the file of
# weights (4-bit weights are built in 32 bits, and temporary tensors count too), and a constant number of each.
ALLOCATED, BYTES_ANYWAY, TENSORS_ANYWAY = 32, 1 << 29, 10_000


class VLA(nn.Module):
    """A vision-language-action model: a policy for one robot or several, each with its own statistics."""

    def __init__(
        self,
        config: VLAConfig,
        robots: Sequence[Robot],
        assets: Path | None = None,
        codec: Path | None = None,
    ) -> None:
        """Build all parts. `assets`: the folder of `Backbone.save_assets`, if weights will be loaded afterwards.

        `codec`: the folder of a fitted codec. Raises CodecError if the representation needs one and there is none,
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
        self.codec = _build_codec(config, embodiment, codec)
        needs = config.decoder.target.needs_with(config.representation.target.kind)
        known = config.backbone.target.find_capabilities(config.backbone.config, assets)
        if known is not None:  # refused before weights are loaded
            check_capabilities(config.backbone, config.history, config.decoder, needs, known)
        self.backbone = config.backbone.build(assets)
        check_capabilities(config.backbone, config.history, config.decoder, needs, self.backbone.capabilities)
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
        proprios = [(r.embodiment.proprio, r.statistics.proprio) for r in robots]
        self.action_normalizer = Normalizer(embodiment.action, actions, scaling.action, what="action", clip=True)
        self.proprio_normalizer = Normalizer(embodiment.proprio, proprios, scaling.proprio, what="proprio", clip=False)
        self.implausible: Implausible = config.implausible
        self.observer = Observer(self.robots, self.layout, config.view)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.queries.device

    def identify(self) -> str:
        """Return a short hash that other trained policies do not share: of the queries, which all of them train."""
        queries = self.queries.detach().float().cpu().numpy()
        robots = [(r.embodiment.name, r.statistics.fingerprint) for r in self.robots]
        return hashlib.sha256(f"{robots}".encode() + queries.tobytes()).hexdigest()[:16]

    def loss(self, batch: Batch, generators: Sequence[torch.Generator] | None = None) -> Loss:
        """Return the loss over every valid step of every window.

        `generators` (on the CPU), one for each window, make the noise and times of decoders that sample them. None:
        PyTorch's own generator.
        """
        valid = ValidSteps.of_batch(batch)
        actions, mask = self._normalize_actions(batch, valid), valid.select(batch.action_mask)
        of_steps = None if generators is None else batch.spread(generators)
        return self.decoder.loss(self._read(batch, valid), actions, mask, of_steps)

    def count_elements(self, batch: Batch) -> int:
        """Return the number of action elements that the loss of a batch averages over."""
        actions, robots = batch.action_mask.sum((1, 2)).tolist(), batch.robots.tolist()
        return sum(n * self.action_normalizer.learned_counts[r] for n, r in zip(actions, robots, strict=True))

    def read(self, batch: Batch) -> DecoderInput:
        """Return the decoder's context of each of the M valid steps of whole windows, row by row."""
        return self._read(batch, ValidSteps.of_batch(batch))

    def _normalize_actions(self, batch: Batch, valid: ValidSteps) -> Float[Tensor, "M N A"]:
        return valid.select(self.action_normalizer.normalize(batch.actions, batch.robots))

    def _read(self, batch: Batch, valid: ValidSteps) -> DecoderInput:
        instructions = batch.spread(batch.instructions)
        proprio = self.proprio_normalizer.normalize(batch.proprio, batch.robots)  # (B, T, P)
        tokens, past = None if batch.tokens is None else valid.select(batch.tokens), None
        if self.history.sees_past:
            actions, mask = self._normalize_actions(batch, valid), valid.select(batch.action_mask)
            past = self.decoder.embed_chunks(pad_with_last_action(actions, mask), tokens)
        if past is not None:
            past = past.roll(1, 0)  # each step sees the chunk of the step before; the first step of a window has none
        steps = self._make_steps(valid.select(batch.images), instructions, valid.select(proprio), past)
        reading = self.history.read_windows(self.backbone, steps, valid, keep_cache=self.keeps_cache)
        robots = valid.select(batch.robots[:, None].expand(-1, valid.length))  # (M,)
        context = valid.select(self.fuser(self._join_features(reading, proprio)))
        return DecoderInput(context, reading.continuation, self._learned_dims(robots), tokens)

    def _learned_dims(self, robots: Int64[Tensor, "M"]) -> Bool[Tensor, "M A"] | None:
        return None if self.action_normalizer.learns_all else self.action_normalizer.learned[robots]

    def _make_steps(
        self,
        images: UInt8[Tensor, "M V H W 3"],
        instructions: Sequence[str],
        proprio: Float[Tensor, "M P"],
        past: Float[Tensor, "M K D"] | None,
    ) -> StepInputs:
        """Return the inputs of the backbone for M steps: images, instructions, and the embeddings of each step."""
        embeddings = [] if past is None else [past]
        if self.proprio_embedding is not None:
            embeddings.append(self.proprio_embedding(proprio)[:, None])
        embeddings.append(self.queries.expand(len(proprio), -1, -1))
        before = 0 if past is None else past.shape[1]
        return StepInputs(images, instructions, torch.cat(embeddings, 1), len(self.queries), before)

    def _join_features(self, reading: WindowReadouts, proprio: Float[Tensor, "B T P"]) -> Float[Tensor, "B T F"]:
        features = reading.readouts.flatten(2)  # (B, T, R*D)
        return torch.cat([features, proprio.to(features.dtype)], -1) if self.config.proprio == "fuser" else features

    def start(
        self, instruction: str, seed: int = 0, robot: str | None = None, *, may_be_empty: bool = False
    ) -> Session:
        """Open a session for one rollout with `instruction`.

        `seed` is for the noise of decoders that sample it; other sessions do not affect it. `robot` is the name of the
        embodiment, optional for a policy of one robot. Raises ValueError for an unknown robot, and an instruction that
        is no text, empty (unless `may_be_empty`) or too long for the backbone.
        """
        text = check_instruction(instruction, may_be_empty=may_be_empty)
        generator = torch.Generator().manual_seed(check_seed(seed))
        session = self._open_session(text, self.layout.find_robot(robot), generator)
        past = 0 if session.past is None else len(session.past)
        added = len(self.queries) + (self.proprio_embedding is not None) + past
        check_length(text, self.backbone, self.history, len(self.embodiment.cameras), added, self.decoder.suffix_length)
        return session

    def _open_session(self, instruction: str, robot: int, generator: torch.Generator) -> Session:
        history, memory, past = self.history.start(), deque[Tensor](maxlen=self.history.kept_steps), None
        if self.history.sees_past:
            nothing = torch.zeros(1, self.config.chunk, self.embodiment.action.size, device=self.device)
            past = self.decoder.embed_chunks(nothing)
        past = None if past is None else torch.zeros_like(past[0])
        state = self.fuser.start() if self.history.carries_state else None
        return Session(weakref.ref(self), instruction, robot, generator, history, memory, past, state)

    @torch.inference_mode()
    def act(
        self,
        observations: Sequence[Observation],
        sessions: Sequence[Session],
        committed: Sequence[Float32[np.ndarray, "_ _"] | None] | None = None,  # (K, A), of any K for each session
    ) -> list[Chunk]:
        """Return the next chunk of each session, in robot units, for the current observation of each robot.

        `committed`: for each session, actions that its robot executes while the chunk is predicted, in robot units, or
        None. The chunk begins with them; the rest follows from them if `decoder.continues`.

        Call it once every `config.execute` actions, as in training. Raises ValueError for an observation that does not
        fit the embodiment or is implausible (`VLAConfig.implausible`), for such committed actions and for a session
        given twice or of another policy, ChunkError for a chunk that is not finite. If it raises, the sessions are
        unchanged.
        """
        check_call(observations, sessions, self)
        given, sessions = sessions, copy_sessions(sessions, self.history)
        chosen = [s.robot for s in sessions]
        robots = send(np.array(chosen), self.device)
        images = send(self.observer.read_images(observations, chosen), self.device)  # (B, V, H, W, 3)
        vectors = send(self.observer.read_proprio(observations, chosen), self.device)
        if self.config.proprio != "none":
            self.observer.check_plausible(observations, sessions, self.implausible)
        begin = self._read_committed(committed, sessions)
        read = self._read_step(images, vectors, robots, sessions)
        scale = self.action_normalizer
        known = None if begin is None else replace(begin, actions=scale.normalize(begin.actions, robots))
        chunks = self._sample(read, sessions, known)
        actions = scale.denormalize(chunks, robots)
        actions = actions if begin is None else begin.replace(actions)
        # Clipping hides an infinite chunk, and choosing tokens hides a context that is not finite.
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in (read.context, chunks, actions)]).all(0)
        # one copy from the device, which is waited for
        rows = torch.cat([finite[:, None].to(actions.dtype), actions.flatten(1)], 1).cpu().numpy()
        if failed := np.flatnonzero(rows[:, 0] != 1).tolist():
            raise ChunkError(
                f"the policy predicted a chunk that is not finite (session {failed} of this call), and nothing is "
                "sent: its weights or the precision that it computes in are at fault"
            )
        for session, changed in zip(given, sessions, strict=True):
            session.take(changed)
        dims = [self.layout.robots[self.layout.names[robot]].action for robot in chosen]
        return [Chunk(a[:, own]) for a, own in zip(rows[:, 1:].reshape(actions.shape), dims, strict=True)]

    def _read_committed(self, committed: Sequence[Any] | None, sessions: Sequence[Session]) -> Committed | None:
        """Return the committed actions in robot units, None if no session has any."""
        if committed is None or all(of is None for of in committed):
            return None
        if len(committed) != len(sessions):
            raise ValueError(f"committed actions, or None, for each session: got {len(committed)} and {len(sessions)}")
        actions, mask = self.observer.read_committed(committed, sessions, self.config.chunk, self.implausible)
        return Committed(send(actions, self.device), send(mask, self.device))

    @torch.no_grad()  # not inference_mode: what the modules keep of a prediction may be used in training
    def predict(
        self, batch: Batch, generators: Sequence[torch.Generator] | None = None, *, every_step: bool = False
    ) -> Float[Tensor, "K N A"]:
        """Return the chunk at the last valid step of each window, in robot units: that of `act` after the same steps.

        Images are cropped here, as in acting. `generators`: one for each window, on the CPU; None: all with seed 0.
        `every_step`: return the chunks at all valid steps of all windows, row by row.
        """
        generators = generators or [torch.Generator().manual_seed(0) for _ in batch.instructions]
        lengths = batch.step_mask.sum(1)
        out = torch.zeros_like(batch.actions)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            sessions = [self._open_session(batch.instructions[r], int(batch.robots[r]), generators[r]) for r in rows]
            for step in range(length):
                images, vectors = batch.images[rows, step], batch.proprio[rows, step]
                read = self._read_step(images, vectors, batch.robots[rows], sessions)
                if every_step or step == length - 1 or self.history.sees_past:
                    chunks = self.action_normalizer.denormalize(self._sample(read, sessions), batch.robots[rows])
                    out[rows, step] = chunks.to(out.dtype)
        return out[batch.step_mask] if every_step else out[torch.arange(len(out), device=out.device), lengths - 1]

    def _read_step(
        self,
        images: UInt8[Tensor, "B V H W 3"],
        vectors: Float[Tensor, "B P"],
        robots: Int64[Tensor, "B"],
        sessions: Sequence[Session],
    ) -> DecoderInput:
        """Add a step to sessions, and return its context. `vectors`: proprio in robot units."""
        proprio = self.proprio_normalizer.normalize(vectors, robots)
        pasts = [s.past for s in sessions if s.past is not None]
        images, past = center_crop_views(images, self.config.view.crop), torch.stack(pasts) if pasts else None
        steps = self._make_steps(images, [s.instruction for s in sessions], proprio, past)
        states = [s.history_state for s in sessions]
        reading = self.history.read_step(self.backbone, steps, states, keep_cache=self.keeps_cache)
        features = self._join_features(reading, remember_proprio(sessions, proprio, reading.counts))  # (B, T, F)
        if self.history.carries_state:
            newest = carry_states(self.fuser, features[:, 0], sessions)  # (B, C)
        else:
            windows = ValidSteps(reading.counts, features.shape[1], self.device)
            newest = windows.select(self.fuser(features)).index_select(0, windows.last_steps())
        return DecoderInput(newest, reading.continuation, self._learned_dims(robots))

    def _sample(
        self, read: DecoderInput, sessions: Sequence[Session], committed: Committed | None = None
    ) -> Float[Tensor, "B N A"]:
        """Return the normalized chunks of sessions, which their next steps see if the history does that."""
        begin = () if committed is None else (committed,)  # decoders that know none work without
        chunks = self.decoder.sample(read, [s.generator for s in sessions], *begin)
        if self.history.sees_past and (past := self.decoder.embed_chunks(chunks)) is not None:
            for session, own in zip(sessions, past, strict=True):
                session.past = own.clone()
        return chunks

    def save(self, folder: Path, recipe: Mapping[str, Any] | None = None) -> None:
        """Write a complete checkpoint: config, weights, statistics, backbone assets and codec.

        `recipe` is the document for `config.yaml`. Its section `model` must be the configuration of this model.
        """
        self.save_description(folder, recipe)
        weights.save(self, folder / WEIGHTS)

    def save_description(self, folder: Path, recipe: Mapping[str, Any] | None = None) -> None:
        """Write all files of a checkpoint but the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {"schema": RECIPE} | dict(recipe or {}) | {"model": to_dict(self.config)}
        (folder / CONFIG).write_text(documents.to_yaml(document), encoding="utf-8")
        statistics = write_statistics({r.embodiment.name: r.statistics for r in self.robots})
        (folder / STATISTICS).write_text(statistics, encoding="utf-8")
        robots = json.dumps([to_dict(r.embodiment) for r in self.robots], indent=1)
        (folder / ROBOTS).write_text(robots, encoding="utf-8")
        self.backbone.save_assets(folder / "backbone")
        if self.codec is not None:
            self.codec.save(folder / "codec")

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu", *, trust_remote_code: bool = False) -> VLA:
        """Load a checkpoint from a folder, or by its name on the hub. Raises ValueError if there is none.

        A checkpoint whose backbone brings its own code is refused without `trust_remote_code`: the person who trained
        it trusted that code, but the person who loads it may not.
        """
        folder = Path(path)
        if not folder.is_dir():
            folder = download_checkpoint(str(path))
        check_checkpoint(folder)
        model = build(VLAConfig, read_document(folder)["model"], where=f"{folder / CONFIG}, model")
        if getattr(model.backbone.config, "trust_remote_code", False) and not trust_remote_code:
            raise ValueError(
                f"{folder} runs its own code when loaded, with all your rights (backbone {model.backbone.name!r}): "
                f"read the .py files in {folder / 'backbone'}, then use VLA.load(path, trust_remote_code=True) "
                "or anyvla eval --trust-remote-code"
            )
        vla = cls.build_unloaded(folder, model, read_robots(folder))
        weights.load(vla, folder / WEIGHTS)
        return vla.to(device).eval()

    @classmethod
    def build_unloaded(cls, folder: Path, model: VLAConfig, robots: Sequence[Robot]) -> VLA:
        """Build the policy of a checkpoint, without its weights. Raises ValueError with the name of the folder."""
        with tensor_files.opened(folder / WEIGHTS) as file:
            tensors = ALLOCATED * len(file.keys()) + TENSORS_ANYWAY
        size = ALLOCATED * tensor_files.size(folder / WEIGHTS) + BYTES_ANYWAY
        if getattr(model.representation.config, "path", None) is not None and not (folder / "codec").is_dir():
            raise CodecError(f"{folder / 'codec'} is missing: copy the checkpoint again, whole")
        try:
            with AllocationLimit(size, tensors, "it describes a model"):
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


def _build_codec(config: VLAConfig, embodiment: Embodiment, folder: Path | None) -> Codec | None:
    """Return the codec of the representation, None for continuous actions. Raises CodecError if it is not fitted."""
    if config.representation.target.kind == "continuous":
        return None
    assets = folder if folder is not None and folder.is_dir() else None
    codec: Codec = config.representation.build(config.chunk, embodiment.action, assets)
    codec.check_fitted()
    return codec
