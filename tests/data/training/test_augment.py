from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from anyvla.config import ConfigError, build, to_dict
from anyvla.data.training.augment import AugmentConfig, augment
from anyvla.robot.views import center_crop_views
from tests.data.ramps import box_of_ramp, corner_of_box, ramp
from tests.small import generators

SHAPE = (3, 2, 2, 12, 16, 3)  # (B, W, V, H, W, 3)
NONE = AugmentConfig(shift=0)


def images(seed: int = 0) -> torch.Tensor:
    """Return windows of two steps. The second step is the first one, upside down."""
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 256, (3, 1, 2, 12, 16, 3), dtype=torch.uint8, generator=g)
    return torch.cat([first, first.flip(3)], 1)


def augmented(
    given: torch.Tensor, config: AugmentConfig, crop: float | tuple[float, ...], seed: int = 0
) -> torch.Tensor:
    """Return full windows, augmented."""
    return augment(given, config, crop, generators(len(given), seed), [given.shape[1]] * len(given))


def test_without_augmentation_the_tensor_is_returned_itself():
    given_images = images()
    assert augmented(given_images, NONE, 1.0) is given_images
    assert center_crop_views(given_images[:, 0], 1.0).data_ptr() == given_images[:, 0].data_ptr()


@pytest.mark.parametrize("shift", [1, 4, 11])
def test_a_shift_moves_every_step_alike_and_repeats_edges(shift: int):
    source = images(shift)
    out = augmented(source, AugmentConfig(shift=shift), 1.0, shift)
    rows, columns = torch.arange(12)[:, None], torch.arange(16)
    moves = list(itertools.product(range(-shift, shift + 1), repeat=2))
    for b, v in np.ndindex(3, 2):
        assert any(
            torch.equal(out[b, :, v], source[b, :, v][:, (rows - dy).clamp(0, 11), (columns - dx).clamp(0, 15)])
            for dy, dx in moves
        )


