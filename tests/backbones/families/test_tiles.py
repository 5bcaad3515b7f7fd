"""Tiles: any family reads a camera's image in n x n parts and as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anyvla.backbones.adapting.options import Resampler
from anyvla.backbones.auto import AutoBackbone
from anyvla.config import ConfigError, build
from anyvla.sequence.tokens import TokenSequence
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

Pack = Callable[..., TokenSequence]
TILED = ("llava", "smolvlm", "paligemma", "qwen2_5_vl")


@pytest.fixture(scope="module", params=TILED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(FAMILIES[request.param], tmp_path_factory.mktemp(f"tiled_{request.param}"))


def load(folder: Path, tiles: int = 1) -> AutoBackbone:
    image_size = FAMILIES["qwen2_5_vl"].options.get("image_size") if "qwen" in folder.name else None
    return AutoBackbone(
        AutoBackbone.Config(path=str(folder), tiles=tiles, image_size=image_size, prompt="{instruction}")
    ).eval()


def frames(steps: int, views: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (steps, views, 40, 60, 3), dtype=torch.uint8, generator=generator)


def query(backbone: AutoBackbone) -> torch.Tensor:
    return torch.randn(1, backbone.width, generator=torch.Generator().manual_seed(1))


def test_each_tile_is_read_like_an_image(folder: Path, pack: Pack) -> None:
    """The tiled model reads one image like the plain model reads five images that were cut beforehand."""
    plain, tiled = load(folder), load(folder, tiles=2)
    assert tiled.tokens_per_camera == 5 * plain.tokens_per_camera
    assert tiled.image_tokens == 5 * plain.image_tokens
    h, w = plain.pixels.size
    whole = frames(1, 1)[:, :, :, :40]
    images = torch.nn.functional.interpolate(whole[0].permute(0, 3, 1, 2), (2 * h, 2 * w)).permute(0, 2, 3, 1)
    cut = [images[:, r : r + h, c : c + w] for r in (0, h) for c in (0, w)]
    shrunk = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), (h, w), mode="bicubic", antialias=True)
    five = torch.cat([*cut, shrunk.permute(0, 2, 3, 1)])[None]
    ours = tiled(pack(tiled, tiled.tokenize(images[None], ["go"]), [1]), query(tiled))
    theirs = plain(pack(plain, plain.tokenize(five, ["go"]), [1]), query(plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("corner", range(4))
def test_every_tile_of_every_camera_is_read(folder: Path, pack: Pack, corner: int) -> None:
    backbone = load(folder, tiles=2)
    images = frames(2, 2)
    before = backbone(pack(backbone, backbone.tokenize(images, ["go", "stop"]), [1, 1]), query(backbone))
    changed = images.clone()
    rows = slice(0, 12) if corner < 2 else slice(-12, None)
    columns = slice(0, 12) if corner % 2 == 0 else slice(-12, None)
    changed[1, 1, rows, columns] = 255 - changed[1, 1, rows, columns]
    sequence = pack(backbone, backbone.tokenize(changed, ["go", "stop"]), [1, 1])
    pixels = backbone._images(sequence).pixels
    assert len(pixels) == 2 * 2 * 5
    change = (pixels - backbone._images(pack(backbone, backbone.tokenize(images, ["go", "stop"]), [1, 1])).pixels) != 0
    assert change.flatten(1).any(1).nonzero().flatten().tolist() == [15 + corner, 19]
    after = backbone(sequence, query(backbone))
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-5)
    assert (after[1] - before[1]).abs().max() > 1e-4


def test_tiles_that_exceed_the_context_are_refused(llava_folder: Path) -> None:
    backbone = load(llava_folder, tiles=4)  # 17 images of 16 tokens
    with pytest.raises(ValueError, match=r"1 cameras .* takes 27\d tokens .* context of 256: use fewer cameras"):
        backbone.tokenize(frames(1, 1), ["go"])


def test_tiles_below_one_are_refused(llava_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tiles': Input should be greater than or equal to 1 \(given: 0\)"):
        build(AutoBackbone.Config, {"path": str(llava_folder), "tiles": 0})


def test_tiles_work_after_saving_and_loading(llava_folder: Path, pack: Pack, tmp_path: Path) -> None:
    backbone = load(llava_folder, tiles=2)
    backbone.save_assets(tmp_path)
    again = AutoBackbone(AutoBackbone.Config(path="gone", tiles=2, prompt="{instruction}"), assets=tmp_path).eval()
    again.load_state_dict(backbone.state_dict())
    sequences = [pack(b, b.tokenize(frames(1, 2), ["go"]), [1]) for b in (backbone, again)]
    assert torch.equal(backbone(sequences[0], query(backbone)), again(sequences[1], query(again)))


def test_the_tiles_of_a_camera_are_resampled_together(llava_folder: Path, pack: Pack) -> None:
    options = Resampler(tokens=3, depth=1, heads=2, head_width=8)
    config = AutoBackbone.Config(path=str(llava_folder), tiles=2, resampler=options, prompt="{instruction}")
    backbone = AutoBackbone(config).eval()
    assert backbone.tokens_per_camera == 3
    images = frames(2, 2)
    sequence = pack(backbone, backbone.tokenize(images, ["go", "stop"]), [1, 1])
    features = backbone._features(backbone._images(sequence))
    assert features.shape == (4, 5 * 16, backbone.width)
    before = backbone(sequence, query(backbone))
    images[1, 1, -12:, -12:] = 255 - images[1, 1, -12:, -12:]
    change = backbone(sequence, query(backbone)) - before
    assert change[0].abs().max() < 1e-6
    assert change[1].abs().max() > 1e-5
