"""The size of images depends on the model's configuration and preprocessing, not on the released model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from anyvla.backbones.auto import AutoBackbone, exact_size
from anyvla.backbones.families.quirks import find_quirk
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family


@pytest.mark.parametrize(
    ("name", "numbers", "side"),
    [
        ("kosmos-2.5", {}, 28),  # 16 patches of 7 pixels, by the tower
        ("kosmos-2.5", {"max_patches": 9}, 21),  # by the image processor
        ("kosmos-2.5", {"max_patches": 4096}, 28),
        ("deepseek_vl_hybrid", {}, 56),
        ("emu3", {"min_pixels": 64 * 64}, 64),
        ("emu3", {}, 512),
        ("minicpmv4_6", {"scale_resolution": 112}, 112),
        ("idefics2", {"size": {"shortest_edge": 56, "longest_edge": 980}}, 56),
        ("idefics2", {"size": None}, 378),
    ],
)
def test_the_size_for_other_models(name: str, numbers: dict[str, Any], side: int) -> None:
    config = FAMILIES[name].build()
    assert exact_size(find_quirk(config, ()), config, numbers, None) == side


@pytest.mark.parametrize(
    ("name", "numbers", "side"),
    [
        ("kosmos-2.5", {"max_patches": 4096}, 1024),
        ("idefics2", {"size": {"longest_edge": 980, "shortest_edge": 378}}, 378),
        ("emu3", {"min_pixels": 512 * 512}, 512),
        ("florence2", {}, 224),
        ("aria", {}, 490),
        ("deepseek_vl_hybrid", {}, 1024),
    ],
)
def test_the_size_for_released_models(name: str, numbers: dict[str, Any], side: int) -> None:
    """Default configurations of the classes describe the released models."""
    config = type(FAMILIES[name].build())()
    if name == "kosmos-2.5":
        assert config.vision_config.max_num_patches == 4096
    if name in ("idefics2", "aria"):
        config.vision_config.patch_size = 14
    assert exact_size(find_quirk(config, ()), config, numbers, None) == side


def test_kosmos_2_5_finds_the_size_of_a_small_model(tmp_path: Path) -> None:
    folder = write_family(FAMILIES["kosmos-2.5"], tmp_path)
    backbone = AutoBackbone(AutoBackbone.Config(path=str(folder)))
    assert backbone.pixels.size == (28, 28)
    assert AutoConfig.from_pretrained(folder).vision_config.max_num_patches == 16
    assert json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["max_patches"] == 16


def test_a_requested_size_is_used_or_refused() -> None:
    qwen, llava = FAMILIES["qwen2_vl"].build(), FAMILIES["llava"].build()
    rows = [find_quirk(config, ()) for config in (qwen, llava)]
    assert exact_size(rows[0], qwen, {}, 42) == 42  # patches of 7, merged two by two
    assert exact_size(rows[0], qwen, {}, None) == 224
    qwen.vision_config.patch_size = 12
    assert exact_size(rows[0], qwen, {}, None) == 240  # the next multiple of 24
    with pytest.raises(ValueError, match="image_size must be a multiple of 24 for a 'qwen2_vl' model, got 42"):
        exact_size(rows[0], qwen, {}, 42)
    assert exact_size(rows[1], llava, {}, None) is None
    assert exact_size(rows[1], llava, {}, 28) is None
    with pytest.raises(ValueError, match=r"reads images of its own size only \(28 pixels\), not 42"):
        exact_size(rows[1], llava, {}, 42)
