"""The vision tower runs once for each image, for any number of steps, readouts and later calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import Cache
from anyvla.histories.base import History, StepInputs
from anyvla.histories.interleaved import Interleaved
from anyvla.histories.policy_head import SeparateSteps, SingleStep
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens
from anyvla.sequence.valid_steps import ValidSteps
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

STEPS = [3, 2, 1]  # valid steps of the windows
TEXTS = ["open", "close the drawer slowly", "push"]


@pytest.fixture(scope="module", params=["llava", "smolvlm", "qwen2_5_vl"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AutoBackbone:
    family = FAMILIES[request.param]
    folder = write_family(family, tmp_path_factory.mktemp(f"once_{request.param}"))
    return AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="{instruction}", **family.options)).eval()


@contextmanager
def count_images(backbone: AutoBackbone) -> Iterator[list[float]]:
    """Count the images of each run of the vision tower."""
    (first,) = [m for m in backbone.model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]  # embeds patches
    side = first.stride[-1]
    patches = (backbone.pixels.size[0] // side) * (backbone.pixels.size[1] // side)
    counts: list[float] = []

    def count(_module: nn.Module, _inputs: object, out: torch.Tensor) -> None:
        counts.append(out.numel() / out.shape[1] / patches)

    handle = first.register_forward_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def frames(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (*shape, 28, 28, 3), dtype=torch.uint8, generator=generator)


def queries(backbone: AutoBackbone, count: int) -> torch.Tensor:
    return torch.randn(count, backbone.width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("readouts", [1, 3])
@pytest.mark.parametrize(
    "history",
    [
        SingleStep(SingleStep.Config()),
        SeparateSteps(SeparateSteps.Config(window=3)),
        Interleaved(Interleaved.Config(window=3)),
    ],
    ids=["none", "policy_head", "interleaved"],
)
def test_a_batch_of_windows_runs_the_tower_once_per_valid_image(
    backbone: AutoBackbone, history: History, readouts: int
) -> None:
    steps = [min(s, history.window) for s in STEPS]
    valid = ValidSteps(steps, history.window, torch.device("cpu"))
    instructions = [text for text, count in zip(TEXTS, steps, strict=True) for _ in range(count)]
    read = StepInputs(
        frames(sum(steps), 2), instructions, queries(backbone, readouts).expand(sum(steps), -1, -1), readouts
    )
    with count_images(backbone) as counts:
        history.read_windows(backbone, read, valid, keep_cache=True)
    assert counts == [sum(steps) * 2]


@pytest.mark.parametrize("history", [SingleStep(SingleStep.Config()), SeparateSteps(SeparateSteps.Config(window=3))])
def test_a_session_runs_the_tower_once_per_new_image(backbone: AutoBackbone, history: History) -> None:
    states = [history.start() for _ in range(2)]
    steps = StepInputs(frames(2, 2), TEXTS[:2], queries(backbone, 2).expand(2, -1, -1), 2)
    with count_images(backbone) as counts:
        for _ in range(4):
            history.read_step(backbone, steps, states, keep_cache=True)
    assert counts == [4] * 4


def test_an_interleaved_session_runs_the_tower_once_per_new_image_and_cache(
    backbone: AutoBackbone,
) -> None:
    history = Interleaved(Interleaved.Config(window=4))
    states = [history.start()]
    steps = StepInputs(frames(1, 2), TEXTS[:1], queries(backbone, 2)[None], 2)
    with torch.no_grad(), count_images(backbone) as counts:
        for _ in range(8):
            history.read_step(backbone, steps, states, keep_cache=True)
    assert sum(counts) == 2 * (2 + 6 * 2)  # two cameras; the second cache begins at the third step
    assert max(counts) <= 4


def test_decoding_further_runs_the_tower_for_new_images_only(backbone: AutoBackbone) -> None:
    ids = {"pad_id": backbone.pad_id, "query_id": backbone.query_id}
    images, cache, query = frames(3, 2), Cache(), queries(backbone, 2)
    block = backbone.tokenize(images, TEXTS)
    with count_images(backbone) as counts:
        for step in range(3):
            now = StepTokens(block.prefix if step == 0 else (), [block.tokens[step]], images[step : step + 1])
            backbone(lay_out(now, [1], 0, **ids), query, cache)
            asked = lay_out(StepTokens((), [()], images[:1]), [1], 2, **ids)
            backbone(replace(asked, images=images[:0]), query, cache)  # the queries of the step, after its images
    assert counts == [2, 2, 2]


def test_a_frozen_tower_runs_once_in_training_too(backbone: AutoBackbone) -> None:
    ids = {"pad_id": backbone.pad_id, "query_id": backbone.query_id}
    block = backbone.tokenize(frames(2, 2), TEXTS[:2])
    with count_images(backbone) as counts:
        backbone.train()(lay_out(block, [2], 2, **ids), queries(backbone, 2)).sum().backward()
    backbone.eval().zero_grad()
    assert counts == [4]
