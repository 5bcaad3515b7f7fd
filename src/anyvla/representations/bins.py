"""Bins: each number of a chunk is one token, the bin that it falls into.

Tokens are ordered action by action, and token 0 is the highest bin. Mapped to the last V ids of a vocabulary, `uniform`
bins are those of OpenVLA (arXiv 2406.09246) and RoboVLMs (arXiv 2412.14058), which follow RT-2 (arXiv 2307.15818).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT
from anyvla.files.documents import read_object
from anyvla.limits import WEIGHT
from anyvla.representations.codec import Codec, CodecError, gripper_dims
from anyvla.robot.exact_table import ExactBuffers
from anyvla.robot.space import ActionSpace

FILE = "bins.json"
DIGITS = 5  # decimal places; `quantile` merges values that agree in them


class BinsCodec(ExactBuffers, Codec):
    """Chunks (N, A) as N*A tokens of V = `bins` each. Only `quantile` bins need to be fitted.

    Decoding the token of a value returns a value of the same bin. Encoding that again returns the same token, except
    for token 0 of `uniform` bins: it means 1.0 alone and decodes as token 1 does, as published.
    """

    elementwise = True
    exact = ("lower", "values", "rest")  # cast to bfloat16, most of 256 bins would be one
    lower: Float[Tensor, "A bins"]  # lower edges of the bins, ascending; each bin reaches to the next, the last to 1
    values: Float[Tensor, "A bins"]  # the decoded value of each bin
    rest: Float[Tensor, "A"]  # replaces an action that cannot be decoded

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `representation: {name: bins}`."""

        # uniform: as published; mu_law: finer near 0 (Gato, arXiv 2205.06175); quantile: equally many data in each bin
        kind: Literal["uniform", "quantile", "mu_law"] = "uniform"
        bins: int = Field(default=256, ge=2, le=2**16)  # V; `uniform` counts the edges, as published: V - 1 intervals
        mu: float = Field(default=255.0, ge=1e-6, le=WEIGHT)  # of mu_law; a larger mu is finer near 0

        def __post_init__(self) -> None:
            if self.kind == "uniform" and self.bins < 3:
                raise ValueError(
                    "uniform bins are the intervals between their edges, and 2 edges leave one bin: give bins 3 or more"
                )

    def __init__(self, config: Config, chunk: int, space: ActionSpace, assets: Path | None = None) -> None:
        """Raise CodecError for assets of another configuration or action space."""
        super().__init__(chunk, space)
        self.config = config
        self.size, self.length = config.bins, chunk * space.size
        self.fitted = config.kind != "quantile"
        table = (space.size, config.bins)
        for name, shape in (("lower", table), ("values", table), ("rest", table[:1])):
            self.register_buffer(name, torch.zeros(shape), persistent=False)  # its folder holds what it learned
        if config.kind == "uniform":
            self._set_tables(*(np.tile(table, (space.size, 1)) for table in _uniform_bins(config.bins)))
        elif config.kind == "mu_law":
            lower, values = (np.tile(table, (space.size, 1)) for table in _mu_law_bins(config.bins, config.mu))
            grippers = gripper_dims(space)
            values[grippers] = np.linspace(-1, 1, config.bins)
            lower[grippers] = _lower_edges(values[grippers])
            self._set_tables(lower, values)
        elif assets is not None:
            self._set_values(*_load(assets / FILE, space, config.bins))

    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Learn the quantiles of each dim; other bins learn nothing. Raises CodecError for chunks of another shape."""
        if self.config.kind != "quantile":
            return {}
        self.check_chunks(chunks)
        data = chunks.detach().cpu().double().clamp(-1, 1).flatten(0, 1).numpy()  # (K*N, A)
        values = np.stack([_quantile_values(column, self.size) for column in data.T])
        values[gripper_dims(self.space)] = np.linspace(-1, 1, self.size)  # a quantile might leave out open or closed
        self._set_values(values, np.median(data, axis=0))
        gaps = np.diff(values)
        return {"narrowest_bin": float(gaps.min()), "widest_bin": float(gaps.max())}

    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M L"]:
        """Return tokens, action by action; -1 for each element of a missing action."""
        self.check_fitted()
        columns = chunks.float().flatten(0, 1).T.contiguous()  # (A, M*N)
        below = torch.searchsorted(self.lower, columns, right=True).clamp(min=1)  # edges at or below: 1 .. V
        tokens = (self.size - below).T.unflatten(0, chunks.shape[:2]).flatten(1)  # (M, N*A)
        return tokens if mask is None else self.hide_missing(tokens, mask)

    def decode(self, tokens: Int64[Tensor, "M L"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Return the bins' values. From the first invalid token on, each dim keeps its last value.

        A dim without any value rests at 0 or, where fitted, at the median of the data.
        """
        self.check_fitted()
        shape = (len(tokens), self.chunk, self.space.size)
        valid = (tokens >= 0) & (tokens < self.size)  # (M, L)
        number = (self.size - 1 - tokens.clamp(0, self.size - 1)).view(shape)  # of the bin, ascending
        chunks = self.values[torch.arange(self.space.size, device=tokens.device), number]  # (M, N, A)
        known = valid.long().cumprod(1).view(shape).sum(1, keepdim=True)  # (M, 1, A): number of steps with a value
        step = torch.arange(self.chunk, device=tokens.device)[:, None]  # (N, 1)
        chunks = chunks.gather(1, torch.minimum(step, (known - 1).clamp(min=0)))
        return torch.where(known > 0, chunks, self.rest), ~valid.all(1)

    def save(self, folder: Path) -> None:
        """Write the values of quantile bins; other bins learned nothing."""
        self.check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        if self.config.kind == "quantile":
            learned = {"rest": self.rest.tolist(), "values": self.values.tolist()}
            (folder / FILE).write_text(json.dumps(learned), encoding="utf-8")

    def identity(self) -> str:
        """Return a text for the values of the tokens; unless fitted, they are the same for any dims and chunk."""
        if self.config.kind == "quantile":
            return super().identity()
        mu = f", mu {self.config.mu:g}" if self.config.kind == "mu_law" else ""
        return f"{self.size} {self.config.kind} bins{mu}"

    def _set_values(self, values: Float64[np.ndarray, "A bins"], rest: Float64[np.ndarray, "A"]) -> None:
        """Set the bins that hold the numbers nearest to each of the values, and the resting action."""
        self._set_tables(_lower_edges(values.astype(np.float32)), values)
        self.rest.copy_(torch.from_numpy(rest))
        self.fitted = True

    def _set_tables(self, lower: Float64[np.ndarray, "A bins"], values: Float64[np.ndarray, "A bins"]) -> None:
        """Set the tables. Edges are rounded up to float32, so that float32 and float64 values compare alike."""
        rounded = lower.astype(np.float32)
        up = np.where(rounded < lower, np.nextafter(rounded, np.float32(2)), rounded)
        self.lower.copy_(torch.from_numpy(up))
        self.values.copy_(torch.from_numpy(values))


