"""Explain a model by running it on a dummy window: the layout of its sequences, its attention mask, its parameters.

The explanation does not depend on the names of structures. The model reads a dummy window while the calls of its
backbone are recorded, and the explanation describes the recorded sequences and masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.continuation import Continuation
from anyvla.decoders.base import DecoderInput
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.sequence.tokens import TokenSequence
from anyvla.types import Batch, Observation

Kind = Literal["start", "image", "text", "past", "proprio", "readout", "suffix"]
SIDE = 64  # pixels of dummy images; backbones resize them
INSTRUCTION = "put the red cup on the plate"
ACTED = 3  # steps of the dummy session, and of the dummy row of a history without a window


@dataclass(frozen=True)
class TokenGroup:
    """Consecutive tokens of one kind in a sequence."""

    kind: Kind
    label: str
    step: int  # of the window, from 0; -1: before all steps
    tokens: int


@dataclass(frozen=True)
class ParameterCount:
    """Number of parameters of one part."""

    name: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class Explanation:
    """A description of a model."""

    name: str
    structure: dict[str, str]  # backbone, history, fuser, decoder, representation
    window: int  # W; the steps of the dummy row, if `carries_state`
    sequences: int  # that the backbone reads for one window
    length: int  # tokens of one sequence, without suffixes
    limit: int | None  # context length of the backbone in tokens; None: not declared
    readouts: int  # R
    chunk: int  # N
    execute: int
    action: int  # A
    groups: tuple[TokenGroup, ...]  # of one sequence, in order; the suffix of a step follows the step
    attention: Float[np.ndarray, "G G"] = field(repr=False)  # fraction of a column's tokens that a row attends to
    parts: tuple[ParameterCount, ...]
    notes: tuple[str, ...]
    carries_state: bool = False  # whether the fuser's state is the memory of a session, so that there is no window

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"attention": self.attention.tolist()}


@dataclass(frozen=True)
class RecordingContinuation(Continuation):
    """A continuation that records how a decoder uses it."""

    masks: list[Bool[Tensor, "C C"]] = field(default_factory=list)  # among the tokens of a suffix
    passes: list[int] = field(default_factory=list)  # tokens of a suffix per pass of the decoder's own layers

    def build_suffix_mask(self, length: int, *, causal: bool) -> Bool[Tensor, "S TC TC"]:
        mask = super().build_suffix_mask(length, causal=causal)
        self.masks.append(mask[0, :length, :length])
        return mask

    def fold(self, x: Tensor) -> Tensor:
        if x.is_floating_point() and x.ndim == 3:
            self.passes.append(x.shape[1])
        return super().fold(x)


@contextmanager
def record_calls(backbone: torch.nn.Module) -> Iterator[list[TokenSequence]]:
    """Record the sequence of each call of the backbone."""
    calls: list[TokenSequence] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(kwargs["sequence"] if "sequence" in kwargs else args[0])

    handle = backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def dummy_statistics(embodiment: Embodiment) -> Statistics:
    """Return statistics of a robot whose actions and proprio are in [-1, 1]."""

    def of(dims: int) -> dict[str, list[float]]:
        low, high = [-1.0] * dims, [1.0] * dims
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": [0.0] * dims, "std": [0.5] * dims}

    return Statistics(of(embodiment.action.size), of(embodiment.proprio.size), "0" * 64)


def dummy_chunks(count: int, chunk: int, dims: int, seed: int = 0) -> Float[Tensor, "K N A"]:
    """Return smooth chunks in [-1, 1]: slow sine waves, similar to the motion of a robot."""
    g = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, chunk)[:, None]
    speed, phase = torch.rand(2, count, 1, dims, generator=g) * 6
    return (speed * time + phase).sin()


def dummy_window(vla: VLA, seed: int = 0) -> Batch:
    """Return a full window, or a short row, of random images, proprio and smooth chunks."""
    robot, steps = vla.embodiment, vla.history.window
    if vla.history.carries_state:
        steps = min(steps, ACTED)
    g = torch.Generator().manual_seed(seed)
    chunks = dummy_chunks(steps, vla.config.chunk, robot.action.size, seed)
    shape = (1, steps, len(robot.cameras), SIDE, SIDE, 3)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=g),
        proprio=torch.rand(1, steps, robot.proprio.size, generator=g),
        instructions=[INSTRUCTION],
        actions=chunks[None],
        action_mask=torch.ones(1, steps, vla.config.chunk, dtype=torch.bool),
        step_mask=torch.ones(1, steps, dtype=torch.bool),
        robots=torch.zeros(1, dtype=torch.int64),
    ).to(vla.device)


@torch.no_grad()
def explain(vla: VLA, name: str, notes: Sequence[str] = ()) -> Explanation:
    """Run the model on a dummy window and a dummy session, and describe both. `notes`: added to the description."""
    config, batch = vla.config, dummy_window(vla)
    with record_calls(vla.backbone) as calls:
        inputs = vla.read(batch)
    sequence = calls[0]
    tokens = label_tokens(vla, sequence)
    mask = find_attention_mask(vla, sequence)[0, : len(tokens), : len(tokens)]
    if inputs.continuation is not None:
        tokens, mask = _add_suffixes(vla, tokens, mask, inputs.continuation, find_suffix_mask(vla, inputs, batch))
    groups, attention = _group(tokens, mask)
    return Explanation(
        name=name,
        structure={part: getattr(config, part).name for part in ("backbone", "history", "fuser", "decoder")}
        | {"representation": config.representation.name},
        window=batch.step_mask.shape[1],
        sequences=len(sequence.input_ids),
        length=int(sequence.attention_mask[0].sum()),
        limit=getattr(vla.backbone, "context", None),
        readouts=config.readouts,
        chunk=config.chunk,
        execute=config.execute,
        action=vla.embodiment.action.size,
        groups=tuple(groups),
        attention=attention,
        parts=tuple(count_parameters(vla)),
        notes=(*_describe_model(vla, sequence), *notes),
        carries_state=vla.history.carries_state,
    )


def label_tokens(vla: VLA, sequence: TokenSequence) -> list[TokenGroup]:
    """Return a group per token of the first sequence, without padding."""
    out = []
    cameras, readouts = vla.embodiment.cameras, vla.config.readouts
    queries, valid = sequence.query_mask[0].tolist(), sequence.attention_mask[0].tolist()
    images = _find_image_tokens(vla, sequence)
    steps = [step for step, real in zip(sequence.step_ids[0].tolist(), valid, strict=True) if real]
    for step, members in groupby(range(len(steps)), lambda position: steps[position]):
        mine = list(members)
        if step < 0:
            out += [TokenGroup("start", "start", -1, 1)] * len(mine)
            continue
        tokens = [p for p in mine if not queries[p]]
        written = [p for p in mine if queries[p]]
        camera = _assign_cameras(vla, tokens, [p for p in tokens if images[p]])
        for position in mine:
            kind: Kind
            if position in camera:
                kind, label = "image", cameras[camera[position]]
            elif position in tokens:
                kind, label = "text", "text"
            elif position in written[len(written) - readouts :]:
                kind, label = "readout", "readout"
            elif position < tokens[0]:
                kind, label = "past", "last chunk"
            else:
                kind, label = "proprio", "proprio"
            out.append(TokenGroup(kind, label, step, 1))
    return out


def _find_image_tokens(vla: VLA, sequence: TokenSequence) -> list[bool]:
    find = getattr(vla.backbone, "get_image_mask", None)
    return (torch.zeros_like(sequence.query_mask) if find is None else find(sequence))[0].tolist()


def _assign_cameras(vla: VLA, tokens: Sequence[int], images: Sequence[int]) -> dict[int, int]:
    """Return the camera of each image token of a step, including special tokens around and between image tokens."""
    if not images:
        return {}
    views = len(vla.embodiment.cameras)
    each = getattr(vla.backbone, "tokens_per_camera", 0)
    if each and tokens[views * each - 1 : views * each] and images[-1] < tokens[0] + views * each:
        return {position: number // each for number, position in enumerate(tokens[: views * each])}
    out: dict[int, int] = {}
    for number, position in enumerate(images):
        view = number * views // len(images)
        out |= dict.fromkeys(range(max(out, default=tokens[0] - 1) + 1, position + 1), view)
    return out


def find_attention_mask(vla: VLA, sequence: TokenSequence) -> Bool[np.ndarray, "S L L"]:
    """Return the attention mask that the backbone passes to its model, including padding."""
    count, length = sequence.input_ids.shape
    ask = getattr(vla.backbone, "language_inputs", None)
    if ask is None or "block_mask" not in vla.backbone.capabilities:  # only a causal mask is possible
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return causal.expand(count, -1, -1).numpy()
    everything = torch.ones(count, length, length, dtype=torch.bool, device=sequence.input_ids.device)
    masked = sequence if sequence.block_mask is not None else replace(sequence, block_mask=everything)
    given = ask(masked, None)["attention_mask"]
    if isinstance(given, dict):  # sliding-window layers have a separate mask
        given = given.get("full_attention", next(iter(given.values())))
    mask = given[:, 0]
    return (mask if mask.dtype == torch.bool else mask == 0).cpu().numpy()


def find_suffix_mask(vla: VLA, inputs: DecoderInput, batch: Batch) -> Bool[np.ndarray, "C C"]:
    """Return the mask among the tokens of a suffix. The first token is the decoder's input."""
    assert inputs.continuation is not None
    continuation = RecordingContinuation(**vars(inputs.continuation))
    recorded = DecoderInput(inputs.context, continuation)
    if "keys_values" not in vla.decoder.needs:  # the backbone reads the suffix
        actions = vla.action_normalizer.normalize(batch.actions, batch.robots)[batch.step_mask]
        mask = batch.action_mask[batch.step_mask]
        vla.decoder.loss(recorded, actions, mask, [torch.Generator().manual_seed(0) for _ in actions])
        return continuation.masks[0].cpu().numpy()
    # The decoder has its own layers and reads in passes; each pass attends to itself and to earlier passes.
    vla.decoder.sample(recorded, [torch.Generator().manual_seed(0) for _ in inputs.context])
    number = np.repeat(range(2), continuation.passes[:2])
    return number[:, None] >= number


