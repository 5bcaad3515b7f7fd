"""Idefics 1 through AutoBackbone: images are outside the sequence, and each step reads its own images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.families.vision.inputs import SequenceImages, feed_beside
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import TokenSequence
from tests.backbones.families.common import write_family
from tests.backbones.families.crossing import FAMILIES

TEXTS = ["open", "close the drawer", "push"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(FAMILIES["idefics"], tmp_path_factory.mktemp("idefics1"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> AutoBackbone:
    return AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="do {instruction}")).eval()


def frames(steps: int, views: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (steps, views, 28, 28, 3), dtype=torch.uint8, generator=generator)


def sequence_of(backbone: AutoBackbone, images: torch.Tensor, groups: list[int], r: int = 1) -> TokenSequence:
    block = backbone.tokenize(images, TEXTS[: len(images)])
    return lay_out(block, groups, r, pad_id=backbone.pad_id, query_id=backbone.query_id)


def queries(backbone: AutoBackbone) -> torch.Tensor:
    return torch.randn(1, backbone.width, generator=torch.Generator().manual_seed(1)) * 0.2


def test_each_position_reads_the_images_of_its_step(backbone: AutoBackbone) -> None:
    sequence = sequence_of(backbone, frames(3, 2), [2, 1])
    places = backbone.get_image_mask(sequence)
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 3, 4, 4)
    given = feed_beside(SequenceImages(pixels, sequence, places, backbone.model.config))
    order, mask = given["pixel_values"][:, :, 0, 0, 0].tolist(), given["image_attention_mask"]
    assert order[0] == [0, 1, 2, 3]
    assert order[1][:2] == [4, 5]  # and two that no position reads
    for row, steps in ((0, 2), (1, 1)):
        for step in range(steps):
            own = (sequence.step_ids[row] == step).nonzero()[:, 0].tolist()
            first, second = (p for p in own if places[row, p])
            for place in own:
                cameras = [place >= first and place < second, place >= second]
                if place > second:  # text and queries
                    cameras = [True, True]
                expected = [0] * 4
                expected[2 * step : 2 * step + 2] = map(int, cameras)
                assert mask[row, place].tolist() == expected, (row, step, place - own[0])
    assert not mask[sequence.step_ids < 0].any()


@torch.no_grad()
def test_with_one_camera_it_computes_the_same_as_the_original(folder: Path, backbone: AutoBackbone) -> None:
    """The original processor lets each token read the latest image, from its placeholder on."""
    sequence = sequence_of(backbone, frames(2, 1), [2], r=0)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    latest = backbone.get_image_mask(sequence).cumsum(1)
    mask = (latest[:, :, None] == torch.arange(1, 3)).long()
    # The token that opens the second image belongs to the second step and reads no image here; the original reads one.
    opens = (sequence.step_ids == 1).nonzero()[0, 1]
    mask[0, opens] = 0
    pixels = backbone.pixels(sequence.images.flatten(0, 1))[None]
    expected = model.model(input_ids=sequence.input_ids, pixel_values=pixels, image_attention_mask=mask)
    with backbone.capture_hidden_states() as hidden:
        backbone.run_model(sequence, None)
    torch.testing.assert_close(hidden[0], expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_steps_are_causal_and_a_hidden_one_changes_nothing(backbone: AutoBackbone) -> None:
    images, query = frames(3, 2), queries(backbone)
    other = images.clone()
    other[0] = frames(1, 2, seed=5)[0]
    later = images.clone()
    later[1] = frames(1, 2, seed=6)[0]
    sequence = sequence_of(backbone, images, [2, 1])
    number = sequence.step_ids

    def read(images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return backbone(dataclasses.replace(sequence, images=images, block_mask=mask), query)

    change = (read(other) - read(images)).abs().amax((1, 2))
    assert (change[:2] > 1e-3).all(), "steps read those before them"
    assert change[2] < 1e-5, "sequences do not"
    change = (read(later) - read(images)).abs().amax((1, 2))
    assert change[0] < 1e-5, "no step reads later ones"
    assert change[1] > 1e-3
    hidden = ~((number[:, :, None] == 1) & (number[:, None] == 0))
    change = (read(other, hidden) - read(images, hidden)).abs().amax((1, 2))
    assert change[0] > 1e-3
    assert (change[1:] < 1e-5).all()


def test_it_has_no_cache(backbone: AutoBackbone) -> None:
    assert backbone.capabilities == {"interleave", "block_mask", "continue", "lm_head"}
