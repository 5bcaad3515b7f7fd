"""Tokens and pixels of families like LLaVA equal the results of the processors of `transformers`.

Processors that need more than Pillow are not built; only their method that writes an image is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    AriaProcessor,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    ChameleonProcessor,
    Cohere2VisionProcessor,
    DeepseekVLProcessor,
    Gemma3Processor,
    Idefics2Processor,
    InternVLProcessor,
    JanusProcessor,
    Llama4Processor,
    Ovis2Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
    DeepseekVLHybridImageProcessorPil,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.families.vision.tiles import feed_two_sizes
from anyvla.backbones.images.pixels import Pixels
from tests.backbones.families import FAMILIES, common
from tests.backbones.families.common import PREPROCESSOR, tiny_tokenizer, write_family

SIDE = 28
SIZE = {"height": SIDE, "width": SIDE}
NORMAL: dict[str, Any] = {"image_mean": PREPROCESSOR["image_mean"], "image_std": PREPROCESSOR["image_std"]}


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Return images of two cameras and one step, of the tower's size."""
    return torch.randint(0, 256, (1, 2, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def load(name: str, folder: Path, prompt: str = "do {instruction}") -> AutoBackbone:
    write_family(FAMILIES[name], folder)
    return AutoBackbone(AutoBackbone.Config(path=str(folder), prompt=prompt, **FAMILIES[name].options)).eval()


def tokens(**names: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the tiny models, with the attributes that a processor reads."""
    tokenizer: Any = tiny_tokenizer()
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def aya() -> Any:
    return AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size=SIZE, **NORMAL), tokens(), patch_size=7, img_size=SIDE, downsample_factor=2
    )


def idefics2() -> Any:
    smallest = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
    return Idefics2Processor(Idefics2ImageProcessorPil(size=smallest, **NORMAL), tokens(), image_seq_len=4)


def gemma3() -> Any:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>"}
    return Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE, **NORMAL), tokens(**names), image_seq_length=4)


def janus() -> Any:
    names = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}
    return JanusProcessor(JanusImageProcessorPil(size=SIZE, **NORMAL), tokens(**names), num_image_tokens=16)


def deepseek_vl() -> Any:
    images = DeepseekVLImageProcessorPil(size=SIZE, **NORMAL)
    return DeepseekVLProcessor(images, tokens(image_token="<image_placeholder>"), num_image_tokens=16)


def chameleon() -> Any:
    names = {"boi_token": "<racm3:break>", "eoi_token": "<eoss>", "image_token": "<image>"}
    images = ChameleonImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIZE, rescale_factor=1 / 255, **NORMAL)
    return ChameleonProcessor(images, tokens(**names, sep_token="</s>"), image_seq_length=49)


CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "aya_vision": (aya, "<image>", {}),
    "idefics2": (idefics2, "<image>", {}),
    "gemma3": (gemma3, "<start_of_image>", {}),
    "janus": (janus, "<image_placeholder>\n", {}),
    "deepseek_vl": (deepseek_vl, "<image_placeholder>", {}),
    "chameleon": (chameleon, "<image>", {"return_for_text_completion": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_equals_the_processors(name: str, frames: torch.Tensor, tmp_path: Path) -> None:
    make, image, options = CASES[name]
    backbone = load(name, tmp_path)
    pictures = [Image.fromarray(np.asarray(frame)) for frame in frames[0]]
    theirs = make()(images=pictures, text=[image * 2 + "do it"], return_tensors="pt", **options)
    block = backbone.tokenize(frames, ["it"])
    assert list(block.prefix) == [backbone.tokenizer.bos_token_id]
    assert list(block.tokens[0]) == theirs["input_ids"][0].tolist()
    pixels = theirs["pixel_values"].reshape(2, 3, SIDE, SIDE)
    torch.testing.assert_close(backbone.pixels(frames[0]), pixels, atol=1e-5, rtol=0)


WRITERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "internvl": (
        InternVLProcessor.replace_image_token,
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "image_token": "<IMG_CONTEXT>",
            "image_seq_length": 4,
        },
        {"num_patches": [1]},
        "{}\n",
    ),
    "cohere2_vision": (
        Cohere2VisionProcessor.replace_image_token,
        {
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "image_token": "<|IMG_PATCH|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
            "patch_size": 2,
        },
        {"num_patches": [1]},
        "{}",
    ),
    "ovis2": (
        Ovis2Processor.replace_image_token,
        {"image_seq_length": 4},
        {"grids": [torch.tensor([1, 1])]},
        "{}\n",
    ),
    "aria": (
        AriaProcessor.replace_image_token,
        {"image_token": "<|img|>", "size_conversion": {SIDE: 4}},
        {"pixel_values": torch.zeros(1, 3, SIDE, SIDE), "num_crops": 1},
        "<fim_prefix>{}<fim_suffix>",  # in its conversations
    ),
    "llama4": (
        lambda shape, _inputs, _index: Llama4Processor._prompt_split_image(shape, (1, 1), 4),
        {},
        {},
        "{}",
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_text_of_an_image_equals_the_processors(name: str, frames: torch.Tensor, tmp_path: Path) -> None:
    write, names, inputs, image = WRITERS[name]
    image = image.format(write(SimpleNamespace(**names), inputs, 0))
    backbone = load(name, tmp_path)
    assert backbone.tokenizer.decode(backbone.tokenize(frames, ["it"]).tokens[0]) == image * 2 + "do it"


def test_llava_next_reads_the_base_image_and_ends_it(frames: torch.Tensor, tmp_path: Path) -> None:
    """The features of an image in tiles begin with the features that we read."""
    backbone = load("llava_next", tmp_path)
    assert backbone.tokens_per_camera == 17
    whole: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    pixels = backbone.pixels(frames[0, :1])
    with torch.no_grad():
        cut = whole.model.get_image_features(
            pixels[:, None].expand(-1, 3, -1, -1, -1), torch.tensor([[SIDE, 2 * SIDE]])
        )
        ours = backbone.model.model.get_image_features(pixels, torch.tensor([[SIDE, SIDE]]))
    torch.testing.assert_close(ours.pooler_output[0][:16], cut.pooler_output[0][:16])
    torch.testing.assert_close(ours.pooler_output[0][16], whole.model.image_newline.data)


def test_llava_onevision_reads_images_as_in_a_prompt_of_several(frames: torch.Tensor, tmp_path: Path) -> None:
    backbone = load("llava_onevision", tmp_path)
    pixels = backbone.pixels(frames[0])
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    with torch.no_grad():
        both = backbone.model.model.get_image_features(pixels, sizes, batch_num_images=torch.tensor([2])).pooler_output
        for picture, features in zip(frames[0], both, strict=True):
            block = backbone.tokenize(picture[None, None], ["it"])
            assert backbone.tokens_per_camera == len(features) == list(block.tokens[0]).count(backbone.image_id)
            alone = backbone.model.model.get_image_features(
                backbone.pixels(picture[None]), sizes[:1], batch_num_images=torch.tensor([2])
            )
            torch.testing.assert_close(alone.pooler_output[0], features)


def test_texts_between_images_are_tokenized_together(frames: torch.Tensor, tmp_path: Path) -> None:
    """The end of one image and the beginning of the next may merge into one token, like line breaks in Gemma."""
    backbone = load("llava", tmp_path)
    whole = backbone.tokenizer.backend_tokenizer
    whole.normalizer = normalizers.Replace("\n\n", "\t")  # two line breaks are one token
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = backbone.step_tokenizer
    steps.template = replace(steps.template, before_image="\n", after_image="\n", text="do {instruction}")
    text = "\n<image>\n\n<image>\ndo it"
    expected = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    made = list(backbone.tokenize(frames, ["it"]).tokens[0])
    assert [i for i in made if i != backbone.image_id] == [i for i in expected if i != backbone.image_id]
    assert made.count(backbone.image_id) == 32


@pytest.mark.parametrize(
    ("preprocessor", "tower", "side"),
    [
        ({"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}, 512, 512),  # SmolVLM2
        ({"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}, 364, 364),  # Idefics 3
        ({"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}, 336, 336),  # LLaVA-NeXT
        ({"size": {"height": 384, "width": 384}, "crop_size": None, "do_center_crop": None}, 384, 384),  # OneVision
    ],
)
def test_an_image_is_scaled_to_the_tower(preprocessor: dict[str, Any], tower: int, side: int) -> None:
    assert Pixels({**preprocessor, **NORMAL}, tower).size == (side, side)


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_family(FAMILIES["internvl"], tmp_path)
    others = ["<other>" if token == "<img>" else token for token in common.SPECIAL]
    monkeypatch.setattr(common, "SPECIAL", others)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'internvl' model writes <img> around its images.*copy the tokenizer"):
        AutoBackbone(AutoBackbone.Config(path=str(tmp_path)))


@pytest.mark.wrong_types
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_towers_read_an_image_at_two_sizes(dtype: str) -> None:
    numbers: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "high_res_image_mean": [0.4, 0.5, 0.6]}
    preprocessor = {**numbers, "high_res_image_std": [0.2, 0.3, 0.3], "rescale_factor": 1 / 255, "resample": 3}
    large = {"height": 2 * SIDE, "width": 2 * SIDE}
    frame = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    processor = DeepseekVLHybridImageProcessorPil(**preprocessor, size=SIZE, high_res_size=large)
    theirs = processor([frame], return_tensors="pt")
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=SIDE))
    levels = torch.tensor(frame).permute(2, 0, 1)[None].to(getattr(torch, dtype))
    nothing: Any = None
    ours = feed_two_sizes(SequenceImages(levels, nothing, nothing, config, preprocessor=preprocessor))
    assert ours.keys() == {"pixel_values", "high_res_pixel_values"}
    for name, pixels in ours.items():
        assert pixels.dtype == levels.dtype
        allowed = 2 / 255 if name == "pixel_values" else 1e-6  # levels halfway between two
        torch.testing.assert_close(pixels.float(), theirs[name], atol=allowed + 0.02 * (dtype == "bfloat16"), rtol=0)


@pytest.mark.parametrize("name", ["smolvlm", "idefics2"])
@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_a_uniform_image_is_not_taken_for_padding(name: str, value: int, tmp_path: Path) -> None:
    """These families drop images that are zero everywhere as padding; normalized pixels never are."""
    backbone = load(name, tmp_path)
    gray = torch.full((1, 1, SIDE, SIDE, 3), value, dtype=torch.uint8)
    pixels = backbone.pixels(gray[0])
    assert (pixels.to(torch.bfloat16) != 0).any()
    features = backbone.model.get_image_features(pixels[None]).pooler_output
    assert sum(len(f) for f in features) > 0