def _add_suffixes(
    vla: VLA,
    tokens: Sequence[TokenGroup],
    mask: Bool[np.ndarray, "L L"],
    continuation: Continuation,
    own: Bool[np.ndarray, "C C"],
) -> tuple[list[TokenGroup], Bool[np.ndarray, "LSC LSC"]]:
    """Insert the suffix of each of S steps after the step, into the tokens and the mask."""
    steps, length = continuation.counts[0], len(tokens)  # of the first sequence
    labels = ["context"] + [vla.config.decoder.name] * (len(own) - 1)
    tokens = [*tokens, *(TokenGroup("suffix", label, step, 1) for step in range(steps) for label in labels)]
    below = continuation.visible[:steps, :length].cpu().numpy().repeat(len(own), axis=0)  # (SC, L)
    right = np.zeros((length, len(below)), bool)
    mask = np.block([[mask, right], [below, np.kron(np.eye(steps, dtype=bool), own)]])
    order = sorted(range(len(tokens)), key=lambda number: tokens[number].step)
    return [tokens[number] for number in order], mask[np.ix_(order, order)]


def _group(
    tokens: Sequence[TokenGroup], mask: Bool[np.ndarray, "L L"]
) -> tuple[list[TokenGroup], Float[np.ndarray, "G G"]]:
    """Merge equal neighbors into groups, and average the mask over the tokens of each pair of groups."""
    groups = [replace(token, tokens=len(list(members))) for token, members in groupby(tokens)]
    sizes = [group.tokens for group in groups]
    shares = np.repeat(np.diag(1 / np.array(sizes)), sizes, axis=0)  # (L, G)
    return groups, (shares.T @ mask @ shares).round(6)


