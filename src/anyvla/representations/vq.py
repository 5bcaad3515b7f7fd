"""VQ: a chunk is a few tokens, each a finer correction of what those before it say.

An autoencoder whose latent is the sum of one code out of each of Q codebooks, every one fitted to what the earlier ones
left over: residual vector quantization (Lee et al., arXiv 2203.01941, eq. 3; over action chunks: VQ-BeT, arXiv
2403.03181, section 3.2). `vector-quantize-pytorch` fits the codebooks; a fitted codec does without it.
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
from anyvla.files import weights
from anyvla.limits import COUNT, WEIGHT, WIDTH
from anyvla.representations.codec import Codec, CodecError
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.space import ActionSpace

FILE = "vq.safetensors"
SIDES = ("encoder", "decoder")
LAYERS = 3  # linear ones of each side's network
FIRST = 16  # chunks per code that k-means starts the codebooks from
DEAD = 0.1  # of a code's fair share of chunks: one that is nearest to fewer moves to a chunk
AT_ONCE = 1024  # chunks whose facts are taken at a time


class VQCodec(Codec):
    """Chunks (N, A) as T = `quantizers` tokens, coarse ones first; token t is a code of codebook t, V = `codebook`.

    Every sequence of T ids is valid. What it learned lies in its folder and, as plain float64 tensors on the CPU, in
    this object: an optimizer, an average of weights, a cast or another device cannot change a token.
    """

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `representation: {name: vq}`."""

        quantizers: int = Field(default=4, ge=1, le=64)  # T
        codebook: int = Field(default=256, ge=2, le=2**16)  # V, codes of each quantizer
        latent: int = Field(default=32, ge=1, le=WIDTH)  # numbers of a code
        hidden: int = Field(default=256, ge=1, le=WIDTH)  # width of the encoder's and the decoder's two hidden layers
        steps: int = Field(default=1000, ge=1, le=COUNT)  # of fitting
        batch: int = Field(default=256, ge=1, le=WIDTH)  # chunks a step
        lr: float = Field(default=1e-3, gt=0, le=1)  # of Adam at first; it falls to 0 along a cosine
        # weight of the encoder's distance to its code (arXiv 1711.00937)
        commitment: float = Field(default=1.0, ge=0, le=WEIGHT)
        decay: float = Field(default=0.99, ge=0, lt=1)  # of the codes, running means of what was nearest to them

    def __init__(self, config: Config, chunk: int, space: ActionSpace, assets: Path | None = None) -> None:
        """Raises CodecError for assets that are not those of this configuration, chunk and action space."""
        super().__init__(chunk, space)
        self.config = config
        self.size, self.length = config.codebook, config.quantizers
        self._learned: dict[str, Float64[Tensor, "..."]] = {}
        if assets is not None:
            self._learn(_load(assets / FILE, self._shapes()))

    @property
    def fitted(self) -> bool:
        return bool(self._learned)

    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Train on the CPU: L1 distance of chunks plus commitment. Raises ImportError without the extra `vq`, and
        CodecError for other chunks.
        """
        _check(chunks, self.chunk, self.space.size)
        x = chunks.detach().cpu().float().clamp(-1, 1)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # the library draws from PyTorch's own
            torch.manual_seed(seed)
            self._learn(_train(self.config, x))
        return self._facts(x)

    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M T"]:
        """The nearest code of each codebook to what is left; missing actions hold the last one."""
        self.check_fitted()
        x = pad_with_last_action(chunks.detach(), mask).cpu().double().clamp(-1, 1) - self._learned["mean"]
        left = _run(self._learned, "encoder", x.flatten(1))  # (M, latent)
        tokens = torch.zeros(len(x), self.length, dtype=torch.int64)
        for place, codes in enumerate(self._learned["codes"]):
            distance = codes.square().sum(1) - 2 * left @ codes.T  # (M, V), but for what all of a row share
            tokens[:, place] = distance.float().argmin(1)  # rounded: of equal codes the first, whatever the batch
            left = left - codes[tokens[:, place]]
        tokens = tokens.to(chunks.device)
        if mask is not None:
            tokens = tokens.masked_fill(~mask.any(1, keepdim=True), -1)
        return tokens

    def decode(self, tokens: Int64[Tensor, "M T"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Chunks of the codes' sum. From the first invalid token on, finer corrections are left out; without any valid
        one, the robot rests at the median of the data.
        """
        self.check_fitted()
        ids = tokens.cpu()
        known = ((ids >= 0) & (ids < self.size)).long().cumprod(1)  # (M, T)
        codes = self._learned["codes"][torch.arange(self.length), ids.clamp(0, self.size - 1)]  # (M, T, latent)
        chunks = _run(self._learned, "decoder", (codes * known[..., None]).sum(1)).view(-1, self.chunk, self.space.size)
        chunks = (chunks + self._learned["mean"]).clamp(-1, 1)
        chunks = torch.where(known[:, :1, None] > 0, chunks, self._learned["rest"])
        return chunks.float().to(tokens.device), ~known[:, -1].bool().to(tokens.device)

    def save(self, folder: Path) -> None:
        """Write all that was learned, float32."""
        self.check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.float().contiguous() for name, t in self._learned.items()}, folder / FILE)

    def _learn(self, tensors: Mapping[str, Float[Tensor, "..."]]) -> None:
        self._learned = {name: tensor.detach().double() for name, tensor in tensors.items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that is learned."""
        of, flat = self.config, self.chunk * self.space.size
        shapes: dict[str, tuple[int, ...]] = {
            "codes": (of.quantizers, of.codebook, of.latent),
            "mean": (self.chunk, self.space.size),
            "rest": (self.space.size,),
        }
        for side, ends in zip(SIDES, ((flat, of.latent), (of.latent, flat)), strict=True):
            shapes[f"{side}.straight"] = (ends[1], ends[0])
            widths = (ends[0], of.hidden, of.hidden, ends[1])
            for layer in range(LAYERS):
                shapes[f"{side}.{layer}.weight"] = (widths[layer + 1], widths[layer])
                shapes[f"{side}.{layer}.bias"] = (widths[layer + 1],)
        return shapes

    def _facts(self, chunks: Float[Tensor, "K N A"]) -> dict[str, Any]:
        """How much of each codebook is in use, what each further token gains, and whether grippers come out right."""
        tokens = torch.cat([self.encode(part) for part in chunks.split(AT_ONCE)])  # (K, T)
        counts = torch.stack([torch.bincount(column, minlength=self.size) for column in tokens.T]).double()  # (T, V)
        shares = counts / len(tokens)
        perplexity = torch.special.entr(shares).sum(1).exp()
        errors, right = [], 1.0
        grippers = [
            d
            for g, p in zip(self.space.groups, self.space.slices().values(), strict=True)
            if g.kind == "gripper"
            for d in range(p.start, p.stop)
        ]
        for known in range(1, self.length + 1):
            ids = tokens.masked_fill(torch.arange(self.length) >= known, -1)
            decoded = torch.cat([self.decode(part)[0] for part in ids.split(AT_ONCE)])
            errors.append(float((decoded - chunks).abs().mean()))
        if grippers:
            right = float(((decoded > 0) == (chunks > 0))[..., grippers].double().mean())
        facts: dict[str, Any] = {
            "codes_in_use": f"{_listed((counts > 0).sum(1).tolist(), 'd')} of {self.size}",
            "perplexity": _listed(perplexity.tolist(), ".0f"),
            "error_after_each_token": _listed(errors, ".2g"),
        }
        return facts | ({"gripper_on_the_right_side": right} if grippers else {})


def _train(config: VQCodec.Config, chunks: Float[Tensor, "K N A"]) -> dict[str, Tensor]:
    """Encoder, decoder and codebooks that give `chunks` back, drawing from PyTorch's own generator."""
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError as error:
        raise ImportError(
            "representation: vq is fitted by vector-quantize-pytorch: pip install 'anyvla[vq]'"
        ) from error
    mean, rest = chunks.mean(0), chunks.flatten(0, 1).median(0).values
    x = (chunks - mean).flatten(1)
    weights = _begin(_principal_axes(x, config.latent), config.hidden)
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

    def some(count: int) -> Float[Tensor, "count X"]:
        return x[torch.randint(len(x), (count,))]

    with torch.no_grad():
        quantizer(_run(weights, "encoder", some(FIRST * config.codebook))[:, None])
    optimizer = torch.optim.Adam(weights.values(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        drawn = some(config.batch)
        latent, _, commitment = quantizer(_run(weights, "encoder", drawn)[:, None])
        loss = F.l1_loss(_run(weights, "decoder", latent[:, 0]), drawn) + commitment.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return weights | {"codes": quantizer.codebooks, "mean": mean, "rest": rest}


def _begin(axes: Float[Tensor, "L X"], hidden: int) -> dict[str, Tensor]:
    """Linear maps to `axes` and back, plus networks that give zero: fitting starts from linear residual quantization,
    which a network that starts at random is long in reaching.
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


def _run(weights: Mapping[str, Tensor], side: str, x: Float[Tensor, "M X"]) -> Float[Tensor, "M Y"]:
    """The encoder or the decoder: a linear map plus a network."""
    straight = F.linear(x, weights[f"{side}.straight"])
    for layer in range(LAYERS):
        x = F.linear(F.gelu(x) if layer else x, weights[f"{side}.{layer}.weight"], weights[f"{side}.{layer}.bias"])
    return straight + x


def _principal_axes(x: Float[Tensor, "K X"], count: int) -> Float[Tensor, "L X"]:
    """The `count` directions in which centered data vary most, of length 1; zeros beyond the X there are."""
    wide = x.double()
    vectors = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T[:count]
    return F.pad(vectors, (0, 0, 0, count - len(vectors))).float()


def _listed(numbers: list[float], form: str) -> str:
    return ", ".join(format(n, form) for n in numbers)


def _check(chunks: Tensor, chunk: int, dims: int) -> None:
    if chunks.ndim != 3 or chunks.shape[1:] != (chunk, dims) or not len(chunks):
        raise CodecError(f"VQ is fitted to chunks (K, {chunk}, {dims}), K at least 1; got {tuple(chunks.shape)}")
    if not bool(torch.isfinite(chunks).all()):
        raise CodecError("VQ is fitted to finite chunks; these hold NaN or infinity: mend the data")


def _load(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What `save` wrote. Raises CodecError."""
    again = "run anyvla data fit-codec RECIPE again"
    if not path.is_file():
        raise CodecError(f"{path.parent} holds no fitted VQ ({path.name} is missing): {again}")
    try:
        with weights.opened(path) as file:
            weights.check_finite(file, path)
            learned = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except ValueError as error:
        raise CodecError(f"{error}: {again}") from None
    there = {name: tuple(tensor.shape) for name, tensor in learned.items()}
    if there != shapes:
        unlike = [f"{n} {there.get(n, 'missing')}, not {s}" for n, s in shapes.items() if there.get(n) != s]
        raise CodecError(
            f"{path} was fitted for another chunk, action space or options ({'; '.join(unlike) or 'more than one'}): "
            + again
        )
    return learned
