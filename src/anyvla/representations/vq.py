"""VQ: a chunk is a few tokens, each a finer correction of those before it.

An autoencoder whose latent is the sum of one code from each of Q codebooks, each fitted to the residual of the earlier
ones (arXiv 2203.01941, eq. 3; over action chunks: VQ-BeT, arXiv 2403.03181, section 3.2). `vector-quantize-pytorch`
fits the codebooks; a fitted codec does without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.config import STRICT
from anyvla.files import tensor_files, weights
from anyvla.limits import COUNT, WEIGHT, WIDTH
from anyvla.representations.codec import Codec, CodecError, gripper_dims
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.space import ActionSpace
from anyvla.transfer import send

FILE = "vq.safetensors"
SIDES = ("encoder", "decoder")
LAYERS = 3  # linear ones of each side's network
FIRST = 16  # chunks per code, from which k-means initializes the codebooks
DEAD = 0.1  # a code that is nearest to less than this share of its fair number of chunks moves to a chunk
AT_ONCE = 1024  # chunks that are encoded at a time


class VQCodec(Codec):
    """Chunks (N, A) as L = `quantizers` tokens, coarse ones first; token t is a code of codebook t, V = `codebook`.

    Every sequence of L ids is valid. The learned tensors are in its folder and, as plain float64 tensors on the CPU, in
    this object: an optimizer, an average of weights, a cast or another device cannot change a token.
    """

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `representation: {name: vq}`."""

        quantizers: int = Field(default=4, ge=1, le=64)  # L
        codebook: int = Field(default=256, ge=2, le=2**16)  # V, codes of each quantizer
        latent: int = Field(default=32, ge=1, le=WIDTH)  # numbers of a code
        hidden: int = Field(default=256, ge=1, le=WIDTH)  # width of the encoder's and the decoder's two hidden layers
        steps: int = Field(default=1000, ge=1, le=COUNT)  # of fitting
        batch: int = Field(default=256, ge=1, le=WIDTH)  # chunks a step
        lr: float = Field(default=1e-3, gt=0, le=1)  # of Adam at the start; it falls to 0 along a cosine
        # weight of the encoder's distance to its code (arXiv 1711.00937)
        commitment: float = Field(default=1.0, ge=0, le=WEIGHT)
        decay: float = Field(default=0.99, ge=0, lt=1)  # of the codes, running means of their latents

    def __init__(self, config: Config, chunk: int, space: ActionSpace, assets: Path | None = None) -> None:
        """Raise CodecError for assets of another configuration, chunk or action space."""
        super().__init__(chunk, space)
        self.config = config
        self.size, self.length = config.codebook, config.quantizers
        self._learned: dict[str, Float64[Tensor, "..."]] = {}
        if assets is not None:
            self._set_learned(_load(assets / FILE, self._shapes()))

    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Train on the CPU, on the L1 distance of chunks plus commitment.

        Raises ImportError without the extra `vq`, CodecError for chunks of another shape.
        """
        self.check_chunks(chunks)
        x = chunks.detach().cpu().float().clamp(-1, 1)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # the library uses PyTorch's generator
            torch.manual_seed(seed)
            self._set_learned(_train(self.config, x))
        return self._describe_fit(x)

    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M L"]:
        """Return the nearest code of each codebook to the residual; missing actions are padded with the last one."""
        self.check_fitted()
        x = pad_with_last_action(chunks.detach(), mask).cpu().double().clamp(-1, 1) - self._learned["mean"]
        residual = _apply_network(self._learned, "encoder", x.flatten(1))  # (M, latent)
        tokens = torch.zeros(len(x), self.length, dtype=torch.int64)
        for position, codes in enumerate(self._learned["codes"]):
            distance = codes.square().sum(1) - 2 * residual @ codes.T  # (M, V), without the term that a row shares
            tokens[:, position] = distance.float().argmin(1)  # rounded: the first of equal codes in any batch
            residual = residual - codes[tokens[:, position]]
        tokens = tokens.to(chunks.device)
        if mask is not None:
            tokens = self.hide_missing(tokens, mask)
        return tokens

    def decode(self, tokens: Int64[Tensor, "M L"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Return the chunks of the codes' sums; the first invalid token ends a sum.

        Without any valid token, the chunk rests at the median of the data.
        """
        self.check_fitted()
        ids = tokens.cpu()
        known = ((ids >= 0) & (ids < self.size)).long().cumprod(1)  # (M, L)
        codes = self._learned["codes"][torch.arange(self.length), ids.clamp(0, self.size - 1)]  # (M, L, latent)
        chunks = _apply_network(self._learned, "decoder", (codes * known[..., None]).sum(1)).view(
            -1, self.chunk, self.space.size
        )
        chunks = (chunks + self._learned["mean"]).clamp(-1, 1)
        chunks = torch.where(known[:, :1, None] > 0, chunks, self._learned["rest"])
        return send(chunks.float(), tokens.device), ~known[:, -1].bool()

    def save(self, folder: Path) -> None:
        """Write all learned tensors, float32."""
        self.check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.float().contiguous() for name, t in self._learned.items()}, folder / FILE)

    def _set_learned(self, tensors: Mapping[str, Float[Tensor, "..."]]) -> None:
        self._learned = {name: tensor.detach().double() for name, tensor in tensors.items()}
        self.fitted = True

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all learned tensors."""
        config, flat = self.config, self.chunk * self.space.size
        shapes: dict[str, tuple[int, ...]] = {
            "codes": (config.quantizers, config.codebook, config.latent),
            "mean": (self.chunk, self.space.size),
            "rest": (self.space.size,),
        }
        for side, ends in zip(SIDES, ((flat, config.latent), (config.latent, flat)), strict=True):
            shapes[f"{side}.straight"] = (ends[1], ends[0])
            widths = (ends[0], config.hidden, config.hidden, ends[1])
            for layer in range(LAYERS):
                shapes[f"{side}.{layer}.weight"] = (widths[layer + 1], widths[layer])
                shapes[f"{side}.{layer}.bias"] = (widths[layer + 1],)
        return shapes

    def _describe_fit(self, chunks: Float[Tensor, "K N A"]) -> dict[str, Any]:
        """Return how much of each codebook is in use, the error after each token, and how often grippers are right."""
        tokens = torch.cat([self.encode(part) for part in chunks.split(AT_ONCE)])  # (K, L)
        counts = torch.stack([torch.bincount(column, minlength=self.size) for column in tokens.T]).double()  # (L, V)
        shares = counts / len(tokens)
        perplexity = torch.special.entr(shares).sum(1).exp()
        errors = []
        for known in range(1, self.length + 1):
            ids = tokens.masked_fill(torch.arange(self.length) >= known, -1)
            decoded = torch.cat([self.decode(part)[0] for part in ids.split(AT_ONCE)])
            errors.append(float((decoded - chunks).abs().mean()))
        facts: dict[str, Any] = {
            "codes_in_use": f"{_join_numbers((counts > 0).sum(1).tolist(), 'd')} of {self.size}",
            "perplexity": _join_numbers(perplexity.tolist(), ".0f"),
            "error_after_each_token": _join_numbers(errors, ".2g"),
        }
        if grippers := gripper_dims(self.space):
            right = ((decoded > 0) == (chunks > 0))[..., grippers].double().mean()
            facts["gripper_on_the_right_side"] = float(right)
        return facts


def _train(config: VQCodec.Config, chunks: Float[Tensor, "K N A"]) -> dict[str, Tensor]:
    """Train encoder, decoder and codebooks to reconstruct `chunks`, with PyTorch's global generator."""
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError as error:
        raise ImportError(
            "representation: vq is fitted by vector-quantize-pytorch: pip install 'anyvla[vq]'"
        ) from error
    mean, rest = chunks.mean(0), chunks.flatten(0, 1).median(0).values
    x = (chunks - mean).flatten(1)
    weights = _initialize(_principal_axes(x, config.latent), config.hidden)
    quantizer = ResidualVQ(
        dim=config.latent,
        num_quantizers=config.quantizers,
        codebook_size=config.codebook,
        kmeans_init=True,
        decay=config.decay,
        commitment_weight=config.commitment,
        rotation_trick=False,  # straight through: no worse here, and a quarter faster
        threshold_ema_dead_code=DEAD * config.batch / config.codebook,
    )

    def sample_chunks(count: int) -> Float[Tensor, "count X"]:
        return x[torch.randint(len(x), (count,))]

    with torch.no_grad():
        quantizer(_apply_network(weights, "encoder", sample_chunks(FIRST * config.codebook))[:, None])
    optimizer = torch.optim.Adam(weights.values(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        batch = sample_chunks(config.batch)
        latent, _, commitment = quantizer(_apply_network(weights, "encoder", batch)[:, None])
        loss = F.l1_loss(_apply_network(weights, "decoder", latent[:, 0]), batch) + commitment.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return weights | {"codes": quantizer.codebooks, "mean": mean, "rest": rest}


def _initialize(axes: Float[Tensor, "axes X"], hidden: int) -> dict[str, Tensor]:
    """Return linear maps to `axes` and back, plus networks that return zero.

    So fitting starts from linear residual quantization, which takes a randomly initialized network long to reach.
    """
    weights = {}
    for side, straight in zip(SIDES, (axes, axes.T), strict=True):
        weights[f"{side}.straight"] = straight.clone()
        widths = (straight.shape[1], *[hidden] * (LAYERS - 1), straight.shape[0])
        for layer, (before, after) in enumerate(itertools.pairwise(widths)):
            linear = nn.Linear(before, after)
            last = layer == LAYERS - 1
            weights[f"{side}.{layer}.weight"] = torch.zeros(after, before) if last else linear.weight.detach()
            weights[f"{side}.{layer}.bias"] = torch.zeros(after) if last else linear.bias.detach()
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def _apply_network(weights: Mapping[str, Tensor], side: str, x: Float[Tensor, "M X"]) -> Float[Tensor, "M Y"]:
    """Apply the encoder or the decoder: a linear map plus a network."""
    straight = F.linear(x, weights[f"{side}.straight"])
    for layer in range(LAYERS):
        x = F.linear(F.gelu(x) if layer else x, weights[f"{side}.{layer}.weight"], weights[f"{side}.{layer}.bias"])
    return straight + x


def _principal_axes(x: Float[Tensor, "K X"], count: int) -> Float[Tensor, "axes X"]:
    """Return the `count` unit directions in which centered data vary most; zeros beyond the X that exist."""
    wide = x.double()
    vectors = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T[:count]
    return F.pad(vectors, (0, 0, 0, count - len(vectors))).float()


def _join_numbers(numbers: list[int] | list[float], form: str) -> str:
    return ", ".join(format(n, form) for n in numbers)


def _load(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the tensors that `save` wrote. Raises CodecError."""
    again = "run anyvla data fit-codec RECIPE again"
    if not path.is_file():
        raise CodecError(f"{path.parent} holds no fitted VQ ({path.name} is missing): {again}")
    try:
        with tensor_files.opened(path) as file:
            weights.check_finite(file, path)
            learned = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except ValueError as error:
        raise CodecError(f"{error}: {again}") from None
    found = {name: tuple(tensor.shape) for name, tensor in learned.items()}
    if found != shapes:
        unlike = [f"{n} {found.get(n, 'missing')}, not {s}" for n, s in shapes.items() if found.get(n) != s]
        raise CodecError(
            f"{path} was fitted for another chunk, action space or options ({'; '.join(unlike) or 'more than one'}): "
            + again
        )
    return learned
