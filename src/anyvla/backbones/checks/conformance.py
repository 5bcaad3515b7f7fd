"""Checks that every backbone must pass, on any model: run by the test matrix and by users on their own backbones.

`anyvla doctor backbone` prints the results; the tests require them of every family. A check returns its measurement as
text, or raises `CheckFailed` (an expectation was not met) or `NotApplicable` (with the reason).
Checks run in the order of `CHECKS`; the last ones change the backbone (LoRA, bfloat16), so discard it afterwards.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.base import Backbone, Cache
from anyvla.backbones.checks.fresh_weights import redraw
from anyvla.backbones.checks.subject import TEXTS, CheckFailed, NotApplicable, Subject, difference, equal, moved, pull
from anyvla.sequence.tokens import StepTokens, TokenSequence

NAMES = 50  # control tokens that are tried, of a tokenizer that may have thousands
SAMPLED = 100_000  # elements of a gradient that are compared


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    check: str
    state: Literal["passed", "failed", "not applicable"]
    detail: str


@torch.no_grad()
def cameras(s: Subject) -> str:
    """One and two cameras, one and three readouts: finite, of the right shape."""
    for views in (1, 2):
        for count in (1, 3):
            out = s.read(s.frames(2, views), TEXTS[:2], s.queries(count))
            if out.shape != (2, count, s.backbone.width) or not out.isfinite().all():
                raise CheckFailed(
                    f"{views} cameras, {count} readouts: {tuple(out.shape)}, finite {out.isfinite().all()}"
                )
    return "1 and 2 cameras, 1 and 3 readouts"


@torch.no_grad()
def every_input(s: Subject) -> str:
    """Each camera, their order, the instruction and the query all matter."""
    images, query = s.frames(1), s.queries(1)
    reference = s.read(images, TEXTS[:1], query)
    far = [moved(reference, s.read(images.flip(1), TEXTS[:1], query), "cameras swapped")]
    for view in range(s.views):
        other = images.clone()
        other[:, view] = s.frames(1, 1, seed=7)[:, 0]
        far.append(moved(reference, s.read(other, TEXTS[:1], query), f"another image of camera {view}"))
    far.append(moved(reference, s.read(images, ("shut",), query), "another instruction"))
    far.append(moved(reference, s.read(images, TEXTS[:1], query.flip(1)), "another query"))
    return f"readouts move by {min(far):.2g} of their spread or more"


def plain_text(s: Subject) -> str:
    """What a user writes is text: no control token of it acts, and what looks the same is the same."""
    control = getattr(getattr(s.backbone, "step_tokenizer", None), "control", None)
    if control is None:
        raise NotApplicable("does not read token ids")

    def tokens(text: str) -> list[int]:
        return [*s.backbone.tokenize(s.frames(1, 1), [text]).tokens[0]]

    without, own = tokens("open now"), control.count(tokens("open now"))
    names = sorted(control.names)
    for name in (*names[:: -(-len(names) // NAMES) or 1], "{bos}", "{prompt}", "{instruction}"):
        found = tokens(f"open {name} now")
        acting = s.backbone.tokenizer.convert_ids_to_tokens([*(control.count(found) - own)])
        if acting:
            raise CheckFailed(f"{name!r} in an instruction acts as a control token: {', '.join(acting)}")
        if found == without:
            raise CheckFailed(f"{name!r} in an instruction is not read")
    if tokens("o\u0308ffne es") != tokens(" \u00f6ffne\u00a0es\n"):
        raise CheckFailed("one instruction in two Unicode forms gives different tokens")
    return f"{len(names)} control tokens"


@torch.no_grad()
def plain_model(s: Subject) -> str:
    """The readout of a query that equals its token is what the plain model computes, with its own positions."""
    plain = getattr(s.backbone, "plain_forward", None)
    if plain is None:
        raise NotApplicable("no plain model to compare with")
    ids = torch.tensor([[s.backbone.query_id]], device=s.device)
    query = s.backbone.embedding(ids)[0].float()
    block = s.backbone.tokenize(s.frames(2), list(TEXTS[:2]))
    sequence = s.sequence(block, [1, 1], 1)
    s.read(s.frames(3, 1), TEXTS[2:], query)  # a sequence of other length before: nothing of it may stay
    hidden = plain(sequence)
    return f"{s.equal(s.backbone(sequence, query), hidden[sequence.query_mask][:, None], 'plain model'):.1g}"


@torch.no_grad()
def neighbors(s: Subject) -> str:
    """A sample's readouts depend neither on its neighbors in the batch nor on padding."""
    images, query, far = s.frames(3), s.queries(2), 0.0
    together = s.read(images, TEXTS[:3], query, padding=5)
    for i in range(3):
        alone = s.read(images[i : i + 1], TEXTS[i : i + 1], query)
        far = max(far, s.equal(together[i : i + 1], alone, f"sample {i} of 3, alone"))
    return f"{far:.1g}"


