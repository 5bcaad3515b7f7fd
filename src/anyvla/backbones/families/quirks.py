"""The table of exceptions: how families of vision-language models differ from LLaVA.

`AutoBackbone` has no branch on a family; it reads a `Quirk`. Families outside the table are treated like LLaVA:
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
    image_inputs: Callable[[SequenceImages], Mapping[str, Tensor]] = inputs.feed_flat
    # Rows and columns of an image's tokens, where the model has no get_image_features to count them, or rows end
    # in a token of their own.
    grid: Callable[[Any, Size], Size] | None = None
    # Where the tower takes any image size: the number of pixels that both sides must be a multiple of.
    size_multiple: Callable[[Any], int] | None = None
    # Pixels to which such images are scaled by default: 224, or a function of the configuration and preprocessor JSON.
    default_size: int | Callable[[Any, Mapping[str, Any]], int] = 224
    first_position: int = 0  # of position_ids
    attention: Attention | Callable[[Any], Attention] = "causal"  # a function of the configuration if models differ
    lacks: frozenset[Capability] = frozenset()
    one_mask: bool = False  # the forward takes one attention mask for layers of all kinds
    config_overrides: Mapping[str, Any] = field(default_factory=dict)  # replace values of the model's configuration
    preprocessor_overrides: Mapping[str, Any] = field(default_factory=dict)  # replace values of the preprocessor JSON
    reads: Literal["head", "encoder"] = "head"  # readouts are the input of the LM head or the output of the encoder
    passed_on: frozenset[str] = frozenset()  # inputs that the forward passes to its language model without naming them
    inputs_without_images: Callable[[SequenceImages], Mapping[str, Any]] = special.feed_nothing
    discrete_images: bool = False  # images become token ids: no gradient reaches the vision tower, so it stays frozen
    second_tokenizer: str | None = None  # the folder of the tokenizer for text that the vision side reads
    # The text that opens an image, before the template's before_image, where it contains the image's size.
    image_opening: Callable[[Any, Size], str] | None = None
    # Further inputs, given if the model's forward names them.
    extra_inputs: Mapping[str, Callable[[SequenceImages], Tensor]] = field(
        default_factory=lambda: {
            "mm_token_type_ids": mark_image_tokens,
            "image_embeds_position_mask": mark_image_tokens,
        }
    )
    casts_images: bool = False  # to the type of the model's first weight, which text embeddings must then have too
    note: str = ""  # for users of this family


def _surround(before: str = "", after: str = "", **parts: str) -> Template:
    """Return a template with these texts around each image, and the prompt right after the images."""
    return Template(before_image=before, after_image=after, **{"text": "{prompt}", **parts})


def _make_side_finder(factor: str) -> Callable[[Any], int]:
    """Return a function that multiplies a tower's patch size by a factor that the configuration may have."""

    def count_pixels(config: Any) -> int:
        vision = config.vision_config
        return vision.patch_size * getattr(vision, factor, getattr(config, factor, 1))

    return count_pixels


_find_merged_side = _make_side_finder("spatial_merge_size")
_find_pooled_side = _make_side_finder("pooling_kernel_size")
_find_downsampled_side = _make_side_finder("downsample_factor")

DEFAULT = Quirk()

_IDEFICS3 = Quirk(
    _surround("<fake_token_around_image><global-img>", "<fake_token_around_image>"), image_inputs=inputs.feed_one_tile
)
_QWEN_VL = Quirk(
    _surround("<|vision_start|>", "<|vision_end|>", opening=""),
    image_inputs=patches.cut_patches_thw,
    size_multiple=_find_merged_side,
)
_GLM_VL = replace(_QWEN_VL, template=_surround("<|begin_of_image|>", "<|end_of_image|>", opening="[gMASK]<sop>"))


def _count_pixtral_tokens(config: Any, size: Size) -> Size:
    side = _find_merged_side(config)
    return size[0] // side, size[1] // side