def count_parameters(vla: VLA) -> list[ParameterCount]:
    """Count the parameters by part, the backbone first. Parameters that two parts share count once."""
    seen: set[int] = set()

    def part(name: str, weights: Sequence[Tensor]) -> ParameterCount:
        new = [w for w in weights if id(w) not in seen and not seen.add(id(w))]  # type: ignore[func-returns-value]
        return ParameterCount(name, sum(w.numel() for w in new), sum(w.numel() for w in new if w.requires_grad))

    out = [part(name, weights) for name, weights in parameters_by_part(vla.backbone).items()]
    out.append(part("LM head", list(vla.backbone.parameters())))  # parameters of no other part
    out += [part("readout queries" if n == "queries" else n, [w]) for n, w in vla.named_parameters(recurse=False)]
    out += [part(name, list(child.parameters())) for name, child in vla.named_children() if name != "backbone"]
    return [p for p in out if p.parameters]


def _describe_model(vla: VLA, sequence: TokenSequence) -> Iterator[str]:
    config, robot = vla.config, vla.embodiment
    yield f"robot: {robot.name}, cameras {', '.join(robot.cameras)}, actions of {robot.action.size} dims"
    if sum(_find_image_tokens(vla, sequence)) < len(robot.cameras):
        yield "images take no tokens of the sequence: the backbone reads them by cross-attention"
    if config.proprio == "fuser" and robot.proprio.size:
        yield f"proprioception ({robot.proprio.size} dims) joins the readouts before the fuser"
    elif config.proprio == "none":
        yield "proprio is not read"
    if vla.codec is not None:
        ends = ", and an end" if vla.codec.ends else ""
        yield f"a chunk is at most {vla.codec.length} tokens of {vla.codec.size}{ends}"
    if vla.history.carries_state:
        size = int(vla.fuser.start().numel())
        yield f"a session keeps no earlier step but the state of the fuser ({size} numbers), from its first step on"
        yield f"training reads whole episodes: at most {vla.history.window} steps, {config.execute} actions apart"
    yield from _describe_acting(vla)


