"""FiLM against a calculation by hand, and what the policy without language may see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.film import FilmBackbone, FilmLayer
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.config import build
from anyvla.sequence.tokens import TokenSequence
from tests.small import policy

Pack = Callable[..., TokenSequence]
SMALL: dict[str, Any] = {"width": 32, "heads": 2, "image_size": 32, "channels": [16, 16]}
TEXTS = ["open the drawer", "close the window from the left, slowly", "reach"]


def film(**options: Any) -> FilmBackbone:
    return FilmBackbone(build(FilmBackbone.Config, {**SMALL, **options})).eval()


def frames(steps: int, views: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (steps, views, 32, 32, 3), dtype=torch.uint8, generator=generator)


def read(backbone: FilmBackbone, pack: Pack, images: Tensor, texts: list[str], queries: Tensor | None = None) -> Tensor:
    if queries is None:
        queries = torch.randn(2, backbone.width, generator=torch.Generator().manual_seed(1))
    block = backbone.tokenize(images, texts)
    return backbone(pack(backbone, block, [1] * len(texts), queries.shape[-2]), queries)


def test_a_layer_scales_and_shifts_its_normalized_channels() -> None:
    layer = FilmLayer(3, 4, 3, 2, condition=5)
    x, condition = torch.randn(2, 3, 8, 8), torch.randn(2, 5)
    film = condition @ layer.film.weight.T + layer.film.bias  # scales of all channels, then shifts
    normed = layer.norm(F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=2, padding=1))
    out = layer(x, condition)
    assert out.shape == (2, 4, 4, 4)
    for item in range(2):
        for channel in range(4):
            expected = F.gelu(normed[item, channel] * (1 + film[item, channel]) + film[item, 4 + channel])
            torch.testing.assert_close(out[item, channel], expected)


def test_a_condition_of_zero_leaves_an_image_network() -> None:
    layer = FilmLayer(3, 4, 3, 1, condition=5)
    torch.nn.init.zeros_(layer.film.bias)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(layer(x, torch.zeros(1, 5)), F.gelu(layer.norm(layer.conv(x))))


def test_the_instruction_is_the_mean_of_its_words(pack: Pack) -> None:
    backbone = film()
    sequence = pack(backbone, backbone.tokenize(frames(3), TEXTS), [1] * 3, 2, padding=4)
    read_texts = backbone._read_instructions(sequence)
    for text, found in zip(TEXTS, read_texts, strict=True):
        ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(found, backbone.encoder(backbone.words.weight[ids].mean(0)))


def test_without_the_instruction_nothing_depends_on_it_and_everything_else_still_matters(pack: Pack) -> None:
    backbone, images = film(instruction=False), frames(3)
    out = read(backbone, pack, images, TEXTS)
    assert torch.equal(out, read(backbone, pack, images, TEXTS[::-1]))
    assert not torch.allclose(out, read(film(), pack, images, TEXTS), atol=1e-3)
    for changed in (images.flip(1), images.flip(2), images.flip(3)):
        assert (read(backbone, pack, changed, TEXTS) - out).abs().max() > 1e-3
    assert sum(w.numel() for w in backbone.parameters()) == sum(w.numel() for w in film().parameters())


def test_without_the_instruction_every_part_is_trained(pack: Pack) -> None:
    backbone = film(instruction=False)
    read(backbone, pack, frames(3), TEXTS).square().sum().backward()
    for part, weights in parameters_by_part(backbone).items():
        assert all(w.grad is not None for w in weights), part


def test_readouts_see_the_token_of_proprio(pack: Pack) -> None:
    backbone = film()
    queries = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1))
    other = queries.clone()
    other[1, 0] = queries[1, 0].flip(0)
    one, two = (read(backbone, pack, frames(3), TEXTS, q) for q in (queries, other))
    assert (one[1, 1] - two[1, 1]).abs().max() > 1e-3
    torch.testing.assert_close(one[[0, 2]], two[[0, 2]])


@pytest.mark.parametrize("options", [{"channels": [32, 64, 128]}, {}])
def test_it_has_about_as_many_parameters_as_nano(options: dict[str, Any]) -> None:
    sizes = [
        sum(w.numel() for w in cls(build(cls.Config, options)).parameters()) for cls in (FilmBackbone, NanoBackbone)
    ]
    assert 0.95 < sizes[0] / sizes[1] < 1.05


def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (film(seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_it_learns_which_of_two_cameras_the_instruction_names(pack: Pack) -> None:
    """As nano's test of that name: the instruction chooses the camera whose brightness is predicted."""
    backbone, generator = film(), torch.Generator().manual_seed(0)
    query, head = torch.nn.Parameter(torch.zeros(1, 32)), torch.nn.Linear(32, 1)
    optimizer = torch.optim.AdamW([*backbone.parameters(), query, *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(300):
        level, asked = (torch.randint(0, most, (32, n), generator=generator) for most, n in ((256, 2), (2, 1)))
        images = level.to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 32, 32, 3)
        texts = [f"push the {('left', 'right')[int(a)]} button" for a in asked]
        answer = head(read(backbone, pack, images, texts, query))[:, 0, 0]
        loss = (answer - (level.gather(1, asked)[:, 0] / 128 - 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.1  # ignoring the instruction gives 0.17, ignoring the images 0.33


def test_the_images_of_too_many_cameras_are_refused(pack: Pack) -> None:
    with pytest.raises(ValueError, match="film reads 8 cameras at most, and the step has 9"):
        read(film(), pack, frames(1, views=9), TEXTS[:1])
    backbone = film()
    with pytest.raises(ValueError, match="film reads one step in a sequence"):
        backbone(pack(backbone, backbone.tokenize(frames(2), TEXTS[:2]), [2], 1), torch.zeros(1, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 must be a multiple of heads (4)"),
        ({"image_size": 100}, "image_size 100 must be a multiple of the stem's stride, 16"),
        ({"layers": 1}, "FilmBackbone has no option layers"),
        ({"pretrained": "none"}, "FilmBackbone has no option pretrained"),
        ({"blocs": 1}, "did you mean 'blocks'"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        FilmBackbone(build(FilmBackbone.Config, {"channels": (64, 128), **options}))
    assert message in str(caught.value)


def test_a_policy_is_saved_and_loaded_with_it(tmp_path: Path) -> None:
    from anyvla.policy import VLA

    vla = policy(backbone={"name": "film", **SMALL, "instruction": False})
    vla.save(tmp_path)
    again = VLA.load(tmp_path)
    assert isinstance(again.backbone, FilmBackbone)
    assert not again.backbone.reads_instruction
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in vla.state_dict().items())
