from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlavaForConditionalGeneration

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.nano.backbone import TOKENIZER, NanoBackbone
from anyvla.backbones.nano_vision import NanoVisionConfig, NanoVisionModel
from anyvla.config import build, to_dict
from anyvla.registry import backbones
from anyvla.sequence.tokens import TokenSequence as Sequence

Pack = Callable[..., Sequence]
TEXTS = ["open the drawer", "close the window from the left", "reach"]
tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def nano() -> NanoBackbone:
    return NanoBackbone(NanoBackbone.Config()).eval()


def frames(steps: int, views: int = 2, size: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (steps, views, size, size, 3), dtype=torch.uint8, generator=generator)


def read(backbone: AutoBackbone, pack: Pack, images: torch.Tensor, texts: list[str], groups: list[int]) -> torch.Tensor:
    query = torch.randn(2, backbone.width, generator=torch.Generator().manual_seed(1))
    return backbone(pack(backbone, backbone.tokenize(images, texts), groups, 2), query)


def test_a_sequence_is_bos_images_text(nano: NanoBackbone) -> None:
    block = nano.tokenize(frames(1), ["open the drawer"])
    assert list(block.prefix) == [tokenizer.bos_token_id]
    assert nano.image_tokens == 36
    assert list(block.tokens[0][:72]) == [tokenizer.image_token_id] * 72
    assert tokenizer.decode(block.tokens[0][72:]) == "\nopen the drawer"


def test_a_saved_nano_is_a_transformers_model(nano: NanoBackbone, pack: Pack, tmp_path: Path) -> None:
    nano.model.save_pretrained(tmp_path)
    nano.save_assets(tmp_path)
    again = AutoBackbone(AutoBackbone.Config(path=str(tmp_path), prompt="{instruction}")).eval()
    # Equal up to rounding: the last layer of a nano runs at the queries only.
    ours, theirs = (read(b, pack, frames(3), TEXTS, [1, 1, 1]) for b in (nano, again))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    gradients = dict(again.named_parameters())
    for name, weight in nano.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, atol=1e-4, rtol=1e-4)
    nano.zero_grad()
    whole, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(whole, LlavaForConditionalGeneration)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    rebuilt = NanoBackbone(NanoBackbone.Config(), assets=tmp_path).eval()
    rebuilt.load_state_dict(nano.state_dict())
    assert torch.equal(read(nano, pack, frames(1), ["x"], [1]), read(rebuilt, pack, frames(1), ["x"], [1]))


def test_default_sizes_are_as_documented() -> None:
    config = to_dict(NanoBackbone.Config())
    sizes = {"width": 192, "layers": 2, "heads": 6, "mlp": 512, "image_size": 96, "channels": (64, 128)}
    assert {name: config[name] for name in sizes} == {**sizes, "channels": config["channels"]}
    assert tuple(config["channels"]) == sizes["channels"]
    assert (config["context"], config["prompt"], config["seed"]) == (4096, "{instruction}", 0)


def test_initial_weights_of_the_language_model_have_the_documented_spread(nano: NanoBackbone) -> None:
    for name in ("q_proj", "o_proj"):
        weight = nano.model.model.language_model.layers[0].self_attn.get_submodule(name).weight
        assert 0.95 < weight.std() * 192**0.5 < 1.05
    assert nano.lm_head is not None
    assert nano.lm_head.weight is nano.embedding.weight  # tied


def test_pixels_are_between_minus_one_and_one_and_scaled_bilinearly(nano: NanoBackbone) -> None:
    image = torch.randint(0, 256, (1, 40, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scaled = np.asarray(Image.fromarray(image[0].numpy()).resize((96, 96), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(scaled / 127.5 - 1).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(nano.pixels(image), expected, atol=1.01 / 127.5, rtol=0)
    assert (nano.pixels(image) - expected).abs().mean() < 1e-3


def test_position_embeddings_are_waves_of_row_and_column() -> None:
    """Waves of half to eight periods over the image, sines before cosines, rows before columns."""
    side, width = 3, 16
    expected = torch.zeros(side * side, width)
    for row in range(side):
        for column in range(side):
            numbers = []
            for at in (row, column):
                angles = [math.pi * at / side * 2 ** (4 * wave / 4) for wave in range(4)]
                numbers += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected[row * side + column] = torch.tensor(numbers)
    config = NanoVisionConfig(image_size=12, channels=(), hidden_size=width)
    torch.testing.assert_close(NanoVisionModel(config).position.detach(), expected, atol=1e-5, rtol=1e-5)


def test_steps_may_share_a_sequence(nano: NanoBackbone, pack: Pack) -> None:
    out = read(nano, pack, frames(3), TEXTS, [3])
    alone = read(nano, pack, frames(3)[:1], TEXTS[:1], [1])
    torch.testing.assert_close(out[:1], alone, atol=1e-5, rtol=1e-5)


def test_cameras_and_positions_in_an_image_are_distinguished(nano: NanoBackbone, pack: Pack) -> None:
    images = frames(1)
    reference = read(nano, pack, images, TEXTS[:1], [1])
    for changed in (images.flip(1), images.flip(2), images.flip(3)):
        assert (read(nano, pack, changed, TEXTS[:1], [1]) - reference).abs().max() > 1e-3


def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = (NanoBackbone(NanoBackbone.Config(seed=s)).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_it_learns_which_of_two_cameras_the_instruction_names(pack: Pack) -> None:
    """The instruction chooses the camera whose brightness is predicted, so both modalities are needed."""
    config = NanoBackbone.Config(width=48, heads=2, mlp=96, image_size=32, channels=(16, 32))
    nano = NanoBackbone(config)
    generator = torch.Generator().manual_seed(0)
    query = torch.nn.Parameter(torch.zeros(1, nano.width))
    head = torch.nn.Linear(nano.width, 1)
    optimizer = torch.optim.AdamW([*nano.parameters(), query, *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(300):
        level = torch.randint(0, 256, (32, 2), generator=generator)
        asked = torch.randint(0, 2, (32,), generator=generator)
        images = level.to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 32, 32, 3)
        block = nano.tokenize(images, ["push the left button" if a == 0 else "push the right button" for a in asked])
        answer = head(nano(pack(nano, block, [1] * 32), query))[:, 0, 0]
        wanted = level.gather(1, asked[:, None])[:, 0] / 128 - 1
        loss = (answer - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.1  # ignoring the instruction gives 0.17, ignoring the images 0.33


@given(st.text())
def test_the_tokenizer_decodes_any_text_unchanged(text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_tokenizer_is_small_and_has_words_of_robotics() -> None:
    assert (TOKENIZER / "tokenizer.json").stat().st_size <= 150_000
    assert 1000 <= len(tokenizer) <= 2000
    assert len(tokenizer("open the drawer", add_special_tokens=False)["input_ids"]) == 3
    special = [tokenizer.image_token_id, tokenizer.query_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert len({*special, tokenizer.pad_token_id}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 190}, "multiple of 2 x heads"),
        ({"image_size": 100}, "image_size 100 must be a multiple of the stem's stride, 16"),
        ({"layers": 0}, "'layers': Input should be greater than or equal to 1"),
        ({"prompt": "go"}, "must contain {instruction}"),
        ({"widht": 64}, "did you mean 'width'"),
    ],
)
def test_invalid_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(NanoBackbone.Config, options)
    assert message in str(caught.value)


def test_it_is_in_the_registry() -> None:
    assert backbones["nano"] is NanoBackbone
    assert backbones["auto"] is AutoBackbone
    config = NanoBackbone.Config(channels=(32,), image_size=48)
    assert build(NanoBackbone.Config, to_dict(config)) == config
