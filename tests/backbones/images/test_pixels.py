from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.images.resize import BICUBIC, BILINEAR, FILTERS, LANCZOS, _scale, resize

NORMAL = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.3]}


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 5 + c) + np.cos(y / (4 + c)) for c in range(3)]
    return np.stack([(w * 60 + 127) for w in waves], -1).astype(np.uint8)


def test_pixels_of_the_right_size_are_only_scaled() -> None:
    image = picture(8, 8)
    out = Pixels({"size": {"height": 8, "width": 8}, **NORMAL}, None)(torch.from_numpy(image)[None])
    expected = (image / 255 - NORMAL["image_mean"]) / NORMAL["image_std"]
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sides", [(60, 80), (17, 24), (24, 90), (5, 5), (24, 40)])
@pytest.mark.parametrize("filter", range(6), ids=FILTERS)
def test_scaling_agrees_with_pillow(filter: int, sides: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)  # noise overshoots most
    image[: sides[0] // 3] = picture(*sides)[: sides[0] // 3]
    ours = resize(torch.from_numpy(image)[None], (24, 40), filter)[0].permute(1, 2, 0).numpy().astype(int)
    expected = np.asarray(Image.fromarray(image).resize((40, 24), filter)).astype(int)
    assert np.abs(ours - expected).max() <= (0 if filter == 0 else 1)
    assert (ours != expected).mean() < 0.02


@pytest.mark.parametrize("sides", [(480, 640), (64, 64)])
@pytest.mark.parametrize("filter", [BILINEAR, BICUBIC])
def test_products_and_the_integer_kernels_agree(filter: int, sides: tuple[int, int]) -> None:
    """GPUs have no integer kernels, but a model must get the same pixels there as on a CPU."""
    image = torch.from_numpy(picture(*sides))[None]
    kernels = resize(image, (224, 224), filter).int()
    products = _scale(image.permute(0, 3, 1, 2), (224, 224), filter).int()
    apart = (kernels - products).abs()
    assert apart.max() <= 2  # exact halves round either way, in each of two passes
    assert (apart > 1).float().mean() < 1e-3
    assert apart.float().mean() < 0.1


def test_autocast_does_not_coarsen_scaling() -> None:
    image = torch.from_numpy(picture(60, 80))[None]
    plain = resize(image, (24, 24), LANCZOS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize(image, (24, 24), LANCZOS), plain)


@pytest.mark.parametrize("filter", range(6), ids=FILTERS)
def test_images_of_a_batch_are_scaled_independently(filter: int) -> None:
    images = torch.stack([torch.from_numpy(picture(60, 80)), torch.from_numpy(picture(60, 80)[::-1].copy())])
    alone = torch.cat([resize(one[None], (24, 24), filter) for one in images])
    assert torch.equal(resize(images, (24, 24), filter), alone)


def test_tiles_are_cut_in_raster_order_before_the_whole_image() -> None:
    image = torch.from_numpy(picture(48, 48))[None]
    options = {"size": {"height": 24, "width": 24}, "resample": 3, **NORMAL}
    tiled = Pixels(options, None, tiles=2)(torch.cat([image, image.flip(1)]))
    assert tiled.shape == (10, 3, 24, 24)
    whole = Pixels(options, None)
    assert torch.equal(tiled[4], whole(image)[0])
    assert torch.equal(tiled[9], whole(image.flip(1))[0])
    for i, (row, column) in enumerate([(0, 0), (0, 24), (24, 0), (24, 24)]):
        assert torch.equal(tiled[i], whole(image[:, row : row + 24, column : column + 24])[0])


@pytest.mark.parametrize("corner", range(4))
def test_a_corner_of_the_image_is_a_corner_of_its_tile(corner: int) -> None:
    image = torch.from_numpy(picture(51, 67))[None]
    changed = image.clone()
    rows = slice(0, 10) if corner < 2 else slice(-10, None)
    columns = slice(0, 10) if corner % 2 == 0 else slice(-10, None)
    changed[:, rows, columns] = 255 - changed[:, rows, columns]
    pixels = Pixels({"size": {"height": 24, "width": 24}, "resample": 1, **NORMAL}, None, tiles=2)
    moved = (pixels(image) - pixels(changed)).abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [tile in (corner, 4) for tile in range(5)]


@pytest.mark.parametrize("normal", [{"do_normalize": False}, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}])
def test_a_black_image_is_not_all_zeros(normal: dict) -> None:
    """SmolVLM and Idefics 3 drop an image of zeros as padding."""
    pixels = Pixels({"size": 8, **normal}, None)(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert 0 < pixels.abs().max() < 1e-5


def test_defaults_are_bilinear_and_division_by_255() -> None:
    image = picture(60, 80)
    out = Pixels({"size": 24, **NORMAL}, None)(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    scaled = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR))
    expected = (scaled / 255 - NORMAL["image_mean"]) / NORMAL["image_std"]
    assert np.abs(out - expected).max() < 1.01 / 255 / 0.2
    assert np.abs(out - expected).mean() < 0.1 / 255 / 0.2


def test_an_unknown_filter_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"resample is 7, which is not a filter of Pillow: 0 nearest, 1 lanczos"):
        Pixels({"size": 8, "resample": 7, **NORMAL}, None)


@pytest.mark.parametrize(
    ("preprocessor", "size"),
    [
        ({"size": {"height": 20, "width": 30}}, (20, 30)),
        ({"size": 20}, (20, 20)),
        ({"size": {"shortest_edge": 30}, "crop_size": {"height": 20, "width": 20}}, (20, 20)),
        ({"size": {"shortest_edge": 30}}, (30, 30)),
        ({"size": {"longest_edge": 2048}}, (64, 64)),
        ({"size": {"height": 20, "width": 20}, "crop_size": 10, "do_center_crop": False}, (20, 20)),
    ],
)
def test_sizes_as_preprocessors_write_them(preprocessor: dict, size: tuple[int, int]) -> None:
    assert Pixels({**preprocessor, **NORMAL}, 64).size == size


def test_no_size_anywhere_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"gives no image size .* preprocessor_config\.json"):
        Pixels({"size": {"longest_edge": 2048}, **NORMAL}, None)


def test_missing_means_are_an_error() -> None:
    with pytest.raises(ValueError, match="image_mean and image_std"):
        Pixels({"size": 8}, None)
