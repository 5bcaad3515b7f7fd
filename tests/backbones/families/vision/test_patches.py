"""Patches of each family equal the patches of its image processor in `transformers`.

The processors need only Pillow; they neither scale nor cut here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

from anyvla.backbones.families.vision import patches
from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.sequence.tokens import TokenSequence

SIDE, HIGH, WIDE = 4, 24, 16  # a patch; two images with more rows than columns
VISION = {"patch_size": SIDE, "spatial_merge_size": 2, "temporal_patch_size": 2}
COMMON: dict[str, Any] = {"do_resize": False, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6]}
COMMON |= {"image_std": [0.2, 0.3, 0.3], "patch_size": SIDE}


@pytest.fixture
def frames() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (2, HIGH, WIDE, 3), dtype=np.uint8)


def ours(function: Any, frames: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
    mean, std = (torch.tensor(COMMON[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    pixels = (torch.tensor(frames).permute(0, 3, 1, 2) / 255 - mean) / std
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    sequence = TokenSequence(nothing, nothing.bool(), nothing.bool(), nothing, torch.tensor(frames)[:, None])
    channels_last = pixels.contiguous(memory_format=torch.channels_last)  # like the output of `Pixels`
    config = SimpleNamespace(vision_config=SimpleNamespace(**VISION))
    return dict(function(SequenceImages(channels_last, sequence, nothing.bool(), config)))


def theirs(processor: Any, frames: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
    return dict(processor.preprocess(list(frames), return_tensors="pt"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: set[str]) -> None:
    assert one.keys() == names
    for name in names:
        assert one[name].dtype == other[name].dtype or one[name].is_floating_point() or name == "pixel_attention_mask"
        torch.testing.assert_close(one[name], other[name], check_dtype=False, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [Qwen2VLImageProcessorPil, Glm4vImageProcessorPil])
def test_patches_of_qwen_and_glm(kind: type, frames: np.ndarray[Any, Any]) -> None:
    processor = kind(**COMMON, temporal_patch_size=2, merge_size=2)
    same(ours(patches.cut_patches_thw, frames), theirs(processor, frames), {"pixel_values", "image_grid_thw"})


def test_patches_of_paddleocr(frames: np.ndarray[Any, Any]) -> None:
    processor = PaddleOCRVLImageProcessorPil(**COMMON, merge_size=2, temporal_patch_size=1)
    same(ours(patches.cut_patches_stacked, frames), theirs(processor, frames), {"pixel_values", "image_grid_thw"})


def test_patches_of_videollama3(frames: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(VISION, "spatial_merge_size")
    monkeypatch.delitem(VISION, "temporal_patch_size")
    names = {"pixel_values", "image_grid_thw", "image_merge_sizes"}
    same(ours(patches.cut_patches_unmerged, frames), theirs(VideoLlama3ImageProcessorPil(**COMMON), frames), names)


def test_patches_of_siglip2(frames: np.ndarray[Any, Any]) -> None:
    processor = Siglip2ImageProcessorPil(**COMMON, max_num_patches=HIGH * WIDE // SIDE**2)
    names = {"pixel_values", "spatial_shapes", "pixel_attention_mask"}
    same(ours(patches.cut_patches_shaped, frames), theirs(processor, frames), names)


def test_patches_of_gemma4(frames: np.ndarray[Any, Any]) -> None:
    processor = Gemma4ImageProcessorPil(**COMMON, max_soft_tokens=70, pooling_kernel_size=1)
    other = theirs(processor, frames)
    count = HIGH * WIDE // SIDE**2
    assert (other["image_position_ids"][:, count:] == -1).all()  # the processor pads to its budget
    cut = {name: other[name][:, :count] for name in ("pixel_values", "image_position_ids")}
    same(ours(patches.cut_patches_placed, frames), cut, set(cut))


def test_patches_of_minicpm(frames: np.ndarray[Any, Any]) -> None:
    processor = MiniCPMV4_6ImageProcessorPil(**COMMON, slice_mode=False)
    same(ours(patches.cut_patches_in_a_row, frames), theirs(processor, frames), {"pixel_values", "target_sizes"})


def test_sizes_of_pixtral(frames: np.ndarray[Any, Any]) -> None:
    processor = PixtralImageProcessorPil(**COMMON | {"patch_size": {"height": SIDE, "width": SIDE}})
    same(ours(patches.feed_with_sizes, frames), theirs(processor, frames), {"pixel_values", "image_sizes"})


def test_whole_patches_of_gemma4_unified(frames: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each patch is a square of the picture, as large as 2 x 2 small patches."""
    monkeypatch.setitem(VISION, "pooling_kernel_size", 2)
    given = ours(patches.cut_patches_placed_whole, frames)
    mean, std = (np.array(COMMON[name]) for name in ("image_mean", "image_std"))
    side = 2 * SIDE
    assert given["pixel_values"].shape == (2, HIGH * WIDE // side**2, side * side * 3)
    for n in range(2):
        for patch, (x, y) in zip(given["pixel_values"][n], given["image_position_ids"][n].tolist(), strict=True):
            cut = frames[n, y * side : (y + 1) * side, x * side : (x + 1) * side]
            np.testing.assert_allclose(patch.view(side, side, 3), (cut / 255 - mean) / std, atol=1e-5)
