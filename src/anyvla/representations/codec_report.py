"""How well a codec does, and for which actions it was made: `report.json` in the folder of a fitted codec.

A codec that was fitted to other data, chunks or scaling still decodes, only worse: nothing would tell. Training asks
`check_codec` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT, Part, build, to_dict
from anyvla.files.documents import read_object
from anyvla.representations.codec import Codec, CodecError
from anyvla.robot.normalize import Method, Normalizer
from anyvla.robot.space import ActionSpace

REPORT = "report.json"
AT_ONCE = 1024  # chunks that are encoded at a time


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodecPurpose:
    """What a codec is fitted for. One that was fitted for another purpose must not be used."""

    representation: Mapping[str, Any]  # its name and options
    chunk: int  # N
    normalization: Method  # of the actions
    fingerprint: str  # of the data


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ErrorSummary:
    """Absolute differences between actions and what their tokens decode to."""

    mean: float
    q99: float
    max: float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GroupError:
    """The error of one action group, over its dims and all actions."""

    group: str
    unit: str  # of `robot`
    normalized: ErrorSummary  # the whole range is 2
    robot: ErrorSummary


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundTrip:
    """Chunks encoded and decoded again."""

    chunks: int  # K
    tokens_mean: float  # per chunk
    tokens_max: int
    compression: float  # N*A numbers per mean tokens
    invalid: int  # chunks whose own tokens are no valid sequence; more than 0 is a fault of the codec
    errors: tuple[GroupError, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodecReport:
    """The contents of `report.json`."""

    purpose: CodecPurpose
    vocabulary: int  # V
    length: int  # T, the most tokens of a chunk
    episodes: int  # fitted to
    held_out_episodes: int
    fitted: RoundTrip
    held_out: RoundTrip | None  # None: there is one episode only
    facts: Mapping[str, Any]  # what the codec says of its fit
    seconds: float  # of fitting


def measure_round_trip(
    codec: Codec,
    chunks: Float[Tensor, "K N A"],
    mask: Bool[Tensor, "K N"],
    normalizer: Normalizer,
    robots: Int64[Tensor, "K"],
) -> RoundTrip:
    """Encode and decode whole chunks; the errors are those of actions whose `mask` is True, in dims that the chunk's
    robot has.
    """
    decoded, lengths, invalid = [], [], 0
    with torch.inference_mode():
        for part in chunks.split(AT_ONCE):
            tokens = codec.encode(part)
            chunk, wrong = codec.decode(tokens)
            decoded.append(chunk)
            lengths.append((tokens >= 0).sum(1))
            invalid += int(wrong.sum())
    got = torch.cat(decoded)
    normalized = (got - chunks).abs().double().numpy()
    robot = (normalizer.denormalize(got, robots) - normalizer.denormalize(chunks, robots)).abs().double().numpy()
    valid = (mask[..., None] & normalizer.known[robots][:, None]).numpy()  # (K, N, A)

    def of(error: np.ndarray, place: slice) -> ErrorSummary:
        return _error(error[..., place][valid[..., place]])

    space, length = codec.space, torch.cat(lengths).double()
    return RoundTrip(
        chunks=len(chunks),
        tokens_mean=float(length.mean()),
        tokens_max=int(length.max()),
        compression=chunks[0].numel() / float(length.mean()),
        invalid=invalid,
        errors=tuple(
            GroupError(group=g.name, unit=g.unit, normalized=of(normalized, p), robot=of(robot, p))
            for g, p in zip(space.groups, space.slices().values(), strict=True)
        ),
    )


def _error(values: np.ndarray) -> ErrorSummary:
    return ErrorSummary(mean=float(values.mean()), q99=float(np.quantile(values, 0.99)), max=float(values.max()))


def purpose_of(representation: Part, chunk: int, method: Method, fingerprint: str) -> CodecPurpose:
    """What a codec of this representation is fitted for."""
    options = {"name": representation.name, **to_dict(representation.config)}
    return CodecPurpose(representation=options, chunk=chunk, normalization=method, fingerprint=fingerprint)


def needs_fit(representation: Part, chunk: int, space: ActionSpace) -> bool:
    """Whether this representation learns something from data before a policy can."""
    return representation.target.kind == "tokens" and not representation.build(chunk, space).fitted


def load_codec_report(folder: Path) -> CodecReport:
    """The report of a fitted codec. Raises CodecError if there is none."""
    again = "run anyvla data fit-codec RECIPE"
    path = folder / REPORT
    if not path.is_file():
        raise CodecError(f"there is no fitted codec at {folder}: {again}, which fits it to the recipe's data")
    try:
        return build(CodecReport, read_object(path))
    except ValueError as error:
        raise CodecError(f"{path} is no report of a codec, or a damaged one: {again} again") from error


def check_codec(
    folder: Path, representation: Part, chunk: int, space: ActionSpace, method: Method, fingerprint: str | None
) -> None:
    """Refuse to train with the codec in `folder` if it was fitted for something else.

    `fingerprint`: of the data; None for a run that resumes, whose data was compared with that of its checkpoint.
    Representations without a codec, and codecs that learn nothing from data, need no folder. Raises CodecError that
    says what differs, and the command that mends it.
    """
    if representation.target.kind == "continuous":
        return
    if not needs_fit(representation, chunk, space):
        return
    then = load_codec_report(folder).purpose
    now = purpose_of(representation, chunk, method, then.fingerprint if fingerprint is None else fingerprint)
    differing = [
        f"{what} ({old} there, {new} now)"
        for what, old, new in (
            ("representation", _shown(then.representation), _shown(now.representation)),
            ("chunk", then.chunk, now.chunk),
            ("normalization.action", then.normalization, now.normalization),
            ("data", then.fingerprint[:12], now.fingerprint[:12]),
        )
        if old != new
    ]
    if differing:
        raise CodecError(
            f"the codec at {folder} was fitted for something else; it differs in {'; '.join(differing)}: fit it again "
            f"with anyvla data fit-codec RECIPE --out {folder.parent}"
        )


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in options.items())
