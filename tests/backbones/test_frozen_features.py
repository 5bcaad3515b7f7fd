"""Features of a frozen vision tower: the kept ones are the computed ones, and each tower has its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyvla.backbones import frozen_features
from anyvla.backbones.base import Cache
from anyvla.backbones.composed import ComposedBackbone
from anyvla.backbones.frozen_features import FrozenFeatures, computing_features
from anyvla.backbones.tokens import TokenBackbone
from anyvla.config import build
from anyvla.registry import backbones
from anyvla.sequence.layout import lay_out
from tests.backbones.test_composed import Plain
from tests.small import NANO

FROZEN = {"vision": False}


class Rectified(Plain):
    """A tower with a unit that is silent unless the image is nearly white."""

    def load_vision(self, config: Any, pretrained: bool) -> nn.Module:
        tower = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        with torch.no_grad():
            tower[0].weight[0] = 1 / 192  # the mean of all pixels, from -1 to 1
            tower[0].bias[0] = -0.9
        return tower


class Mixed(Plain):
    """Trained weights take part in the features."""

    def extract_features(self, pixels: Tensor) -> Tensor:
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(1))
        return super().extract_features(pixels) * self.gain


class Random(Plain):
    """A tower with dropout in evaluation mode as well."""

    def extract_features(self, pixels: Tensor) -> Tensor:
        return nn.functional.dropout(super().extract_features(pixels), 0.5)


def compose(kind: type[ComposedBackbone] = Plain, **keys: Any) -> ComposedBackbone:
    return kind(build(kind.Config, {"train": FROZEN, **keys}))


def make_nano(**keys: Any) -> TokenBackbone:
    return backbones["nano"](
        build(backbones["nano"].Config, {k: v for k, v in NANO.items() if k != "name"} | {"train": FROZEN, **keys})
    )


def images(steps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (steps, 2, 48, 32, 3), dtype=torch.uint8, generator=generator)


class Counted:
    """Keeps the features of a backbone, and counts the images that are computed after the probe."""

    def __init__(self, folder: Path, backbone: TokenBackbone, gigabytes: float = 1.0) -> None:
        self.images, self._compute = 0, backbone.compute_features
        self.features = FrozenFeatures(folder, gigabytes, backbone, self._count)
        backbone.frozen_features = self.features

    def _count(self, images: Tensor) -> Tensor:
        self.images += images.shape[:2].numel()
        return self._compute(images)

    def read(self, images: Tensor) -> tuple[Tensor, int]:
        """Return the features, and how many images were computed for them."""
        before = self.images
        features = self.features.read(images)
        return features, self.images - before


@pytest.mark.parametrize("make", [compose, make_nano])
def test_kept_features_are_the_computed_ones(make: Callable[[], TokenBackbone], tmp_path: Path) -> None:
    backbone = make()
    kept = Counted(tmp_path, backbone)
    kept.read(images(1, seed=9))  # with the probe
    given = torch.cat([images(3), images(2)])  # the last four images are equal to the first ones
    expected = torch.cat([backbone.compute_features(image[None, None]) for image in given.flatten(0, 1)])
    first, computed = kept.read(given)
    assert computed == 6
    assert torch.equal(first, expected)
    other_order = given.flip(0, 1)
    again, computed = kept.read(other_order)
    assert computed == 0
    assert torch.equal(again, expected.flip(0))
    torch.testing.assert_close(backbone.compute_features(given), expected, rtol=1e-5, atol=1e-5)
    kept.features.close()
    later, computed = Counted(tmp_path, make()).read(given)  # a later training: the probe, twice, and nothing else
    assert computed == 2
    assert torch.equal(later, expected)


def test_an_image_has_the_same_features_whatever_it_is_computed_with(tmp_path: Path) -> None:
    given, backbone = images(4), compose()
    alone = torch.cat([Counted(tmp_path / str(n), backbone).read(given[n : n + 1])[0] for n in range(4)])
    together, _ = Counted(tmp_path / "all", backbone).read(given)
    assert torch.equal(together, alone)


def test_a_gpu_computes_images_in_batches_of_equal_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_features, "_AT_ONCE", {"cpu": 4})
    given, backbone = images(5), compose()
    kept = Counted(tmp_path, backbone)
    found, computed = kept.read(given)
    assert computed == 2 * 4 + 12  # the probe, and 10 images with 2 blank ones
    torch.testing.assert_close(found, backbone.compute_features(given), rtol=1e-5, atol=1e-5)
    again, computed = Counted(tmp_path / "other", backbone).read(given[3:4])
    assert torch.equal(again, found[6:8])


@pytest.mark.parametrize("option", ["cache", "resampler"])
def test_nano_reads_kept_features_in_every_way_that_it_reads_images(option: str, tmp_path: Path) -> None:
    resampler = {"tokens": 4, "depth": 1, "heads": 2, "head_width": 8}
    backbone = make_nano(resampler=resampler if option == "resampler" else None).train()
    steps = backbone.tokenize(images(2), ["open it", "close it, please"])
    sequence = lay_out(steps, [1, 1], 1, pad_id=backbone.pad_id, query_id=backbone.query_id)
    queries = torch.randn(1, backbone.width, generator=torch.Generator().manual_seed(0))
    cache = Cache() if option == "cache" else None
    expected = backbone(sequence, queries, cache)
    kept = Counted(tmp_path, backbone)
    for computed in (6, 0):
        before = kept.images
        found = backbone(sequence, queries, None if cache is None else Cache())
        assert kept.images - before == computed
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    fill = torch.zeros_like(kept.features.read(sequence.images))
    kept.features.read = lambda images: fill  # type: ignore[method-assign]
    assert not torch.allclose(backbone(sequence, queries, None if cache is None else Cache()), expected, atol=1e-3)
    backbone.frozen_features = None
    torch.testing.assert_close(backbone(sequence, queries, None if cache is None else Cache()), expected)


def test_images_of_another_shape_with_the_same_bytes_are_other_images(tmp_path: Path) -> None:
    kept = Counted(tmp_path, compose())
    given = images(1)
    first, _ = kept.read(given)
    second, computed = kept.read(given.reshape(1, 2, 32, 48, 3))
    assert computed == 2
    assert not torch.equal(first, second)


def _white() -> Tensor:
    return torch.full((1, 1, 32, 32, 3), 255, dtype=torch.uint8)


def test_a_weight_that_matters_for_some_images_only_makes_another_tower(tmp_path: Path) -> None:
    one, other = compose(Rectified), compose(Rectified)
    with torch.no_grad():
        other.tower[0].bias[0] = -0.8
    kept = Counted(tmp_path, one)
    first, _ = kept.read(_white())
    kept.features.close()
    second, computed = Counted(tmp_path, other).read(_white())
    assert computed == 3  # the probe too
    assert torch.equal(second, other.compute_features(_white()))
    assert not torch.equal(first, second)
    assert len(list(tmp_path.glob("*.txt"))) == 2


@pytest.mark.parametrize(
    "change", [{"dtype": "bfloat16"}, {"image_size": 16}, {"seed": 1}, {"mean": (0.4, 0.5, 0.5)}], ids=str
)
def test_another_dtype_size_weight_or_normalization_makes_another_tower(change: dict[str, Any], tmp_path: Path) -> None:
    attributes = {k: v for k, v in change.items() if k in ("image_size", "mean")}
    changed = type("Changed", (Plain,), attributes)
    other = compose(changed, **{k: v for k, v in change.items() if k not in attributes})
    given = images(2)
    kept = Counted(tmp_path, compose())
    kept.read(given)
    kept.features.close()
    found, computed = Counted(tmp_path, other).read(given)
    assert computed == 6
    assert torch.equal(found, torch.cat([other.compute_features(image[None, None]) for image in given.flatten(0, 1)]))


def test_autocast_makes_another_tower(tmp_path: Path) -> None:
    backbone, given = compose(), images(1)
    kept = Counted(tmp_path, backbone)
    kept.read(given)
    kept.features.close()
    with torch.autocast("cpu", torch.bfloat16):
        found, computed = Counted(tmp_path, backbone).read(given)
    assert (computed, found.dtype) == (4, torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Mixed, "trained weights take part"), (Random, "differ from one call to the next")]
)
def test_features_that_no_image_determines_are_not_kept(
    kind: type[ComposedBackbone], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.get_rng_state()
    kept = Counted(tmp_path, compose(kind))
    torch.set_rng_state(state)
    features = kept.features.read(images(1))
    assert reason in caplog.text
    torch.set_rng_state(state)
    expected = compose(kind).compute_features(images(1)) if kind is Mixed else features
    torch.testing.assert_close(features, expected)
    assert kept.read(images(1))[1] == 2  # at each use
    assert not list(tmp_path.iterdir())


def test_kept_features_are_read_in_training_only(tmp_path: Path) -> None:
    backbone, given = compose(), images(2)
    kept = Counted(tmp_path, backbone)
    assert torch.equal(backbone.eval().read_features(given), backbone.compute_features(given))
    assert kept.images == 0
    backbone.train().read_features(given)
    assert kept.images == 6
    with computing_features(backbone):
        backbone.read_features(given)
    assert kept.images == 6
    assert backbone.frozen_features is kept.features


def test_a_damaged_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone, given = compose(), images(2)
    kept = Counted(tmp_path, backbone)
    expected, _ = kept.read(given)
    kept.features.close()
    [path] = tmp_path.glob("*/*.rows")
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    found, computed = Counted(tmp_path, backbone).read(given)
    assert computed == 6
    assert torch.equal(found, expected)
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    backbone, given = compose(), images(2)
    kept = Counted(tmp_path / "file" / "features", backbone)
    first, _ = kept.read(given)
    kept.features.close()
    assert "cannot be extended" in caplog.text
    assert torch.equal(kept.read(given)[0], first)


def test_a_full_store_computes_the_same_features_each_time(tmp_path: Path) -> None:
    backbone, given = compose(), images(3)
    expected, _ = Counted(tmp_path / "all", backbone).read(given)
    kept = Counted(tmp_path / "few", backbone, gigabytes=2200e-9)  # each image takes 1024 + 20 bytes
    kept.read(given)
    kept.features.close()
    found, computed = kept.read(given)
    assert computed == 4
    assert torch.equal(found, expected)