def _describe_acting(vla: VLA) -> Iterator[str]:
    """Yield notes about the tokens that a session reads at each step."""
    robot, rng = vla.embodiment, np.random.default_rng(0)
    training = vla.training
    vla.eval()
    session = vla.start(INSTRUCTION)
    read: list[int] = []  # tokens of observations per step
    written: list[list[int]] = []  # tokens of each further call, per step
    again = False
    for _ in range(ACTED):
        images = {c: rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for c in robot.cameras}
        with record_calls(vla.backbone) as calls:
            vla.act([Observation(images, np.zeros(robot.proprio.size, np.float32))], [session])
        looking = [c for c in calls if len(c.images)]
        again = any(int(c.step_ids.max()) > 0 for c in looking)  # a sequence with more than the new step
        read.append(sum(int(c.attention_mask.sum()) for c in looking))
        written.append([int(c.attention_mask.sum()) for c in calls if not len(c.images)])
    vla.train(training)
    counts = ", ".join(map(str, read))
    tokens = "the tokens of its whole window" if again else "its own tokens only"
    if not again and max(read) > read[0]:
        tokens += ", for each of two windows where they overlap"
    yield f"acting, a step reads {tokens} ({counts} in the first {ACTED} steps)"
    if vla.keeps_cache and written[-1]:
        runs = "one more run" if len(written[-1]) == 1 else f"{len(written[-1])} more runs"
        yield f"a chunk takes {runs} of the backbone, of {sum(written[-1])} tokens in all"
    elif vla.keeps_cache:
        yield "a chunk takes no more runs of the backbone: the decoder attends to its cached keys and values"