_PIXTRAL = Quirk(
    _surround("", "[IMG_END]", row_end="[IMG_BREAK]"),
    image_inputs=patches.feed_with_sizes,
    grid=_count_pixtral_tokens,
    size_multiple=_find_merged_side,
)
# Each image is read once, as a whole, as in a conversation about several images; an embedding of its own ends it.
# With no grid of tiles to choose from, the model cuts nothing.
_LLAVA_NEXT = Quirk(image_inputs=patches.feed_with_sizes, config_overrides={"image_grid_pinpoints": [[0, 0]]})
_GEMMA3 = Quirk(
    _surround("\n\n<start_of_image>", "<end_of_image>\n\n"),
    attention="image",
    extra_inputs={"token_type_ids": mark_image_tokens},
)
_INTERNVL = Quirk(_surround("<img>", "</img>\n"))
_DEEPSEEK_VL = Quirk(_surround())

# Images and text are in the sequence of an encoder, whose tokens all attend to each other; the decoder never runs
# (FLOWER, arXiv 2509.04996).
_ENCODER: dict[str, Any] = {
    "reads": "encoder",
    "attention": "full",
    "lacks": frozenset({"interleave", "continue", "lm_head"}),
}
_T5 = Template(opening="", text="{prompt}</s>")
_BLIP2 = Quirk(
    Template(opening="", text="{bos}{prompt}"),
    passed_on=frozenset({"position_ids"}),
    inputs_without_images=special.feed_no_features,
)
_INSTRUCTBLIP = replace(_BLIP2, image_inputs=special.feed_with_instructions, second_tokenizer="qformer_tokenizer")


def _gemma4_attention(config: Any) -> Attention:
    return "image_in_windows" if config.text_config.use_bidirectional_attention == "vision" else "causal"


_GEMMA4 = Quirk(
    _surround("<|image>", "<image|>"),
    image_inputs=patches.cut_patches_placed,
    size_multiple=_find_pooled_side,
    default_size=lambda config, _: 8 * _find_pooled_side(config),  # 64 tokens, within the smallest budget of 70
    attention=_gemma4_attention,
)
# `find_missing_capabilities` finds the same in every model of these families.
_RECURRENT: frozenset[Capability] = frozenset({"block_mask", "cache"})
_QWEN3_5 = replace(_QWEN_VL, lacks=_RECURRENT)
_MINICPM = Quirk(
    _surround("<image>", "</image>"),
    image_inputs=patches.cut_patches_in_a_row,
    size_multiple=lambda config: config.vision_config.patch_size * (2 if config.downsample_mode == "4x" else 4),
    default_size=lambda _, preprocessor: preprocessor.get("scale_resolution", 448),
    note="images are not numbered, as with use_image_id=False of its processor",
    lacks=_RECURRENT,
)

