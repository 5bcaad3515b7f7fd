"""The report of a fitted codec, `report.json` in its folder: its round-trip error, and the actions it was fitted to.

A codec fitted to other data, chunks or scaling decodes worse without an error, so training calls `check_codec` first.
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
from anyvla.migrations import migrate_codec_report
from anyvla.representations.codec import Codec, CodecError
from anyvla.robot.normalize import Method, Normalizer
from anyvla.robot.space import ActionSpace

REPORT = "report.json"
AT_ONCE = 1024  # chunks that are encoded at a time


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodecPurpose:
    """The purpose that a codec is fitted for. A codec with another purpose must not be used."""

    representation: Mapping[str, Any]  # its name and options
    chunk: int  # N
    normalization: Method  # of the actions
    fingerprint: str  # of the data


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ErrorSummary:
    """Absolute differences between actions and the decoded ones."""

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
    """The results of encoding chunks and decoding them again."""

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
    length: int  # L, the most tokens of a chunk
    episodes: int  # fitted to
    held_out_episodes: int
    fitted: RoundTrip
    held_out: RoundTrip | None  # None: there is one episode only
    facts: Mapping[str, Any]  # reported by the codec's `fit`
    seconds: float  # of fitting


def measure_round_trip(
    codec: Codec,
    chunks: Float[Tensor, "K N A"],
    mask: Bool[Tensor, "K N"],
    normalizer: Normalizer,
    robots: Int64[Tensor, "K"],
) -> RoundTrip:
    """Encode and decode whole chunks. Return the errors where `mask` is True, in dims that the chunk's robot has."""
    decoded, lengths, invalid = [], [], 0
    with torch.inference_mode():
        for part in chunks.split(AT_ONCE):
            tokens = codec.encode(part)
            chunk, wrong = codec.decode(tokens)
            decoded.append(chunk)
            lengths.append((tokens >= 0).sum(1))
            invalid += int(wrong.sum())
    result = torch.cat(decoded)
    normalized = (result - chunks).abs().double().numpy()
    robot = (normalizer.denormalize(result, robots) - normalizer.denormalize(chunks, robots)).abs().double().numpy()
    valid = (mask[..., None] & normalizer.known[robots][:, None]).numpy()  # (K, N, A)

    def summarize(error: np.ndarray, dims: slice) -> ErrorSummary:
        values = error[..., dims][valid[..., dims]]
        return ErrorSummary(mean=float(values.mean()), q99=float(np.quantile(values, 0.99)), max=float(values.max()))

    space, length = codec.space, torch.cat(lengths).double()
    return RoundTrip(
        chunks=len(chunks),
        tokens_mean=float(length.mean()),
        tokens_max=int(length.max()),
        compression=chunks[0].numel() / float(length.mean()),
        invalid=invalid,
        errors=tuple(
            GroupError(group=g.name, unit=g.unit, normalized=summarize(normalized, p), robot=summarize(robot, p))
            for g, p in zip(space.groups, space.slices().values(), strict=True)
        ),
    )


def purpose_of(representation: Part, chunk: int, method: Method, fingerprint: str) -> CodecPurpose:
    """Return the purpose of a codec of this representation."""
    options = {"name": representation.name, **to_dict(representation.config)}
    return CodecPurpose(representation=options, chunk=chunk, normalization=method, fingerprint=fingerprint)


def needs_fit(representation: Part, chunk: int, space: ActionSpace) -> bool:
    """Return whether this representation must be fitted to data before a policy is trained."""
    return representation.target.kind == "tokens" and not representation.build(chunk, space).fitted


def load_codec_report(folder: Path) -> CodecReport:
    """Read the report of a fitted codec. Raises CodecError if there is none."""
    again = "run anyvla data fit-codec RECIPE"
    path = folder / REPORT
    if not path.is_file():
        raise CodecError(f"there is no fitted codec at {folder}: {again}, which fits it to the recipe's data")
    try:
        return build(CodecReport, migrate_codec_report(read_object(path)))
    except ValueError as error:
        raise CodecError(f"{path} is no report of a codec, or a damaged one: {again} again") from error


def check_codec(
    folder: Path, representation: Part, chunk: int, space: ActionSpace, method: Method, fingerprint: str | None
) -> None:
    """Raise CodecError if the codec in `folder` was fitted for something else.

    `fingerprint`: of the data; None for a run that resumes, whose data was compared with the checkpoint's. Only codecs
    that learn from data need the folder.
    """
    if not needs_fit(representation, chunk, space):
        return
    then = load_codec_report(folder).purpose
    now = purpose_of(representation, chunk, method, then.fingerprint if fingerprint is None else fingerprint)
    differing = [
        f"{what} ({old} there, {new} now)"
        for what, old, new in (
            ("representation", _format_options(then.representation), _format_options(now.representation)),
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


def _format_options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in options.items())