def test_every_shift_within_the_limit_of_a_view_occurs():
    source = torch.zeros(400, 1, 2, 12, 12, 3, dtype=torch.uint8)
    source[:, :, :, 6, 6] = 255
    out = augmented(source, AugmentConfig(shift=(2, 0)), 1.0)
    places = out[:, 0, 0, :, :, 0].flatten(1).argmax(1)
    moved = {(int(p) // 12 - 6, int(p) % 12 - 6) for p in places}
    assert moved == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert torch.equal(out[:, :, 1], source[:, :, 1])


def test_views_and_samples_shift_independently():
    source = torch.zeros(300, 1, 2, 12, 12, 3, dtype=torch.uint8)
    source[:, :, :, 6, 6] = 255
    places = augmented(source, AugmentConfig(shift=3), 1.0)[:, 0, :, :, :, 0].flatten(2).argmax(2)
    moves = torch.stack([places // 12, places % 12], -1).flatten(1).T.numpy()  # rows and columns of each view
    assert np.abs(np.corrcoef(moves) - np.eye(4)).max() < 0.15
    assert all(np.bincount(way)[3:10].min() > 20 for way in moves)  # 300 / 7 = 43 of each


WIDE = (32, 80)  # rows and columns differ, so that they cannot be swapped


def test_crops_are_uniform_and_independent_per_view():
    """Shares of 0.75 and 0.5 of 32 x 80: boxes of 24 x 60 and 16 x 40."""
    first = torch.from_numpy(ramp(*WIDE))
    source = torch.stack([first, 255 - first])[:, None].expand(500, 2, 2, *WIDE, 3).contiguous()
    out = augmented(source, NONE, (0.75, 0.5)).numpy()
    assert np.abs(out[:, 0].astype(int) + out[:, 1] - 255).max() <= 1  # the same crop for all steps of a window
    corners = {}
    for view, box in enumerate([(24, 60), (16, 40)]):
        found = np.array([corner_of_box(image, box) for image in out[:, 0, view]])
        for axis in range(2):
            last = WIDE[axis] - box[axis]
            counts = np.bincount(found[:, axis], minlength=last + 1)
            assert len(counts) == last + 1  # no crop exceeds the image
            assert counts.min() > 0  # every corner occurs, the outermost too
            assert counts.max() < 2.5 * 500 / (last + 1)  # equally often
        corners[view] = found
    ways = np.concatenate([corners[0], corners[1]], 1).T
    assert np.abs(np.corrcoef(ways) - np.eye(4)).max() < 0.15  # rows, columns and views are independent


def test_an_image_shifts_before_it_is_cropped():
    """Repeated edges show only in boxes that reach them: after a crop they would show in 6 of 7 images."""
    source = torch.from_numpy(ramp()).expand(200, 1, 1, 32, 32, 3).contiguous()
    red = augmented(source, AugmentConfig(shift=3), 0.5)[:, 0, 0, :, 16, 0].int()
    assert ((red[:, 0] == red[:, 2]) | (red[:, -1] == red[:, -3])).float().mean() < 0.35


@pytest.mark.parametrize(
    ("size", "crop", "box", "corner"),
    [
        ((32, 80), 0.75, (24, 60), (4, 10)),
        ((32, 80), 0.5, (16, 40), (8, 20)),
        ((20, 30), 0.9, (18, 27), (1, 2)),  # of the 3 columns left out, 2 are on the left
        ((32, 32), 1.0, (32, 32), (0, 0)),
    ],
)
def test_acting_sees_the_box_in_the_center(size: tuple[int, int], crop: float, box: tuple[int, int], corner):
    given_images = torch.from_numpy(ramp(*size)).expand(3, 2, *size, 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    seen = center_crop_views(given_images, crop)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.abs(seen.numpy() - box_of_ramp(corner, box, *size)).max() <= 1
    assert torch.equal(center_crop_views(given_images, crop), seen)


def test_acting_crops_each_view_by_its_own_share():
    seen = center_crop_views(torch.from_numpy(ramp()).expand(1, 2, 32, 32, 3), (0.75, 0.5))[0].numpy()
    for image, side, corner in zip(seen, (24, 16), (4, 8), strict=True):
        assert np.abs(image - box_of_ramp((corner, corner), (side, side))).max() <= 1


def test_a_box_is_enlarged_with_antialiasing_also_where_it_has_fine_detail():
    """Stripes are interpolated bilinearly, like by Pillow."""
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::2] = 255
    seen = center_crop_views(torch.from_numpy(stripes)[None, None], 0.75)[0, 0].numpy()
    theirs = Image.fromarray(stripes[4:28, 4:28]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(seen.astype(int) - np.asarray(theirs)).max() <= 1


def test_by_default_images_shift_by_three_pixels_and_keep_their_colors():
    assert to_dict(AugmentConfig()) == {"shift": 3, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


def reference(pixels: np.ndarray, mean_gray: float, bright: float, contrast: float, saturation: float, hue: float):
    """Apply one step after another, without clipping between them."""
    luma = np.array([0.299, 0.587, 0.114])
    x = pixels.astype(np.float64) * bright
    x = contrast * x + (1 - contrast) * bright * mean_gray
    gray = (x @ luma)[..., None]
    x = saturation * x + (1 - saturation) * gray
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return np.clip(x @ (np.linalg.inv(yiq) @ turn @ yiq).T, 0, 255)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "all"])
def test_jitter_equals_its_steps_one_after_another(name: str):
    amounts = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.1}
    asked = amounts if name == "all" else {name: amounts[name]}
    source = images()
    out = augmented(source, AugmentConfig(shift=0, **asked), 1.0, 3)
    # the last four of the eight numbers of each window and view
    chance = torch.stack([torch.rand(2, 8, generator=g)[:, 4:] for g in generators(3, 3)]) * 2 - 1
    for b, v in np.ndindex(3, 2):
        sampled = {k: float(chance[b, v, i]) * asked.get(k, 0.0) for i, k in enumerate(amounts)}
        window = source[b, :, v].numpy()
        gray = float(window.reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114])
        bright, contrast, saturation = (1 + sampled[k] for k in ("brightness", "contrast", "saturation"))
        expected = reference(window, gray, bright, contrast, saturation, sampled["hue"])
        assert np.abs(out[b, :, v].numpy() - expected).max() <= 0.6


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_view_has_its_own_strength(name: str):
    colors = torch.tensor([[200, 40, 90], [60, 120, 20]], dtype=torch.uint8)
    source = colors.repeat(6, 8, 1)[None, None, None].expand(40, 1, 2, 6, 16, 3).contiguous()
    out = augmented(source, AugmentConfig(shift=0, **{name: (0.0, 0.2)}), 1.0)
    changes = (out.int() - source.int()).abs().flatten(3).amax(3)[:, 0]  # (B, V)
    assert changes[:, 0].max() <= 1
    assert (changes[:, 1] > 1).float().mean() > 0.8


def test_gray_has_no_hue_and_black_stays_black():
    config = AugmentConfig(shift=0, saturation=0.5, hue=0.5)
    gray = torch.full(SHAPE, 100, dtype=torch.uint8)
    assert (augmented(gray, config, 1.0).int() - 100).abs().max() <= 1
    every = AugmentConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    black = torch.zeros(SHAPE, dtype=torch.uint8)  # the view of a camera that a robot does not have
    assert not augmented(black, every, 0.9).any()


def test_equal_seeds_give_equal_batches_and_samples_differ():
    config = AugmentConfig(shift=3, brightness=0.2, hue=0.1)
    one, same, other = (augmented(images(), config, 0.9, s) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    alike = images()[:1].expand(3, -1, -1, -1, -1, -1).contiguous()
    varied = augmented(alike, config, 0.9)
    assert not torch.equal(varied[0], varied[1])
    assert not torch.equal(varied[0, :, 0], varied[0, :, 1])


@pytest.mark.parametrize("option", ["shift", "brightness", "contrast", "saturation", "hue", "crop"])
def test_a_window_is_augmented_alike_whatever_the_others_are(option: str):
    """A process that cuts these rows of a batch only must see them as the process that cuts all does."""
    every = AugmentConfig(**{"shift": 3, **dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.3)})
    config = every if option == "crop" else AugmentConfig(**{"shift": 0, option: getattr(every, option)})
    crop = 0.7 if option == "crop" else 1.0
    source, own = images(), generators(3)
    whole = augment(source, config, crop, own, [2, 2, 2])
    for row in range(3):
        alone = augment(source[row : row + 1], config, crop, [own[row].manual_seed(row)], [2])
        assert torch.equal(alone[0], whole[row])


def test_an_option_does_not_change_the_random_numbers_of_another():
    darker = AugmentConfig(shift=3, hue=0.0), AugmentConfig(shift=3, brightness=1e-9)
    assert torch.equal(augmented(images(), darker[0], 1.0), augmented(images(), darker[1], 1.0))


def test_contrast_is_about_the_gray_of_the_valid_steps_alone():
    """A batch of whole rows is as long as its longest one: how many steps are masked depends on the other rows."""
    config = AugmentConfig(shift=0, contrast=0.5)
    source = images()[:1]
    padded = torch.cat([source, torch.zeros_like(source)], 1)
    out = augment(padded, config, 1.0, generators(1), [2])
    assert torch.equal(out[:, :2], augmented(source, config, 1.0))
    assert not out[:, 2:].any()


def test_bad_settings_are_refused():
    for data, message in (
        ({"shift": -1}, "greater than or equal to 0"),
        ({"brightness": 1.0}, "less than 1"),
        ({"hue": 0.6}, "less than or equal to 0.5"),
        ({"crop": 0.9}, "unknown key 'crop'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(AugmentConfig, data)
    with pytest.raises(ValueError, match=r"shift must be one number or one per view \(2 views\), got \[1, 2, 3\]"):
        augmented(images(), AugmentConfig(shift=(1, 2, 3)), 1.0)
    with pytest.raises(ValueError, match="shift must be less than the size of an image, 12x16, got"):
        augmented(images(), AugmentConfig(shift=12), 1.0)
