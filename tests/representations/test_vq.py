"""Residual vector quantization: fitting, decoding damaged tokens, and its independence of the policy afterwards."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anyvla.config import ConfigError, build
from anyvla.policy import VLA
from anyvla.representations.codec import CodecError
from anyvla.representations.vq import FILE, VQCodec
from anyvla.robot.space import ActionSpace, Group

N = 6
SPACE = ActionSpace(
    groups=(
        Group(name="hand", size=2, kind="position", mode="delta"),
        Group(name="gripper", size=1, kind="gripper", low=0, high=1),
    )
)
SMALL = {"quantizers": 3, "codebook": 32, "latent": 16, "hidden": 32, "steps": 40, "batch": 64}


def smooth(k: int, seed: int = 0) -> Tensor:
    """(K, N, A): the hand speeds up along a line; the gripper closes at some time in a third of them."""
    g = torch.Generator().manual_seed(seed)
    ends = torch.rand(k, 2, 2, generator=g) * 1.6 - 0.8
    hand = torch.lerp(ends[:, :1], ends[:, 1:], torch.linspace(0, 1, N)[:, None] ** 2)
    closing = torch.randint(-N, 2 * N, (k, 1), generator=g)
    return torch.cat([hand, torch.where(torch.arange(N) < closing, 1.0, -1.0)[..., None]], 2)


def make(folder: Path | None = None, **options: Any) -> VQCodec:
    return VQCodec(build(VQCodec.Config, SMALL | options), N, SPACE, folder)


@pytest.fixture(scope="module")
def codec() -> VQCodec:
    pytest.importorskip("vector_quantize_pytorch")
    made = make()
    made.facts = made.fit(smooth(1024), seed=1)
    return made


def errors(codec: VQCodec, chunks: Tensor, known: int | None = None) -> Tensor:
    tokens = codec.encode(chunks)
    if known is not None:
        tokens[:, known:] = -1
    return (codec.decode(tokens)[0] - chunks).abs()


def test_unseen_chunks_are_reconstructed(codec: VQCodec) -> None:
    x = smooth(256, seed=5)
    spread = (x - x.mean(0)).abs().mean()
    assert errors(codec, x).mean() < 0.15 * spread
    back, wrong = codec.decode(codec.encode(x))
    assert not wrong.any()
    assert ((back > 0) == (x > 0))[..., 2].double().mean() > 0.99


def test_each_token_is_a_finer_correction(codec: VQCodec) -> None:
    x = smooth(256, seed=6)
    one, two, three = (float(errors(codec, x, known).mean()) for known in (1, 2, 3))
    assert three < two < one < float((x - x.mean(0)).abs().mean())


def test_after_an_invalid_token_the_coarse_part_remains(codec: VQCodec) -> None:
    tokens = codec.encode(smooth(4))
    coarse, wrong = codec.decode(torch.cat([tokens[:, :1], torch.full((4, 2), -1)], 1))
    assert wrong.all()
    for bad in (-1, codec.size, 2**40):
        broken = tokens.clone()
        broken[:, 1] = bad  # later tokens are ignored
        chunks, wrong = codec.decode(broken)
        assert torch.equal(chunks, coarse)
        assert wrong.all()


def test_without_a_token_the_robot_rests_at_the_median(codec: VQCodec) -> None:
    chunks, wrong = codec.decode(torch.full((2, 3), -1))
    assert wrong.all()
    torch.testing.assert_close(chunks, smooth(1024).flatten(0, 1).median(0).values.expand(2, N, 3))


def test_it_chooses_the_same_codes_as_the_library(codec: VQCodec) -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    vq = library.ResidualVQ(dim=16, num_quantizers=3, codebook_size=32).eval()
    learned = codec._learned
    for layer, codes in zip(vq.layers, learned["codes"].float(), strict=True):
        layer.codebook = codes
    x = smooth(200, seed=7)
    latent = (x - learned["mean"].float()).flatten(1)
    straight = latent @ learned["encoder.straight"].float().T
    for number in range(3):
        layer_in = nn.functional.gelu(latent) if number else latent
        latent = layer_in @ learned[f"encoder.{number}.weight"].float().T + learned[f"encoder.{number}.bias"].float()
    with torch.no_grad():
        theirs = vq((straight + latent)[:, None])[1][:, 0]
    assert (theirs == codec.encode(x)).double().mean() > 0.99  # theirs are float32: a near tie may fall otherwise


def test_facts_report_the_use_of_the_codebooks(codec: VQCodec) -> None:
    facts = codec.facts
    assert facts.keys() == {
        "codes_in_use",
        "perplexity",
        "error_after_each_token",
        "gripper_on_the_right_side",
    }
    used, _, of = facts["codes_in_use"].partition(" of ")
    assert of == "32"
    assert min(map(int, used.split(", "))) > 24
    assert min(map(int, facts["perplexity"].split(", "))) > 12
    first, *_, last = map(float, facts["error_after_each_token"].split(", "))
    assert last < first
    assert facts["gripper_on_the_right_side"] > 0.99


def test_the_facts_of_a_fit_by_hand(codec: VQCodec) -> None:
    x = smooth(1024)
    tokens = codec.encode(x)
    used, perplexity, error = [], [], []
    for place in range(3):
        _, counts = np.unique(tokens[:, place], return_counts=True)
        used.append(len(counts))
        share = counts / counts.sum()
        perplexity.append(f"{np.exp(-(share * np.log(share)).sum()):.0f}")
        coarse = torch.where(torch.arange(3) <= place, tokens, -1)
        error.append(f"{(codec.decode(coarse)[0] - x).abs().mean().item():.2g}")
    right = ((codec.decode(tokens)[0] > 0) == (x > 0))[..., 2].double().mean().item()
    assert codec.facts == {
        "codes_in_use": f"{', '.join(map(str, used))} of 32",
        "perplexity": ", ".join(perplexity),
        "error_after_each_token": ", ".join(error),
        "gripper_on_the_right_side": pytest.approx(right),
    }


def test_training_casting_and_averaging_a_policy_do_not_change_it(codec: VQCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    mine = make(tmp_path)
    policy = nn.ModuleDict({"codec": mine, "head": nn.Linear(2, 2)})
    assert not list(mine.parameters())
    assert not mine.state_dict()
    x = smooth(64, seed=8)
    policy.train().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = [mine.encode(x) for _ in range(3)]
        chunks = mine.decode(tokens[0])[0]
    assert all(torch.equal(t, codec.encode(x)) for t in tokens)
    assert torch.equal(chunks, codec.decode(tokens[0])[0])
    assert chunks.dtype == torch.float32


def test_fitting_depends_on_its_seed_only_and_keeps_the_random_state() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    x = smooth(100)
    state = torch.get_rng_state()
    one, two, other = (make(steps=2) for _ in range(3))
    one.fit(x, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    with torch.no_grad():
        two.fit(x, seed=3)
    other.fit(x, seed=4)
    for name, tensor in one._learned.items():
        assert torch.equal(tensor, two._learned[name]), name
        assert not tensor.requires_grad
    assert not torch.equal(one._learned["codes"], other._learned["codes"])


def network(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """A straight map beside three layers with GELU between them."""
    hidden = nn.functional.gelu(x @ weights["0.weight"].T + weights["0.bias"])
    hidden = nn.functional.gelu(hidden @ weights["1.weight"].T + weights["1.bias"])
    return x @ weights["straight"].T + hidden @ weights["2.weight"].T + weights["2.bias"]


def test_a_fit_is_adam_on_the_distance_and_the_commitment_with_a_falling_rate() -> None:
    """Against a loop written by hand, with the library's codebooks."""
    library = pytest.importorskip("vector_quantize_pytorch")
    chunks, steps, lr = smooth(80), 4, 0.02
    made = make(steps=steps, lr=lr, commitment=3.0, decay=0.1, batch=16, codebook=16, latent=5)
    made.fit(chunks, seed=11)

    torch.manual_seed(11)
    x = (chunks - chunks.mean(0)).flatten(1)
    ascending = torch.linalg.eigh(x.double().T @ x.double()).eigenvectors  # columns: the most variance is the last
    axes = ascending.T.flip(0)
    sides = []
    for straight in (axes[:5].float(), axes[:5].T.float()):
        layers = [nn.Linear(straight.shape[1], 32), nn.Linear(32, 32), nn.Linear(32, straight.shape[0])]
        nn.init.zeros_(layers[2].weight)
        nn.init.zeros_(layers[2].bias)
        weights = {f"{i}.{part}": getattr(layer, part) for i, layer in enumerate(layers) for part in ("weight", "bias")}
        sides.append(weights | {"straight": straight.clone().requires_grad_()})
    encoder, decoder = sides
    quantizer = library.ResidualVQ(
        dim=5, num_quantizers=3, codebook_size=16, kmeans_init=True, decay=0.1, commitment_weight=3.0,
        rotation_trick=False, threshold_ema_dead_code=0.1 * 16 / 16,  # a tenth of a code's share of a batch
    )  # fmt: skip
    with torch.no_grad():
        quantizer(network(encoder, x[torch.randint(80, (16 * 16,))])[:, None])
    adam = torch.optim.Adam([*encoder.values(), *decoder.values()])
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        batch = x[torch.randint(80, (16,))]
        latent, _, commitment = quantizer(network(encoder, batch)[:, None])
        loss = (network(decoder, latent[:, 0]) - batch).abs().mean() + commitment.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    back = network(decoder, quantizer(network(encoder, x)[:, None])[0][:, 0]) + chunks.mean(0).flatten()
    torch.testing.assert_close(
        made.decode(made.encode(chunks))[0], back.view(chunks.shape).detach().clamp(-1, 1), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("count", [1, 3])
def test_data_that_hardly_vary_are_fitted(count: int) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    x = smooth(count).repeat(50, 1, 1)
    made = make(steps=5)
    made.fit(x)
    assert errors(made, x).max() < 0.05
    assert torch.equal(made.encode(x), torch.cat([made.encode(row[None]) for row in x]))


def test_a_latent_may_be_wider_or_narrower_than_a_chunk() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    for latent in (1, 2 * N * SPACE.size):
        made = make(steps=2, latent=latent)
        made.fit(smooth(64))
        assert errors(made, smooth(64)).isfinite().all()


def test_long_windows_of_chunks_fit_in_one_call(codec: VQCodec) -> None:
    assert codec.encode(smooth(5000)).shape == (5000, 3)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (torch.zeros(5, N, 4), r"VQCodec is fitted to chunks \(K, 6, 3\), K at least 1; got \(5, 6, 4\)"),
        (torch.zeros(0, N, 3), "K at least 1"),
        (torch.full((5, N, 3), torch.nan), "NaN or infinity: fix the data"),
    ],
)
def test_other_chunks_are_refused(chunks: Tensor, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        make().fit(chunks)


def test_without_the_package_only_fitting_fails_and_names_the_extra(
    codec: VQCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec.save(tmp_path)
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install 'anyvla\[vq\]'"):
        make().fit(smooth(8))
    again = make(tmp_path)
    assert torch.equal(again.encode(smooth(8)), codec.encode(smooth(8)))


def test_a_folder_of_other_shapes_is_refused_with_the_difference(codec: VQCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    with pytest.raises(CodecError, match=r"codes \(3, 32, 16\), not \(3, 64, 16\).*fit-codec RECIPE again"):
        make(tmp_path, codebook=64)
    with pytest.raises(CodecError, match=r"mean \(6, 3\), not \(9, 3\)"):
        VQCodec(codec.config, 9, SPACE, tmp_path)


def test_a_missing_or_damaged_file_is_refused(codec: VQCodec, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"vq.safetensors is missing.*fit-codec RECIPE again"):
        make(tmp_path)
    codec.save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    with pytest.raises(CodecError, match=r"cannot be read.*fit-codec RECIPE again"):
        make(tmp_path)


def test_the_defaults_are_the_documented_ones() -> None:
    usual = {"quantizers": 4, "codebook": 256, "latent": 32, "hidden": 256, "steps": 1000, "batch": 256}
    assert vars(VQCodec.Config()) == usual | {"lr": 1e-3, "commitment": 1.0, "decay": 0.99}


def test_options_out_of_range_are_refused() -> None:
    for bad in ({"quantizers": 0}, {"codebook": 1}, {"lr": 0}, {"decay": 1.0}, {"groups": 2}):
        with pytest.raises(ConfigError):
            build(VQCodec.Config, bad)


def test_a_checkpoint_contains_it(tmp_path: Path) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    from tests.small import fit_codec, policy

    few = {"name": "vq", "codebook": 16, "quantizers": 2, "steps": 5}
    vla = policy(decoder="tokens", representation=few, codec=fit_codec(few, tmp_path / "codec"))
    vla.save(tmp_path / "checkpoint")
    again = VLA.load(tmp_path / "checkpoint")
    assert vla.codec is not None
    assert again.codec is not None
    x = torch.rand(8, 4, 4) * 2 - 1
    tokens = vla.codec.encode(x)
    assert torch.equal(again.codec.encode(x), tokens)
    assert torch.equal(again.codec.decode(tokens)[0], vla.codec.decode(tokens)[0])