def _uniform_bins(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `bins` edges from -1 to 1 and the middles between them, as published; the last bin holds 1 alone."""
    edges = np.linspace(-1, 1, bins)
    middles = (edges[:-1] + edges[1:]) / 2
    return edges, np.append(middles, middles[-1])


def _mu_law_bins(bins: int, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """Return bins of equal width in sign(x) ln(1 + mu |x|) / ln(1 + mu) (ITU-T G.711), and their middles."""
    even = np.linspace(-1, 1, bins + 1)
    edges = np.sign(even) * np.expm1(np.abs(even) * np.log1p(mu)) / mu
    edges[0], edges[-1] = -1, 1
    return edges[:-1], (edges[:-1] + edges[1:]) / 2


def _quantile_values(data: Float64[np.ndarray, "K"], bins: int) -> Float64[np.ndarray, "bins"]:
    """Return ascending values with equally many data near each.

    Repeated data (a constant, numbers clipped to an end) are one exact value; the spare values halve the widest gaps.
    """
    values = np.unique(np.round(np.quantile(data, np.linspace(0, 1, bins)), DIGITS))
    while len(values) < bins:
        gaps = np.diff(values, prepend=2 * -1 - values[0], append=2 * 1 - values[-1])  # past an end: twice as bad
        widest = int(gaps.argmax())
        if widest == 0 or widest == len(values):
            new = -1.0 if widest == 0 else 1.0
        else:
            new = (values[widest - 1] + values[widest]) / 2
        values = np.insert(values, widest, new)
    return values


def _lower_edges(values: np.ndarray) -> Float64[np.ndarray, "... bins"]:
    """Return the lower edges of bins that hold the numbers nearest to each of the ascending values."""
    wide = values.astype(np.float64)
    return np.concatenate([np.full_like(wide[..., :1], -1), (wide[..., :-1] + wide[..., 1:]) / 2], axis=-1)


def _load(path: Path, space: ActionSpace, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the values and the resting action that `save` wrote. Raises CodecError."""
    again = "run anyvla data fit-codec RECIPE again"
    if not path.is_file():
        raise CodecError(f"{path.parent} holds no fitted quantile bins ({path.name} is missing): {again}")
    try:
        learned = read_object(path)
        values, rest = np.array(learned["values"], np.float64), np.array(learned["rest"], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise CodecError(f"{path} cannot be read ({error!r}): {again}") from None
    if values.shape != (space.size, bins) or rest.shape != (space.size,):
        dims, found = values.shape if values.ndim == 2 else ("?", "?")
        raise CodecError(
            f"{path} holds {found} bins of {dims} dims; the recipe has {bins} bins and its actions {space.size} dims: "
            + again
        )
    if (np.diff(values) < 0).any() or max(np.abs(values).max(), np.abs(rest).max()) > 1:
        raise CodecError(f"{path} holds bins that do not rise from -1 to 1: {again}")
    return values, rest
