from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvla.config import ConfigError, build
from anyvla.data.augment import AugmentConfig, augment, evaluation_view

SHAPE = (3, 2, 2, 12, 16, 3)  # (B, W, V, H, W, 3)
NONE = AugmentConfig(shift=0)


def images(seed: int = 0) -> torch.Tensor:
    """Two steps of each window differ in a known way: the second is the first, turned upside down."""
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 256, (3, 1, 2, 12, 16, 3), dtype=torch.uint8, generator=g)
    return torch.cat([first, first.flip(3)], 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_for_is_the_same_tensor():
    given_images = images()
    assert augment(given_images, NONE, 1.0, generator()) is given_images
    assert evaluation_view(given_images[:, 0], 1.0).data_ptr() == given_images[:, 0].data_ptr()


@given(shift=st.integers(1, 11), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_shift_moves_every_step_alike_and_repeats_edges(shift: int, seed: int):
    source = images(seed)
    out = augment(source, AugmentConfig(shift=shift), 1.0, generator(seed))
    rows, columns = torch.arange(12)[:, None], torch.arange(16)
    for b, v in np.ndindex(3, 2):
        moves = [
            (dy, dx)
            for dy in range(-shift, shift + 1)
            for dx in range(-shift, shift + 1)
            if all(
                torch.equal(out[b, w, v], source[b, w, v][(rows - dy).clamp(0, 11), (columns - dx).clamp(0, 15)])
                for w in range(2)
            )
        ]
        assert moves


def test_every_move_within_the_limit_comes_up_and_views_have_their_own():
    source = torch.zeros(400, 1, 2, 12, 12, 3, dtype=torch.uint8)
    source[:, :, :, 6, 6] = 255
    out = augment(source, AugmentConfig(shift=(2, 0)), 1.0, generator())
    places = out[:, 0, 0, :, :, 0].flatten(1).argmax(1)
    moved = {(int(p) // 12 - 6, int(p) % 12 - 6) for p in places}
    assert moved == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert torch.equal(out[:, :, 1], source[:, :, 1])


def test_a_crop_in_the_centre_is_what_acting_sees(monkeypatch: pytest.MonkeyPatch):
    source = images()
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 0.5))
    trained = augment(source, NONE, (0.75, 0.5), generator())
    assert torch.equal(trained[:, 0], evaluation_view(source[:, 0], (0.75, 0.5)))
    assert not torch.equal(trained, source)


def test_a_crop_shows_a_part_in_the_size_of_the_whole():
    ramp = torch.arange(64, dtype=torch.uint8).expand(64, 64)  # value = column
    source = ramp[None, None, None, :, :, None].expand(50, 2, 1, 64, 64, 3).contiguous()
    out = augment(source, NONE, 0.5, generator()).float()
    assert out.shape == source.shape
    span = out[..., -1, 0] - out[..., 0, 0]
    assert (span - 31).abs().max() <= 1  # half of the columns
    firsts = out[:, 0, 0, 0, 0, 0]
    assert firsts.min() <= 3
    assert firsts.max() >= 28  # windows at both ends
    assert torch.equal(out[:, 0], out[:, 1])  # one place for all steps


def reference(pixels: np.ndarray, mean_grey: float, bright: float, contrast: float, saturation: float, hue: float):
    """One step after another, without clipping between them."""
    luma = np.array([0.299, 0.587, 0.114])
    x = pixels.astype(np.float64) * bright
    x = contrast * x + (1 - contrast) * bright * mean_grey
    grey = (x @ luma)[..., None]
    x = saturation * x + (1 - saturation) * grey
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return np.clip(x @ (np.linalg.inv(yiq) @ turn @ yiq).T, 0, 255)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "all"])
def test_jitter_is_its_steps_one_after_another(name: str):
    amounts = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.1}
    asked = amounts if name == "all" else {name: amounts[name]}
    source = images()
    out = augment(source, AugmentConfig(shift=0, **asked), 1.0, generator(3))
    chance = torch.rand(3, 2, 4, generator=generator(3)) * 2 - 1
    for b, v in np.ndindex(3, 2):
        drawn = {k: float(chance[b, v, i]) * asked.get(k, 0.0) for i, k in enumerate(amounts)}
        window = source[b, :, v].numpy()
        grey = float(window.reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114])
        bright, contrast, saturation = (1 + drawn[k] for k in ("brightness", "contrast", "saturation"))
        expected = reference(window, grey, bright, contrast, saturation, drawn["hue"])
        assert np.abs(out[b, :, v].numpy() - expected).max() <= 0.6


def test_grey_has_no_hue_and_black_stays_black():
    config = AugmentConfig(shift=0, saturation=0.5, hue=0.5)
    grey = torch.full(SHAPE, 100, dtype=torch.uint8)
    assert (augment(grey, config, 1.0, generator()).int() - 100).abs().max() <= 1
    every = AugmentConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    black = torch.zeros(SHAPE, dtype=torch.uint8)  # the view of a camera that a robot does not have
    assert not augment(black, every, 0.9, generator()).any()


def test_equal_seeds_give_equal_batches_and_samples_differ():
    config = AugmentConfig(shift=3, brightness=0.2, hue=0.1)
    one, same, other = (augment(images(), config, 0.9, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    alike = images()[:1].expand(3, -1, -1, -1, -1, -1).contiguous()
    varied = augment(alike, config, 0.9, generator())
    assert not torch.equal(varied[0], varied[1])
    assert not torch.equal(varied[0, :, 0], varied[0, :, 1])


def test_bad_settings_are_told():
    for data, message in (
        ({"shift": -1}, "greater than or equal to 0"),
        ({"brightness": 1.0}, "less than 1"),
        ({"hue": 0.6}, "less than or equal to 0.5"),
        ({"crop": 0.9}, "unknown key 'crop'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(AugmentConfig, data)
    with pytest.raises(ValueError, match=r"shift must be one number or one per view \(2 views\), got \[1, 2, 3\]"):
        augment(images(), AugmentConfig(shift=(1, 2, 3)), 1.0, generator())
    with pytest.raises(ValueError, match="shift must lie below the size of an image, 12x16, got"):
        augment(images(), AugmentConfig(shift=12), 1.0, generator())
