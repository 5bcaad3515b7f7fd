"""Find the cause of a loss or a gradient that is not finite: the weights, the parts of the loss, the samples.

The pieces of the step are computed again with the same random numbers, and with only some of their samples: the others
are replaced by zeros that no loss counts. They keep their rows, so that each sample keeps its noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anyvla.decoders.base import Loss
from anyvla.policy import VLA
from anyvla.robot.normalize import Normalizer
from anyvla.robot.space import ActionSpace
from anyvla.types import Batch

_NAMED = 3  # samples, at most
_OUTLIER = 100.0  # in model units, where most values are within [-1, 1]

Describe = Callable[[Sequence[int], str], str]  # a row of `Batch.samples` and its instruction
Run = Callable[[Batch], Loss]  # a forward and a backward pass


def explain(vla: VLA, pieces: Sequence[tuple[Batch, Run]], describe: Describe, precision: torch.dtype) -> str | None:
    """Return sentences on the cause of a failed step and its remedy; None if none of these pieces fails again.

    `pieces` are the pieces of the batch, each with a function that computes it, or a changed copy of it, once more.
    `precision` is the type of the matrix products. Leaves arbitrary gradients; the weights stay as they are.
    """
    in_float32 = _is_exact(precision)
    broken = [name for name, weight in vla.named_parameters() if not weight.isfinite().all()]
    if broken:
        return (
            f"{len(broken)} weights were not finite before this step, {broken[0]} first: start from a checkpoint that "
            "is whole"
        )
    for piece, run in pieces:
        with _bad_gradients(vla) as bad:
            loss = _run(vla, run, piece)
        parts = [name for name, value in loss.parts.items() if not value.isfinite()]
        if loss.total.isfinite() and not bad:
            continue
        first = f"{bad[0]} is the first of {len(bad)} parameters whose gradient is not finite. " if bad else ""
        where = f"The loss of {' and '.join(parts)} is not finite. " if parts else ""

        def fails(rows: list[int], piece: Batch = piece, run: Run = run) -> bool:
            with _bad_gradients(vla) as bad:
                return not _run(vla, run, _keep_rows(piece, rows)).total.isfinite() or bool(bad)

        return where + first + _name_samples(vla, piece, fails, describe, in_float32)
    return None


def _is_exact(precision: torch.dtype) -> bool:
    return precision == torch.float32


def describe_no_cause(precision: torch.dtype) -> str:
    """Return sentences on a failed step whose pieces do not fail again."""
    exact = _is_exact(precision)
    remedy = "another machine or another version of PyTorch" if exact else "--training.precision float32"
    return (
        "The same step, computed again, was finite: the hardware or a library may be at fault. Resume, and try "
        f"{remedy} if it happens again"
    )


def _name_samples(
    vla: VLA, piece: Batch, fails: Callable[[list[int]], bool], describe: Describe, in_float32: bool
) -> str:
    other = "more --training.optim.warmup_steps" if in_float32 else "--training.precision float32"
    steadier = f"try a lower --training.optim.lr or {other}"
    if fails([]):
        cause = "weights are" if in_float32 else "weights or the precision are"
        return f"It happens whatever the samples are: the {cause} at fault: {steadier}"
    found: list[int] = []
    _bisect(list(range(len(piece.instructions))), fails, found)
    if not found:
        return f"No sample causes it alone: {steadier}"
    samples = [_describe_row(vla, piece, row, describe) for row in found]
    named = "; ".join(f"{name}{': ' if notes else ''}{', '.join(notes)}" for name, notes in samples)
    at_least = " at least" if len(found) == _NAMED else ""
    if any(notes for _, notes in samples):
        remedy = "Look for outliers there (anyvla data check) and leave the episode out (leave_out in its source)"
        advice = f"{remedy}, or: {steadier}"
    else:
        advice = f"Their numbers are within the range of the data, so that the weights may have diverged: {steadier}"
    return f"{len(found)} of {len(piece.instructions)} samples{at_least} cause it: {named}. {advice}"


def _bisect(rows: list[int], fails: Callable[[list[int]], bool], found: list[int]) -> None:
    """Add the rows that fail alone, `_NAMED` in all at most."""
    if len(found) >= _NAMED or not fails(rows):
        return
    if len(rows) == 1:
        found += rows
        return
    middle = len(rows) // 2
    _bisect(rows[:middle], fails, found)
    _bisect(rows[middle:], fails, found)


def _keep_rows(piece: Batch, rows: list[int]) -> Batch:
    """Return the batch with zeros in all other rows, which count for no loss."""
    kept = torch.zeros(len(piece.instructions), dtype=torch.bool, device=piece.actions.device)
    kept[rows] = True

    def keep(x: Tensor) -> Tensor:
        return torch.where(kept.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x))

    return dataclasses.replace(
        piece,
        images=keep(piece.images),
        proprio=keep(piece.proprio),
        actions=keep(piece.actions),
        action_mask=keep(piece.action_mask),
    )


def _run(vla: VLA, run: Run, piece: Batch) -> Loss:
    vla.zero_grad(set_to_none=True)
    return run(piece)


@contextlib.contextmanager
def _bad_gradients(vla: VLA) -> Iterator[list[str]]:
    """Yield the list of parameters whose gradient is not finite, in the order in which gradients are made."""
    bad: list[str] = []

    def note(name: str) -> Callable[[nn.Parameter], None]:
        def hook(weight: nn.Parameter) -> None:
            if weight.grad is not None and not weight.grad.isfinite().all():
                bad.append(name)

        return hook

    hooks = [w.register_post_accumulate_grad_hook(note(n)) for n, w in vla.named_parameters() if w.requires_grad]
    try:
        yield bad
    finally:
        for hook in hooks:
            hook.remove()


def _describe_row(vla: VLA, piece: Batch, row: int, describe: Describe) -> tuple[str, list[str]]:
    """Return the name of a sample, and its numbers that are not finite or far outside of the training data."""
    text = piece.instructions[row]
    if piece.samples is None:
        name = f"window {row} of the batch ({text!r})"
    else:
        name = describe(piece.samples[row].tolist(), text)
    robots, valid = piece.robots[row : row + 1], piece.step_mask[row]
    proprio, actions = piece.proprio[row][valid], piece.actions[row][piece.action_mask[row]]
    return name, [
        *_describe_values("proprio", proprio, vla.proprio_normalizer, robots, vla.embodiment.proprio),
        *_describe_values("action", actions, vla.action_normalizer, robots, vla.embodiment.action),
    ]


def _describe_values(
    what: str, values: Float[Tensor, "k D"], normalizer: Normalizer, robots: Tensor, space: ActionSpace
) -> list[str]:
    """Return a sentence on the first such value, or none."""
    scaled = normalizer.normalize(values[None], robots)[0].abs()
    bad: Bool[Tensor, "k D"] = ~values.isfinite() | (scaled > _OUTLIER)
    if not bad.any():
        return []
    step, dim = bad.nonzero()[0].tolist()
    return [f"{what} {space.locate(dim)} is {float(values[step, dim]):.4g}"]
