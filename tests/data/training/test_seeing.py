"""Training varies the images of each view and step at random; acting sees the center of the same crop, always."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.config import build
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import WindowIndices
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.policy import VLA
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.robot.views import ViewConfig
from anyvla.training.batches import make_batches
from anyvla.training.config import TrainingConfig
from anyvla.types import Batch, Observation
from tests import small
from tests.data.demonstrations import ROBOT, InMemory, demonstration
from tests.data.ramps import box_of_ramp, corner_of_box, ramp

STILL = {"shift": 0}


def source(windows: int, first: int = 0, image: np.ndarray | None = None) -> InMemory:
    """Return an episode with a window at each step. The proprio is the step number; the images do not change."""
    frames = np.repeat((ramp() if image is None else image)[None], windows, 0)
    numbers = np.repeat(np.arange(first, first + windows, dtype=np.float32)[:, None], 4, 1)
    images = {"corner": frames, "wrist": frames}
    return InMemory([demonstration(windows, images=images, proprio=numbers)], fingerprint=f"{first}")


def batches(
    *sources: InMemory,
    steps: int,
    size: int,
    seed: int = 0,
    start: int = 0,
    view: dict[str, Any] | None = None,
    window: int = 1,
    shares: tuple[float, ...] = (1.0,),
    **augment: Any,
) -> list[Batch]:
    """Return the batches `start` to `steps` that training with these settings makes."""
    config = build(TrainingConfig, {"steps": steps, "batch_size": size, "seed": seed, "augment": STILL | augment})
    shown = build(ViewConfig, view or {})
    mixture = Mixture(sources, shares, [None] * len(sources))
    windows = WindowDataset(mixture, WindowConfig(window=window, chunk=1, view=shown))
    return list(itertools.islice(make_batches(start, windows, config, shown, 0, 60.0), steps - start))


def numbers(made: list[Batch]) -> np.ndarray:
    """Return the numbers of the windows, one row per batch."""
    return np.stack([batch.proprio[:, 0, 0].numpy() for batch in made])


def corners(made: list[Batch], sides: tuple[int, ...] = (24, 24)) -> np.ndarray:
    """Return the corners of all crops: (batches, windows, views, 2)."""
    return np.array(
        [
            [[corner_of_box(row[0, v], (side, side)) for v, side in enumerate(sides)] for row in batch.images.numpy()]
            for batch in made
        ]
    )


def test_each_epoch_has_every_window_once():
    seen = numbers(batches(source(12), steps=9, size=4))
    for epoch in np.split(seen, 3):
        assert sorted(epoch.ravel()) == list(range(12))
    assert len({tuple(epoch.ravel()) for epoch in np.split(seen, 3)}) == 3


def test_another_seed_changes_the_windows_and_the_crops():
    one, same, other = (batches(source(12), steps=3, size=4, seed=s, view={"crop": 0.75}) for s in (5, 5, 6))
    assert np.array_equal(numbers(one), numbers(same))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, same, strict=True))
    assert (numbers(one) != numbers(other)).mean() > 0.5
    assert (corners(one) != corners(other)).any(-1).mean() > 0.5


def test_crops_differ_by_step_view_and_sample():
    """All batches hold the same window, so every difference is random."""
    seen = corners(batches(source(1), steps=6, size=8, view={"crop": 0.75}))
    flat = seen.reshape(6, -1)
    assert len({tuple(step) for step in flat}) == 6
    assert (seen[1:] != seen[:-1]).any(-1).mean() > 0.8  # 1 of 81 corners is equal by chance
    assert (seen[:, :, 0] != seen[:, :, 1]).any(-1).mean() > 0.8
    assert (seen[:, 1:] != seen[:, :-1]).any(-1).mean() > 0.8


def test_a_step_does_not_depend_on_where_training_began():
    straight = batches(source(12), steps=5, size=4, view={"crop": 0.75}, shift=2, brightness=0.3)
    resumed = batches(source(12), steps=5, size=4, start=3, view={"crop": 0.75}, shift=2, brightness=0.3)
    for one, other in zip(straight[3:], resumed, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.proprio, other.proprio)


def test_steps_of_a_window_are_varied_alike():
    [batch] = batches(source(4), steps=1, size=16, window=2, view={"crop": 0.75}, shift=3, hue=0.2)
    pairs = batch.images[batch.step_mask.all(1)].numpy()
    assert len(pairs) > 8
    assert np.array_equal(pairs[:, 0], pairs[:, 1])


def test_the_settings_of_augmentation_reach_the_images():
    gray = np.full((32, 32, 3), 80, np.uint8)
    [plain] = batches(source(4, image=gray), steps=1, size=4)
    assert (plain.images == 80).all()
    [varied] = batches(source(1, image=gray), steps=1, size=200, brightness=0.5)
    levels = varied.images[:, 0, :, 0, 0, 0].float()
    assert levels.min() == pytest.approx(40, abs=2)  # 80 times 0.5 to 1.5
    assert levels.max() == pytest.approx(120, abs=2)
    [shifted] = batches(source(1), steps=1, size=100, shift=2)
    rows = shifted.images[:, 0, 0, 16, 16, 0].numpy().astype(int)
    assert set(rows) == {7 * (16 + d) for d in range(-2, 3)}


def test_sources_are_sampled_by_their_shares():
    made = batches(source(50), source(50, first=1000), steps=20, size=50, shares=(9.0, 1.0))
    assert (numbers(made) >= 1000).mean() == pytest.approx(0.1, abs=0.03)


def acting_on(image: np.ndarray, view: dict[str, Any], calls: int = 2) -> list[torch.Tensor]:
    """Return the images (B, V, H, W, 3) that the history of a policy gets when the policy acts on this image."""
    ends = {"min": -1.0, "q01": -1.0, "mean": 0.0, "std": 0.5, "q99": 1.0, "max": 1.0}
    dims = {key: [value] * 4 for key, value in ends.items()}
    torch.manual_seed(0)
    vla = VLA(small.model(view=view), [Robot(ROBOT, Statistics(dims, dims, "f"))]).eval()
    got, step = [], vla.history.read_step

    def watched(backbone: Any, steps: Any, *args: Any, **keys: Any) -> Any:
        got.append(steps.images)
        return step(backbone, steps, *args, **keys)

    vla.history.read_step = watched  # type: ignore[method-assign]
    session = vla.start("open the drawer")
    for _ in range(calls):
        vla.act([Observation({"corner": image, "wrist": image}, np.zeros(4, np.float32))], [session])
    return got


def test_acting_sees_the_center_of_each_crop_every_time():
    for images in acting_on(ramp(), {"crop": (0.75, 0.5)}, calls=3):
        for image, side, corner in zip(images[0].numpy(), (24, 16), (4, 8), strict=True):
            assert np.abs(image - box_of_ramp((corner, corner), (side, side))).max() <= 1


def test_acting_sees_whole_images_without_a_crop():
    [images] = acting_on(ramp(), {}, calls=1)
    assert np.array_equal(images[0].numpy(), np.stack([ramp(), ramp()]))


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_training_and_acting_resize_images_alike(cache_gb: float):
    """An image of 16 x 32 padded to 32 x 32 has 8 black rows above and below."""
    wide, expected = ramp(16, 32), np.zeros((32, 32, 3), np.uint8)
    expected[8:24] = wide
    view = {"size": (32, 32), "fit": "pad"}
    mixture = Mixture([source(3, image=wide)], [1.0], [None])
    config = WindowConfig(chunk=1, view=build(ViewConfig, view), cache_gb=cache_gb)
    every = WindowIndices(np.zeros(3, np.int64), np.arange(3), np.zeros(3, np.uint64))
    trained = WindowDataset(mixture, config).batch(every)["images"]
    [acted] = acting_on(wide, view, calls=1)
    assert np.array_equal(trained, np.broadcast_to(expected, (3, 1, 2, 32, 32, 3)))
    assert np.array_equal(acted.numpy(), np.broadcast_to(expected, (1, 2, 32, 32, 3)))