QUIRKS: dict[str, Quirk] = {
    "idefics3": _IDEFICS3,
    "smolvlm": replace(_IDEFICS3, casts_images=True),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _QWEN_VL),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _QWEN3_5),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr"), _GLM_VL),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), _MINICPM),
    **dict.fromkeys(("llava_next", "llava_next_video"), _LLAVA_NEXT),
    **dict.fromkeys(("internvl", "qianfan_ocr", "got_ocr2", "pp_chart2table"), _INTERNVL),
    # As in Flamingo, images are outside the sequence, and each token reads the images of its own step.
    # Adjacent images share the token between them.
    "idefics": Quirk(
        _surround("<fake_token_around_image>", text="<fake_token_around_image>{prompt}"),
        image_token="<image>",
        image_inputs=inputs.feed_beside,
        preprocessor_overrides={"resample": 3},  # bicubic, which its file does not name
        grid=lambda _config, _size: (1, 1),
        lacks=frozenset({"cache"}),  # it needs images at each call
    ),
    "kosmos-2": Quirk(
        _surround("<image>", "</image>"),
        image_token="<patch_index_0000>",  # any id that no instruction contains: the features overwrite its embedding
        grid=lambda config, _size: (1, config.latent_query_num),
        first_position=2,  # after the padding index, 1
        lacks=frozenset({"block_mask", "cache"}),  # its attention takes masks (S, L), and no images after a cache
    ),
    # Bidirectional over the prefix (token type 0), causal over the queries. There is one prefix per sequence: in a
    # sequence of several steps an early step would see the later ones, so these models do not interleave.
    "paligemma": Quirk(
        Template(opening="", text="{bos}{prompt}\n"),
        first_position=1,
        attention="prefix",
        lacks=frozenset({"interleave"}),
        extra_inputs={"token_type_ids": mark_query_tokens},
        one_mask=True,
    ),
    "paddleocr_vl": replace(
        _QWEN_VL,
        template=_surround("{vision_start_token_id}", "{vision_end_token_id}"),
        image_inputs=patches.cut_patches_stacked,
    ),
    "kimi_k25": Quirk(
        _surround("{vision_start_token_id}image<|media_content|>", "{vision_end_token_id}"),
        image_inputs=patches.cut_patches_stacked,
        size_multiple=lambda config: config.vision_config.patch_size * config.vision_config.merge_kernel_size[0],
    ),
    "video_llama_3": Quirk(
        _surround(after="\n"),
        image_inputs=patches.cut_patches_unmerged,
        size_multiple=lambda config: config.vision_config.patch_size,
    ),
    "lfm2_vl": Quirk(
        _surround("<|image_start|>", "<|image_end|>"),
        image_inputs=patches.cut_patches_shaped,
        size_multiple=_find_downsampled_side,
        default_size=lambda config, preprocessor: special.find_square_side(
            preprocessor.get("min_image_tokens", 64), _find_downsampled_side(config)
        ),
        lacks=_RECURRENT,
    ),
    "gemma4": _GEMMA4,
    "gemma4_unified": replace(_GEMMA4, image_inputs=patches.cut_patches_placed_whole),
    "mistral3": _PIXTRAL,
    "lighton_ocr": replace(_PIXTRAL, template=_surround(after="\n"), grid=None),
    "llava_onevision": Quirk(image_inputs=inputs.feed_one_of_several),
    "gemma3": _GEMMA3,
    "gemma3n": Quirk(_GEMMA3.template),
    "perception_lm": Quirk(_surround(), image_inputs=inputs.feed_one_tile),
    # An image opens with the token that would have closed the one before it.
    "idefics2": Quirk(
        _surround("<fake_token_around_image>", text="<fake_token_around_image> {prompt}"),
        image_inputs=inputs.feed_nested,
        size_multiple=lambda config: config.vision_config.patch_size,
        default_size=lambda _, preprocessor: (preprocessor.get("size") or {}).get("shortest_edge", 378),
    ),
    "aya_vision": Quirk(_surround("<|START_OF_IMG|>TILE_GLOBAL", "<|END_OF_IMG|>")),
    "cohere2_vision": Quirk(_surround("<|START_OF_IMG|>", "<|IMG_LINE_BREAK|><|END_OF_IMG|>")),
    "ovis2": Quirk(_surround("<IMG_START>", "<IMG_GRID><IMG_END>\n")),
    "step3p7": Quirk(_surround("<im_start>", "<im_end>")),
    "deepseek_vl": _DEEPSEEK_VL,
    "deepseek_vl_hybrid": replace(
        _DEEPSEEK_VL,
        image_inputs=tiles.feed_two_sizes,
        size_multiple=lambda config: config.high_res_vision_config.image_size,
        default_size=lambda config, _: config.high_res_vision_config.image_size,
        preprocessor_overrides={"do_rescale": False, "do_normalize": False},  # done for each tower
    ),
    "aria": Quirk(
        _surround("<fim_prefix>", "<fim_suffix>"),
        size_multiple=tiles.find_aria_side,
        default_size=lambda config, _: tiles.find_aria_side(config),
    ),
    "llama4": Quirk(_surround("<|image_start|><|image|>", "<|image_end|>"), grid=tiles.count_llama4_tokens),
    "chameleon": Quirk(_surround("<racm3:break>", "<eoss>"), discrete_images=True),
    "granite4_vision": replace(_LLAVA_NEXT, grid=tiles.count_granite4_tokens),
    "blip-2": _BLIP2,
    "instructblip": _INSTRUCTBLIP,
    "florence2": Quirk(
        Template(opening="", text="<s>{prompt}</s>"),
        size_multiple=lambda config: math.prod(config.vision_config.patch_stride),
        **_ENCODER,
        note="50 tokens an image at 224 pixels; image_size: 768, as in its pre-training, takes 577",
    ),
    # Its layers' windows extend in both directions, which only its own masks describe.
    "t5gemma2": replace(_GEMMA3, **{**_ENCODER, "lacks": _ENCODER["lacks"] | {"block_mask"}}, extra_inputs={}),
    "kosmos-2.5": Quirk(
        _surround("<image>", "</image>"),
        image_token="<bbox>",  # any id that no instruction contains: the features overwrite its embedding
        image_inputs=special.cut_patches_standardized,
        grid=lambda config, _size: (1, config.latent_query_num),
        size_multiple=special.find_kosmos_patch,
        default_size=special.find_kosmos_side,
        first_position=2,  # after the padding index, 1
        preprocessor_overrides={"do_rescale": False, "do_normalize": False},  # each image is standardized by itself
        extra_inputs={"image_embeds_position_mask": special.mark_image_tokens_and_ends},
        note="every image takes latent_query_num tokens, whatever its size (2048 in the released model: its context of "
        "4096 holds one camera)",
    ),
    "fuyu": Quirk(
        Template(opening="", row_end="|NEWLINE|", after_image="|NEWLINE|", text="{bos}{prompt}<0x04>"),
        image_token="|SPEAKER|",
        image_inputs=patches.cut_patches_of_all,
        grid=lambda config, size: (size[0] // config.patch_size, size[1] // config.patch_size),
        size_multiple=lambda config: config.patch_size,
    ),
    # An image becomes ids of the vocabulary; a special id ends each row.
    "emu3": Quirk(
        _surround("<|image token|>", "<|extra_201|><|image end|>"),
        image_opening=special.open_emu_image,
        image_token="<image>",
        image_inputs=patches.feed_with_sizes,
        grid=special.count_emu_tokens,
        size_multiple=special.find_emu_patch,
        default_size=lambda _, preprocessor: special.find_square_side(preprocessor.get("min_pixels", 512 * 512), 1),
        discrete_images=True,
        note="4160 tokens an image at 512 pixels: choose a smaller image_size; the tokenizer of images stays frozen",
    ),
    # It can read an image as a whole and in crops; here it reads the whole image, like a frame of a video.
    "molmo2": Quirk(
        _surround("<low_res_im_start>", "<im_col><im_end>", row_end="<im_col>"),
        image_inputs=special.cut_patches_pooled,
        grid=special.count_molmo_tokens,
        attention="images",
        extra_inputs={"mm_token_type_ids": special.mark_image_area},
        note="reads the whole image only, not its crops, as it reads the frames of a video",
    ),
    # Like idefics. An image takes four tiles of the tower and fills one of them.
    "mllama": Quirk(
        Template(opening="", text="{bos}{prompt}"),
        image_inputs=special.feed_beside_in_tiles,
        grid=lambda _config, _size: (1, 1),
        lacks=frozenset({"cache"}),  # its cache does not record which step the cached images belong to
        note="its tower takes an image for four tiles, whatever they hold",
    ),
    "janus": Quirk(_surround("<begin_of_image>", "<end_of_image>\n")),
}
# Where a part decides: (model type, model type of the vision tower or language model).
BY_PART: dict[tuple[str, str], Quirk] = {
    ("llava", "pixtral"): _PIXTRAL,
    ("blip-2", "t5"): replace(_BLIP2, **_ENCODER, template=_T5),
    ("instructblip", "t5"): replace(_INSTRUCTBLIP, **_ENCODER, template=_T5),
}

