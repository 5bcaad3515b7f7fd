"""Pixels equal the results of the image processors of transformers (Pillow) where both give one whole image."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.images.pixels import Pixels

SQUARE = {"height": 56, "width": 56}
ONE_SIDE = {"longest_edge": 56}
CROPPED: dict[str, Any] = {"size": {"shortest_edge": 56}, "crop_size": SQUARE}
QWEN: dict[str, Any] = {"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}}
# Processor, its options, and the sides of a camera's image that it does not crop, pad or give another shape.
CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, int]]] = {
    "siglip": (SiglipImageProcessorPil, {"size": SQUARE}, (90, 120)),
    "siglip, smaller": (SiglipImageProcessorPil, {"size": SQUARE}, (30, 44)),
    "siglip, not normalized": (SiglipImageProcessorPil, {"size": SQUARE, "do_normalize": False}, (90, 120)),
    "siglip, other rescaling": (SiglipImageProcessorPil, {"size": SQUARE, "rescale_factor": 1 / 127.5}, (90, 120)),
    "siglip, not rescaled": (SiglipImageProcessorPil, {"size": SQUARE, "do_rescale": False}, (90, 120)),
    "siglip, as it is": (SiglipImageProcessorPil, {"size": SQUARE}, (56, 56)),
    "siglip, nearest": (SiglipImageProcessorPil, {"size": SQUARE, "resample": 0}, (90, 120)),
    "clip": (CLIPImageProcessorPil, CROPPED, (120, 120)),
    "clip, not cropped": (CLIPImageProcessorPil, {"size": SQUARE, "do_center_crop": False}, (90, 120)),
    "llava": (LlavaImageProcessorPil, CROPPED, (120, 120)),
    "llava_next": (LlavaNextImageProcessorPil, {**CROPPED, "image_grid_pinpoints": [[56, 56]]}, (120, 120)),
    "gemma3": (Gemma3ImageProcessorPil, {"size": SQUARE}, (90, 120)),
    "got_ocr2": (GotOcr2ImageProcessorPil, {"size": SQUARE}, (90, 120)),
    "blip": (BlipImageProcessorPil, {"size": SQUARE}, (90, 120)),
    "idefics2": (Idefics2ImageProcessorPil, {"size": {"shortest_edge": 40, "longest_edge": 56}}, (120, 120)),
    "idefics3": (
        Idefics3ImageProcessorPil,
        {"size": ONE_SIDE, "max_image_size": ONE_SIDE, "do_image_splitting": False},
        (120, 120),
    ),
    "smolvlm": (
        SmolVLMImageProcessorPil,
        {"size": ONE_SIDE, "max_image_size": ONE_SIDE, "do_image_splitting": False},
        (120, 120),
    ),
    "pixtral": (PixtralImageProcessorPil, {"size": ONE_SIDE, "patch_size": {"height": 14, "width": 14}}, (120, 120)),
    "convnext": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 56}, "crop_pct": 1.0}, (120, 120)),
}


def picture(height: int, width: int) -> np.ndarray:
    """Waves with hard edges and noise, so that filters differ and overshoot."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 5 + c) + np.cos(y / (4 + c)) for c in range(3)], -1) * 60 + 127
    waves[height // 3 : height // 2, width // 4 : width // 2] = 255
    waves[height // 2 :, width // 2 : width // 2 + 9] = 0
    return np.clip(waves + np.random.default_rng(0).normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def saved(processor: Any) -> dict[str, Any]:
    """Return the JSON that the processor saves with a model."""
    return json.loads(processor.to_json_string())


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_processors(case: str) -> None:
    cls, options, sides = CASES[case]
    processor = cls(**options)
    image = picture(*sides)
    theirs = processor(image, return_tensors="pt")["pixel_values"].reshape(-1, 3, 56, 56)[0]  # LLaVA-NeXT: two tiles
    pixels = Pixels(saved(processor), 56)
    ours = pixels(torch.from_numpy(image)[None])[0]
    level = pixels.scale.abs().max()  # one of 255, normalized
    apart = (ours - theirs).abs()
    assert apart.max() <= 1.01 * level
    assert (apart > 0.01 * level).float().mean() < 0.02


@pytest.mark.wrong_types
def test_patches_equal_the_processors() -> None:
    from transformers import Qwen2_5_VLConfig

    from anyvla.backbones.families.quirks import look_up_quirk

    processor = Qwen2VLImageProcessorPil(**QWEN)
    image = picture(120, 120)
    theirs = processor(image, return_tensors="pt")
    pixels = Pixels(saved(processor), None, exact=56)
    config = Qwen2_5_VLConfig(vision_config={"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2})
    ours = look_up_quirk("qwen2_5_vl").image_inputs(
        SequenceImages(pixels(torch.from_numpy(image)[None]), None, None, config)
    )  # type: ignore[arg-type]
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    apart = (ours["pixel_values"] - theirs["pixel_values"]).abs()
    assert apart.max() <= 1.01 * pixels.scale.abs().max()
    assert (apart > 1e-4).float().mean() < 0.02
