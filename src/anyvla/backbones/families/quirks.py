"""The table of exceptions: how families of vision-language models differ from LLaVA.

`AutoBackbone` has no branch on a family; it reads a `Quirk`. A family outside the table is treated like LLaVA:
`[BOS] image tokens, newline, prompt`, one flat batch of images, causal attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from anyvla.backbones.base import Capability
from anyvla.backbones.families.vision import inputs, patches, special, tiles
from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.language_config import find_missing_capabilities
from anyvla.backbones.masks import Attention
from anyvla.backbones.template import Template

Size = tuple[int, int]  # h, w


def mark_image_tokens(images: SequenceImages) -> Tensor:
    """Return 1 at image tokens, (S, L) int64."""
    return images.image_mask.long()


def mark_query_tokens(images: SequenceImages) -> Tensor:
    """Return 1 at queries, (S, L) int64."""
    return images.sequence.query_mask.long()


@dataclass(frozen=True)
class Quirk:
    """How to write and feed the sequences of one model type."""

    template: Template = field(default_factory=Template)
    image_token: str | None = None  # None: the config's image_token_id
    image_inputs: Callable[[SequenceImages], Mapping[str, Tensor]] = inputs.flat
    # Rows and columns of an image's tokens, where the model has no get_image_features to count them, or rows end
    # in a token of their own.
    grid: Callable[[Any, Size], Size] | None = None
    # Where the tower takes any image size: the number of pixels that both sides must be a multiple of.
    size_multiple: Callable[[Any], int] | None = None
    # Pixels to which such images are scaled by default: 224, or what configuration and preprocessor JSON give.
    default_size: int | Callable[[Any, Mapping[str, Any]], int] = 224
    first_position: int = 0  # of position_ids
    attention: Attention | Callable[[Any], Attention] = "causal"  # of the configuration, where models differ
    lacks: frozenset[Capability] = frozenset()
    one_mask: bool = False  # its forward takes one attention mask for layers of all kinds
    config_overrides: Mapping[str, Any] = field(default_factory=dict)  # to make in the model's configuration
    preprocessor_overrides: Mapping[str, Any] = field(default_factory=dict)  # overrules the preprocessor JSON
    reads: Literal["head", "encoder"] = "head"  # what the LM head would read, or what the text encoder gives
    passed_on: frozenset[str] = (
        frozenset()
    )  # inputs that its forward hands on to its language model without naming them
    inputs_without_images: Callable[[SequenceImages], Mapping[str, Any]] = (
        special.nothing
    )  # inputs of its forward without images
    discrete_images: bool = (
        False  # images become token ids: no gradient goes through, so that the vision tower stays frozen
    )
    second_tokenizer: str | None = None  # folder of the tokenizer of the text that the vision side reads
    # What opens an image, before the template's before_image, where it names the image's size.
    image_opening: Callable[[Any, Size], str] | None = None
    # Inputs to give when the model's forward names them.
    extra_inputs: Mapping[str, Callable[[SequenceImages], Tensor]] = field(
        default_factory=lambda: {
            "mm_token_type_ids": mark_image_tokens,
            "image_embeds_position_mask": mark_image_tokens,
        }
    )
    note: str = ""  # for users of this family


DEFAULT = Quirk()

_IDEFICS3 = Quirk(
    template=Template(
        before_image="<fake_token_around_image><global-img>", after_image="<fake_token_around_image>", text="{prompt}"
    ),
    image_inputs=inputs.nested,
)


def _qwen_multiple(config: Any) -> int:
    return config.vision_config.patch_size * config.vision_config.spatial_merge_size


_QWEN_VL = Quirk(
    template=Template(opening="", before_image="<|vision_start|>", after_image="<|vision_end|>", text="{prompt}"),
    image_inputs=patches.patches_thw,
    size_multiple=_qwen_multiple,
)

_GLM_VL = replace(
    _QWEN_VL,
    template=Template(
        opening="[gMASK]<sop>", before_image="<|begin_of_image|>", after_image="<|end_of_image|>", text="{prompt}"
    ),
)


def _pixtral_multiple(config: Any) -> int:
    return config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)


def _pixtral_grid(config: Any, size: Size) -> Size:
    side = _pixtral_multiple(config)
    return size[0] // side, size[1] // side


_PIXTRAL = Quirk(
    template=Template(row_end="[IMG_BREAK]", after_image="[IMG_END]", text="{prompt}"),
    image_inputs=patches.sized,
    grid=_pixtral_grid,
    size_multiple=_pixtral_multiple,
)

# An image is read once, whole, as in a conversation about several images: an embedding of its own ends it. With no
# grid of tiles to choose from, the model cuts nothing.
_LLAVA_NEXT = Quirk(image_inputs=patches.sized, config_overrides={"image_grid_pinpoints": [[0, 0]]})
_GEMMA3 = Quirk(
    template=Template(before_image="\n\n<start_of_image>", after_image="<end_of_image>\n\n", text="{prompt}"),
    attention="image",
    extra_inputs={"token_type_ids": mark_image_tokens},
)
_INTERNVL = Quirk(template=Template(before_image="<img>", after_image="</img>\n", text="{prompt}"))


def _lfm2_multiple(config: Any) -> int:
    return config.vision_config.patch_size * config.downsample_factor


def _gemma4_multiple(config: Any) -> int:
    return config.vision_config.patch_size * config.vision_config.pooling_kernel_size


def _gemma4_attention(config: Any) -> Attention:
    return "image_in_windows" if config.text_config.use_bidirectional_attention == "vision" else "causal"


# Images and text are in the sequence of an encoder, in which all see all; the decoder never runs (FLOWER, arXiv
# 2509.04996).
_ENCODER: dict[str, Any] = {
    "reads": "encoder",
    "attention": "full",
    "lacks": frozenset({"interleave", "continue", "lm_head"}),
}
_T5 = Template(opening="", text="{prompt}</s>")
_BLIP2 = Quirk(
    template=Template(opening="", text="{bos}{prompt}"),
    passed_on=frozenset({"position_ids"}),
    inputs_without_images=special.no_features,
)
_INSTRUCTBLIP = replace(_BLIP2, image_inputs=special.instructed, second_tokenizer="qformer_tokenizer")

_GEMMA4 = Quirk(
    template=Template(before_image="<|image>", after_image="<image|>", text="{prompt}"),
    image_inputs=patches.patches_placed,
    size_multiple=_gemma4_multiple,
    default_size=lambda config, _: 8 * _gemma4_multiple(config),  # 64 tokens: the most within its least budget, 70
    attention=_gemma4_attention,
)

# As `anyvla.backbones.language_config.find_missing_capabilities` finds in every model of these families.
_RECURRENT: frozenset[Capability] = frozenset({"block_mask", "cache"})
_MINICPM = Quirk(
    template=Template(before_image="<image>", after_image="</image>", text="{prompt}"),
    image_inputs=patches.patches_in_a_row,
    size_multiple=lambda config: config.vision_config.patch_size * (2 if config.downsample_mode == "4x" else 4),
    default_size=lambda _, preprocessor: preprocessor.get("scale_resolution", 448),
    note="images are not numbered, as with use_image_id=False of its processor",
    lacks=_RECURRENT,
)

QUIRKS: dict[str, Quirk] = {
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    # As in Flamingo, images are outside the sequence, and each token reads the images of its own step.
    # Images that follow each other share the token between them.
    "idefics": Quirk(
        template=Template(before_image="<fake_token_around_image>", text="<fake_token_around_image>{prompt}"),
        image_token="<image>",
        image_inputs=inputs.beside,
        preprocessor_overrides={"resample": 3},  # bicubic, which its file leaves unsaid
        grid=lambda _config, _size: (1, 1),
        lacks=frozenset({"cache"}),  # it wants images at each call
    ),
    "kosmos-2": Quirk(
        template=Template(before_image="<image>", after_image="</image>", text="{prompt}"),
        image_token="<patch_index_0000>",  # any id that no instruction contains: the features overwrite its embedding
        grid=lambda config, _size: (1, config.latent_query_num),
        first_position=2,  # after the padding index, 1
        lacks=frozenset({"block_mask", "cache"}),  # its attention takes masks (S, L), and no images after a cache
    ),
    # Bidirectional over the prefix (token type 0), causal over the queries. There is one prefix per sequence: in a
    # sequence of several steps an early step would see the later ones, so these models do not interleave.
    "paligemma": Quirk(
        template=Template(opening="", text="{bos}{prompt}\n"),
        first_position=1,
        attention="prefix",
        lacks=frozenset({"interleave"}),
        extra_inputs={"token_type_ids": mark_query_tokens},
        one_mask=True,
    ),
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "qwen3_vl_moe": _QWEN_VL,
    "qwen3_5": replace(_QWEN_VL, lacks=_RECURRENT),
    "qwen3_5_moe": replace(_QWEN_VL, lacks=_RECURRENT),
    "glm4v": _GLM_VL,
    "glm4v_moe": _GLM_VL,
    "glm46v": _GLM_VL,
    "glm_ocr": _GLM_VL,
    "paddleocr_vl": replace(
        _QWEN_VL,
        template=Template(before_image="{vision_start_token_id}", after_image="{vision_end_token_id}", text="{prompt}"),
        image_inputs=patches.patches_stacked,
    ),
    "kimi_k25": Quirk(
        template=Template(
            before_image="{vision_start_token_id}image<|media_content|>",
            after_image="{vision_end_token_id}",
            text="{prompt}",
        ),
        image_inputs=patches.patches_stacked,
        size_multiple=lambda config: config.vision_config.patch_size * config.vision_config.merge_kernel_size[0],
    ),
    "video_llama_3": Quirk(
        template=Template(after_image="\n", text="{prompt}"),
        image_inputs=patches.patches_unmerged,
        size_multiple=lambda config: config.vision_config.patch_size,
    ),
    "lfm2_vl": Quirk(
        template=Template(before_image="<|image_start|>", after_image="<|image_end|>", text="{prompt}"),
        image_inputs=patches.patches_shaped,
        size_multiple=_lfm2_multiple,
        default_size=lambda config, preprocessor: special.side(
            preprocessor.get("min_image_tokens", 64), _lfm2_multiple(config)
        ),
        lacks=_RECURRENT,
    ),
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "gemma4": _GEMMA4,
    "gemma4_unified": replace(_GEMMA4, image_inputs=patches.patches_placed_whole),
    "mistral3": _PIXTRAL,
    "lighton_ocr": replace(_PIXTRAL, template=Template(after_image="\n", text="{prompt}"), grid=None),
    "llava_next": _LLAVA_NEXT,
    "llava_next_video": _LLAVA_NEXT,
    "llava_onevision": Quirk(image_inputs=inputs.one_of_several),
    "gemma3": _GEMMA3,
    "gemma3n": Quirk(template=_GEMMA3.template),
    "perception_lm": Quirk(template=Template(text="{prompt}"), image_inputs=inputs.one_tile),
    "internvl": _INTERNVL,
    "qianfan_ocr": _INTERNVL,
    # An image opens with the token that would have closed the one before it.
    "idefics2": Quirk(
        template=Template(before_image="<fake_token_around_image>", text="<fake_token_around_image> {prompt}"),
        image_inputs=inputs.nested,
        size_multiple=lambda config: config.vision_config.patch_size,
        default_size=lambda _, preprocessor: (preprocessor.get("size") or {}).get("shortest_edge", 378),
    ),
    "aya_vision": Quirk(
        template=Template(before_image="<|START_OF_IMG|>TILE_GLOBAL", after_image="<|END_OF_IMG|>", text="{prompt}")
    ),
    "cohere2_vision": Quirk(
        template=Template(
            before_image="<|START_OF_IMG|>", after_image="<|IMG_LINE_BREAK|><|END_OF_IMG|>", text="{prompt}"
        )
    ),
    "ovis2": Quirk(template=Template(before_image="<IMG_START>", after_image="<IMG_GRID><IMG_END>\n", text="{prompt}")),
    "step3p7": Quirk(template=Template(before_image="<im_start>", after_image="<im_end>", text="{prompt}")),
    "got_ocr2": _INTERNVL,
    "pp_chart2table": _INTERNVL,
    "deepseek_vl": Quirk(template=Template(text="{prompt}")),
    "deepseek_vl_hybrid": Quirk(
        template=Template(text="{prompt}"),
        image_inputs=tiles.two_sizes,
        size_multiple=lambda config: config.high_res_vision_config.image_size,
        default_size=lambda config, _: config.high_res_vision_config.image_size,
        preprocessor_overrides={
            "do_rescale": False,
            "do_normalize": False,
        },  # for each of the two towers in its own way
    ),
    "aria": Quirk(
        template=Template(before_image="<fim_prefix>", after_image="<fim_suffix>", text="{prompt}"),
        size_multiple=tiles.aria_side,
        default_size=lambda config, _: tiles.aria_side(config),
    ),
    "llama4": Quirk(
        template=Template(before_image="<|image_start|><|image|>", after_image="<|image_end|>", text="{prompt}"),
        grid=tiles.llama4_grid,
    ),
    "chameleon": Quirk(
        template=Template(before_image="<racm3:break>", after_image="<eoss>", text="{prompt}"), discrete_images=True
    ),
    "granite4_vision": replace(_LLAVA_NEXT, grid=tiles.granite4_grid),
    "blip-2": _BLIP2,
    "instructblip": _INSTRUCTBLIP,
    "florence2": Quirk(
        template=Template(opening="", text="<s>{prompt}</s>"),
        size_multiple=lambda config: math.prod(config.vision_config.patch_stride),
        **_ENCODER,
        note="50 tokens an image at 224 pixels; image_size: 768, as in its pre-training, takes 577",
    ),
    # Its layers' windows look both ways, and only its own masks know how far.
    "t5gemma2": replace(_GEMMA3, **{**_ENCODER, "lacks": _ENCODER["lacks"] | {"block_mask"}}, extra_inputs={}),
    "kosmos-2.5": Quirk(
        template=Template(before_image="<image>", after_image="</image>", text="{prompt}"),
        image_token="<bbox>",  # any id that no instruction contains: the features overwrite its embedding
        image_inputs=special.patches_standardized,
        grid=lambda config, _size: (1, config.latent_query_num),
        size_multiple=special.kosmos_patch,
        default_size=special.kosmos_side,
        first_position=2,  # after the padding index, 1
        preprocessor_overrides={"do_rescale": False, "do_normalize": False},  # each image is standardized by itself
        extra_inputs={"image_embeds_position_mask": special.mark_image_tokens_and_ends},
        note="every image takes latent_query_num tokens, whatever its size (2048 in the released model: its context of "
        "4096 holds one camera)",
    ),
    "fuyu": Quirk(
        template=Template(opening="", row_end="|NEWLINE|", after_image="|NEWLINE|", text="{bos}{prompt}<0x04>"),
        image_token="|SPEAKER|",
        image_inputs=patches.patches_of_all,
        grid=lambda config, size: (size[0] // config.patch_size, size[1] // config.patch_size),
        size_multiple=lambda config: config.patch_size,
    ),
    # An image becomes ids of the vocabulary, each row of which ends in one for that.
    "emu3": Quirk(
        template=Template(before_image="<|image token|>", after_image="<|extra_201|><|image end|>", text="{prompt}"),
        image_opening=special.emu_opens,
        image_token="<image>",
        image_inputs=patches.sized,
        grid=special.emu_grid,
        size_multiple=special.emu_patch,
        default_size=lambda config, preprocessor: special.side(preprocessor.get("min_pixels", 512 * 512), 1),
        discrete_images=True,
        note="4160 tokens an image at 512 pixels: choose a smaller image_size; the tokenizer of images stays frozen",
    ),
    # Of the two views of an image, whole and in crops, it reads the first, as of a frame of a video.
    "molmo2": Quirk(
        template=Template(
            before_image="<low_res_im_start>", row_end="<im_col>", after_image="<im_col><im_end>", text="{prompt}"
        ),
        image_inputs=special.patches_pooled,
        grid=special.molmo_grid,
        attention="images",
        extra_inputs={"mm_token_type_ids": special.mark_image_area},
        note="reads the whole image only, not its crops, as it reads the frames of a video",
    ),
    # As idefics. An image takes four tiles of the tower, of which it fills one.
    "mllama": Quirk(
        template=Template(opening="", text="{bos}{prompt}"),
        image_inputs=special.beside_in_tiles,
        grid=lambda _config, _size: (1, 1),
        lacks=frozenset({"cache"}),  # it forgets which of the remembered images are whose
        note="its tower takes an image for four tiles, whatever they hold",
    ),
    "janus": Quirk(template=Template(before_image="<begin_of_image>", after_image="<end_of_image>\n", text="{prompt}")),
}
# Where a part decides: (model type, that of its vision tower or language model).
BY_PART: dict[tuple[str, str], Quirk] = {
    ("llava", "pixtral"): _PIXTRAL,
    ("blip-2", "t5"): replace(_BLIP2, **_ENCODER, template=_T5),
    ("instructblip", "t5"): replace(_INSTRUCTBLIP, **_ENCODER, template=_T5),
}


# The names under which configurations hold the tokens before and after an image.
_AROUND = (("vision_start", "vision_end"), ("image_start", "image_end"), ("boi", "eoi"))


def find_quirk(config: Any, forward_inputs: Container[str]) -> Quirk:
    """Return the row of a model's configuration; a family without one is judged by the inputs of its forward."""
    parts = (getattr(getattr(config, name, None), "model_type", "") for name in ("vision_config", "text_config"))
    quirk = quirk_of(config.model_type, *parts)
    if quirk is DEFAULT and "image_grid_thw" in forward_inputs:  # as Qwen-VL, with tokens of its own around its images
        named = [names for names in _AROUND if all(getattr(config, f"{n}_token_id", None) is not None for n in names)]
        before, after = (f"{{{name}_token_id}}" for name in named[0]) if named else ("", "")
        quirk = replace(_QWEN_VL, template=Template(before_image=before, after_image=after, text="{prompt}"))
    lacks = find_missing_capabilities(config.get_text_config(decoder=True))
    return quirk if quirk.lacks >= lacks else replace(quirk, lacks=quirk.lacks | lacks)


def quirk_of(model_type: str, *parts: str) -> Quirk:
    """The row of a model type, or of its kind with parts of these model types."""
    rows = (BY_PART[model_type, part] for part in parts if (model_type, part) in BY_PART)
    return next(rows, QUIRKS.get(model_type, DEFAULT))