# The names of the tokens before and after an image in configurations.
_AROUND = (("vision_start", "vision_end"), ("image_start", "image_end"), ("boi", "eoi"))


def find_quirk(config: Any, forward_inputs: Container[str]) -> Quirk:
    """Return the row of a model's configuration. Without a row, the inputs of the forward decide."""
    parts = (getattr(getattr(config, name, None), "model_type", "") for name in ("vision_config", "text_config"))
    quirk = look_up_quirk(config.model_type, *parts)
    if quirk is DEFAULT and "image_grid_thw" in forward_inputs:  # like Qwen-VL, with other tokens around images
        named = [names for names in _AROUND if all(getattr(config, f"{n}_token_id", None) is not None for n in names)]
        before, after = (f"{{{name}_token_id}}" for name in named[0]) if named else ("", "")
        quirk = replace(_QWEN_VL, template=_surround(before, after))
    lacks = find_missing_capabilities(config.get_text_config(decoder=True))
    return quirk if quirk.lacks >= lacks else replace(quirk, lacks=quirk.lacks | lacks)


def look_up_quirk(model_type: str, *parts: str) -> Quirk:
    """Return the row of a model type with parts of these model types."""
    rows = (BY_PART[model_type, part] for part in parts if (model_type, part) in BY_PART)
    return next(rows, QUIRKS.get(model_type, DEFAULT))