@torch.no_grad()
def steps(s: Subject) -> str:
    """Steps that share a sequence: no step sees a later one, each sees the earlier ones of its own sequence."""
    s.needs("interleave")
    images, query = s.frames(5), s.queries(2)
    out = s.read(images, TEXTS, query, [3, 2])
    for first in (0, 3):
        alone = s.read(images[first : first + 1], TEXTS[first : first + 1], query)
        s.equal(out[first : first + 1], alone, f"step {first} of sequences [3, 2], alone")
    other = images.clone()
    other[0] = s.frames(1, seed=9)[0]
    changed = s.read(other, TEXTS, query, [3, 2])
    far = min(moved(out[i], changed[i], f"step {i} after another first step") for i in range(3))
    s.equal(out[3:], changed[3:], "the other sequence")
    return f"a first step moves the third by {far:.2g}"


def gradients(s: Subject) -> str:
    """Gradients reach every part and the queries, under bfloat16 autocast as well."""
    query = s.queries(1).requires_grad_()
    for autocast in (False, True):
        s.backbone.zero_grad()
        query.grad = None
        with torch.autocast(s.device.type, torch.bfloat16, enabled=autocast):
            out = s.read(s.frames(2), TEXTS[:2], query)
        pull(out)
        reached = {p for p in s.backbone.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        for part, own in parameters_by_part(s.backbone).items():
            weights = [w for w in own if w.requires_grad]
            if weights and not any(w in reached for w in weights):
                raise CheckFailed(f"no gradient reaches {part}{', under autocast' if autocast else ''}")
        if query.grad is None or not query.grad.abs().sum() > 0:
            raise CheckFailed("no gradient reaches the queries")
    s.backbone.zero_grad()
    return "vision, projector, language, embeddings, queries"


@contextmanager
def _checkpointing(model: Any) -> Iterator[None]:
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def checkpointing(s: Subject) -> str:
    """Gradient checkpointing changes no gradient."""
    model = getattr(s.backbone, "model", None)
    if model is None or not getattr(model, "supports_gradient_checkpointing", False):
        raise NotApplicable("the model does not support gradient checkpointing")

    def run() -> dict[str, Tensor]:  # of a large gradient a sample, which shows any difference and fits in memory
        s.backbone.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # dropout
            out = s.read(s.frames(2), TEXTS[:2], s.queries(1))
        pull(out)
        reached = {n: p.grad.flatten() for n, p in s.backbone.named_parameters() if p.grad is not None}
        return {n: g[:: max(1, len(g) // SAMPLED)].clone() for n, g in reached.items()}

    s.backbone.train()
    try:
        without = run()
        with _checkpointing(model):
            recomputed = run()
    finally:
        s.backbone.eval()
        s.backbone.zero_grad()
    if without.keys() != recomputed.keys():
        raise CheckFailed(f"gradients of {sorted(without.keys() ^ recomputed.keys())[:3]} come or go")
    # A bias of keys has no gradient but for rounding: attention does not know it.
    least = 1e-5 * max(float(g.abs().max()) for g in without.values())
    told = [n for n in without if max(float(g.abs().max()) for g in (without[n], recomputed[n])) > least]
    return f"{max(equal(without[n], recomputed[n], f'gradient of {n}', 1e-2) for n in told):.1g}"


@torch.no_grad()
def cache(s: Subject) -> str:
    """Reading on after a cache, place by place, equals reading in one go."""
    s.needs("cache")
    query = s.queries(2)
    images = s.frames(2)
    block = s.backbone.tokenize(images, list(TEXTS[:2]))
    whole = s.backbone(s.sequence(block, [1, 1], 2), query)
    kept = Cache()
    s.backbone(s.sequence(block, [1, 1], 0), query, kept)
    place = torch.full((2, 1), s.backbone.query_id, device=s.device)
    yes = torch.ones_like(place, dtype=torch.bool)
    single = TokenSequence(place, yes, yes, torch.zeros_like(place), images[:0])
    one_by_one = torch.cat([s.backbone(single, q[None], kept) for q in query], 1)
    far = s.equal(whole, one_by_one, "two queries, one at a time")
    if "interleave" not in s.backbone.capabilities:
        return f"{far:.1g}"
    images = s.frames(6)
    block = s.backbone.tokenize(images, [TEXTS[i % 5] for i in range(6)])
    whole = s.backbone(s.sequence(block, [3, 3], 2), query).unflatten(0, (2, 3))
    kept = Cache()
    for k in range(3):
        now = StepTokens(block.prefix if k == 0 else (), [block.tokens[i] for i in (k, 3 + k)], images[[k, 3 + k]])
        readouts = s.backbone(s.sequence(now, [1, 1], 2), query, kept)
        far = max(far, s.equal(whole[:, k], readouts, f"step {k}, of two sequences of unlike lengths"))
    return f"{far:.1g}"


@torch.no_grad()
def reading_again(s: Subject) -> str:
    """Going on place by place without a cache, by reading again, equals reading in one go."""
    s.needs("continue")
    able, query = s.backbone.capabilities, s.queries(2)
    block = s.backbone.tokenize(s.frames(2), list(TEXTS[:2]))
    whole = s.backbone(s.sequence(block, [1, 1], 2), query)
    kept, nothing = Cache(), StepTokens([], [[]] * 2, block.images[:0])
    s.backbone.capabilities = able - {"cache"}
    try:
        s.backbone(s.sequence(block, [1, 1], 0), query, kept)
        one_by_one = torch.cat([s.backbone(s.sequence(nothing, [1, 1], 1), q[None], kept) for q in query], 1)
    finally:
        s.backbone.capabilities = able
    return f"{s.equal(whole, one_by_one, 'two queries, one at a time'):.1g}"


@torch.no_grad()
def block_mask(s: Subject) -> str:
    """A mask that hides nothing changes nothing; what a mask hides changes nothing."""
    s.needs("block_mask")
    query = s.queries(2)
    groups = [3, 2] if "interleave" in s.backbone.capabilities else [1] * 5
    images = s.frames(5)
    sequence = s.sequence(s.backbone.tokenize(images, list(TEXTS)), groups, 2)
    number, length = sequence.step_ids, sequence.input_ids.shape[1]
    everything = torch.ones(len(groups), length, length, dtype=torch.bool, device=s.device)
    far = s.equal(
        s.backbone(sequence, query),
        s.backbone(dataclasses.replace(sequence, block_mask=everything), query),
        "a mask that hides nothing",
    )
    if "interleave" not in s.backbone.capabilities:
        return f"{far:.1g}"
    hidden = ~((number[:, :, None] >= 1) & (number[:, None] == 0))  # steps 1 and 2 do not see step 0
    masked = dataclasses.replace(sequence, block_mask=hidden)
    other = images.clone()
    other[0] = s.frames(1, seed=9)[0]
    before, after = s.backbone(masked, query), s.backbone(dataclasses.replace(masked, images=other), query)
    moved(before[0], after[0], "another image at the step itself")
    return f"{max(far, equal(before[1:], after[1:], 'another image at a hidden step', 1e-6)):.1g}"


@torch.no_grad()
def save_load(s: Subject) -> str:
    """Built again from its assets and given its weights, it answers the same, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        s.backbone.save_assets(Path(folder))
        again = type(s.backbone)(s.config, assets=Path(folder)).to(s.device).eval()
    again.load_state_dict(s.backbone.state_dict())
    images, query = s.frames(2), s.queries(1)
    one, other = (dataclasses.replace(s, backbone=b).read(images, TEXTS[:2], query) for b in (s.backbone, again))
    if not torch.equal(one, other):
        raise CheckFailed(f"another answer after saving and loading: {difference(one, other):.2g} of the spread")
    return "bit-equal"


@torch.no_grad()
def generate(s: Subject) -> str:
    """The model generates the same text before and after it was used as a backbone."""
    written = getattr(s.backbone, "generate", None)
    if written is None:
        raise NotApplicable("no generate")
    block = s.backbone.tokenize(s.frames(1, 1), list(TEXTS[:1]))
    sequence = s.sequence(block, [1], 0)
    before = written(sequence, 4)
    s.read(s.frames(2), TEXTS[:2], s.queries(2))
    after = written(sequence, 4)
    if not torch.equal(before, after):
        raise CheckFailed(f"it wrote {before.tolist()} before and {after.tolist()} after")
    return f"{before.shape[1]} tokens"


def lora(s: Subject) -> str:
    """LoRA with the default targets starts as the identity, and only it is trained in the language model."""
    from anyvla.backbones.adapting.adapt import Lora, add_lora

    if getattr(s.config, "lora", None) is not None:
        raise NotApplicable("has LoRA by its options, with which all other checks ran")
    images, query = s.frames(1), s.queries(1)
    with torch.no_grad():
        before = s.read(images, TEXTS[:1], query)
    try:
        add_lora(s.backbone, Lora(rank=4))
    except ImportError as error:
        raise NotApplicable(str(error)) from error
    out = s.read(images, TEXTS[:1], query)
    far = s.equal(before, out.detach(), "LoRA before any training")
    pull(out)
    trained = {n for n, p in s.backbone.named_parameters() if p.requires_grad and "lora_" in n}
    reached = {n for n, p in s.backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    if not trained & reached:
        raise CheckFailed("no gradient reaches LoRA")
    names = {p: n for n, p in s.backbone.named_parameters()}
    language = [p for p in parameters_by_part(s.backbone)["language"] if "lora_" not in names[p]]
    if any(p.requires_grad for p in language):
        raise CheckFailed("the language model beneath LoRA is not frozen")
    s.backbone.zero_grad()
    return f"{len(trained)} matrices, {far:.1g}"


@torch.no_grad()
def bfloat16(s: Subject) -> str:
    """With weights in bfloat16 it answers about the same, in the dtype of the queries."""
    images, query = s.frames(2), s.queries(1)
    before = s.read(images, TEXTS[:2], query)
    s.backbone.to(torch.bfloat16)
    out = s.read(images, TEXTS[:2], query)
    if out.dtype != query.dtype:
        raise CheckFailed(f"readouts are {out.dtype}, queries {query.dtype}")
    return f"{equal(before, out, 'bfloat16', 0.5):.1g}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "cameras": cameras,
    "every input": every_input,
    "plain text": plain_text,
    "plain model": plain_model,
    "neighbors": neighbors,
    "steps": steps,
    "gradients": gradients,
    "checkpointing": checkpointing,
    "cache": cache,
    "reading again": reading_again,
    "block mask": block_mask,
    "save and load": save_load,
    "generate": generate,
    "LoRA": lora,
    "bfloat16": bfloat16,
}


@contextmanager
def _exact_products() -> Iterator[None]:
    """Without TF32, whose convolutions on NVIDIA GPUs are too coarse to compare."""
    convolutions, matrices = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, matrices


def examine(backbone: Backbone, config: Any, checks: dict[str, Callable[[Subject], str]] = CHECKS) -> Iterator[Result]:
    """Run the checks one after another, on redrawn weights where they were never trained.

    The backbone is of no use afterwards.
    """
    redraw(backbone)
    subject = Subject(backbone.eval(), config)
    for name, check in checks.items():
        try:
            with _exact_products():
                detail = check(subject)
        except NotApplicable as reason:
            yield Result(name, "not applicable", str(reason))
        except CheckFailed as broken:
            yield Result(name, "failed", str(broken))
        except Exception as error:  # whatever a stranger's model raises is this check's result
            yield Result(name, "failed", f"{type(error).__name__}: {error}")
        else:
            yield Result(name, "passed", detail)
