from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from anyvla.backbones.pixels import Pixels

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


@pytest.mark.parametrize(("number", "tolerance"), [(0, 0), (2, 1), (3, 1)])
def test_scaling_agrees_with_pil(number: int, tolerance: int) -> None:
    image = picture(60, 80)
    plain = {"do_normalize": False, "do_rescale": False, "resample": number}
    out = Pixels({"size": {"height": 24, "width": 24}, **plain}, None)(torch.from_numpy(image)[None])
    expected = np.asarray(Image.fromarray(image).resize((24, 24), number))
    assert np.abs(out[0].permute(1, 2, 0).numpy() - expected).max() <= tolerance


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
