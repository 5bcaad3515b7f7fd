"""Image inputs of families that fit no other module. The functions are like the ones in `inputs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from anyvla.backbones.control_tokens import encode_plainly
from anyvla.backbones.families.vision.inputs import SequenceImages, group_by_sequence
from anyvla.backbones.families.vision.patches import cut_patches_channels_last, list_positions

MOLMO_POOL = 2  # patches in a row and in a column that make one token


def feed_nothing(_images: SequenceImages) -> dict[str, Any]:
    """Return no arguments."""
    return {}


def feed_no_features(images: SequenceImages) -> dict[str, Any]:
    """Return the features of no image, as BLIP-2 and InstructBLIP need pixels or features."""
    none = BaseModelOutputWithPooling(pooler_output=images.pixels.new_zeros(0))
    none.qformer_outputs = none.vision_outputs = None
    arguments = {"pixel_values": None, "mm_encoder_outputs": {"image": none}}
    return arguments | ({} if images.second_tokenizer is None else {"qformer_input_ids": None})


def feed_with_instructions(images: SequenceImages) -> dict[str, Tensor]:
    """Return (N, 3, h, w) and, for the Q-Former, the ids of the text of each image's step."""
    text = _texts_of_steps(images)
    read = encode_plainly(images.second_tokenizer, text).to(images.pixels.device)
    each = len(images.pixels) // len(text)
    return {
        "pixel_values": images.pixels,
        "qformer_input_ids": read["input_ids"].long().repeat_interleave(each, 0),
        "qformer_attention_mask": read["attention_mask"].long().repeat_interleave(each, 0),
    }


def _texts_of_steps(images: SequenceImages) -> list[str]:
    """Decode the text of each of the M steps from its tokens."""
    sequence = images.sequence
    written = sequence.attention_mask & ~sequence.query_mask & ~images.image_mask
    rows = zip(sequence.input_ids.tolist(), sequence.step_ids.masked_fill(~written, -1).tolist(), strict=True)
    steps: list[list[int]] = []
    for (ids, numbers), count in zip(rows, (sequence.step_ids.amax(1) + 1).tolist(), strict=True):
        own: list[list[int]] = [[] for _ in range(count)]
        for token, number in zip(ids, numbers, strict=True):
            if number >= 0:
                own[number].append(token)
        steps += own
    return [images.tokenizer.decode(step, skip_special_tokens=True) for step in steps]


def find_kosmos_patch(config: Any) -> int:
    """Return the side of a patch in pixels, which KosMos-2.5's configuration gives only indirectly."""
    return math.isqrt(config.vision_config.patch_embed_hidden_size // 3)


def find_square_side(count: int, step: int) -> int:
    """Return the side in pixels of the largest square of at most `count` tokens, each `step` pixels wide."""
    return math.isqrt(count) * step


def find_kosmos_side(config: Any, preprocessor: Mapping[str, Any]) -> int:
    """Return the side that KosMos-2.5's image processor gives a square image: the most patches allowed."""
    most = config.vision_config.max_num_patches
    return find_square_side(min(most, preprocessor.get("max_patches", most)), find_kosmos_patch(config))


def cut_patches_standardized(images: SequenceImages) -> dict[str, Tensor]:
    """Return (N, patches, 2 + p * p * 3), row by row: row and column from 1, then the patch (KosMos-2.5).

    Patches are channels last. Each image is standardized by the mean and standard deviation of the camera's pixels,
    before they are scaled.
    """
    raw = images.sequence.images.flatten(0, 1).to(images.pixels.device).float()  # (N, H, W, 3)
    mean, spread = raw.mean((1, 2, 3)), raw.std((1, 2, 3), correction=0).clamp_min(raw[0].numel() ** -0.5)
    each = len(images.pixels) // len(raw)  # tiles
    mean, spread = (x.repeat_interleave(each)[:, None, None, None] for x in (mean, spread))
    p = find_kosmos_patch(images.config)
    patches = cut_patches_channels_last((images.pixels.float() - mean) / spread, p)
    n, _, h, w = images.pixels.shape
    positions = list_positions(h // p, w // p, patches.device) + 1
    flat = torch.cat([positions.expand(n, -1, -1), patches], -1)
    return {"flattened_patches": flat.to(images.pixels.dtype)}


def mark_image_tokens_and_ends(images: SequenceImages) -> Int64[Tensor, "S L"]:
    """Return 1 at image tokens and -1 at the tokens before and after each image, which share its segment."""
    inside = images.image_mask
    before, after = nn.functional.pad(inside, (0, 1))[:, 1:], nn.functional.pad(inside, (1, 0))[:, :-1]
    return inside.long() - ((before | after) & ~inside).long()


def find_emu_patch(config: Any) -> int:
    """Return the side in pixels of one token of Emu 3."""
    return 2 ** (len(config.vq_config.channel_multiplier) - 1)


def count_emu_tokens(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of an image's tokens; the last column holds the ends of rows."""
    side = find_emu_patch(config)
    return size[0] // side, size[1] // side + 1


def open_emu_image(config: Any, size: tuple[int, int]) -> str:
    """Return the text that opens an image: its size in tokens."""
    rows, columns = count_emu_tokens(config, size)
    return f"<|image start|>{rows}*{columns - 1}"


def count_molmo_tokens(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of an image's tokens."""
    side = config.vision_config.patch_size * MOLMO_POOL
    return -(-size[0] // side), -(-size[1] // side)


def cut_patches_pooled(images: SequenceImages) -> dict[str, Tensor]:
    """Return patches (N, patches, p * p * 3), and the 2 x 2 patches that each image token pools (Molmo 2).

    Patches are numbered over all images; -1 is beyond the edge. The grid of crops is empty.
    """
    p = images.config.vision_config.patch_size
    patches = cut_patches_channels_last(images.pixels, p)
    n, _, h, w = images.pixels.shape
    rows, columns = h // p, w // p
    number = torch.arange(n * rows * columns, device=patches.device).view(n, rows, columns)
    number = nn.functional.pad(number, (0, columns % MOLMO_POOL, 0, rows % MOLMO_POOL), value=-1)
    pooled = number.unflatten(2, (-1, MOLMO_POOL)).unflatten(1, (-1, MOLMO_POOL)).transpose(2, 3)  # (N, R, C, 2, 2)
    return {
        "pixel_values": patches,
        "image_token_pooling": pooled.reshape(-1, MOLMO_POOL**2),
        "image_grids": images.repeat(*pooled.shape[1:3], 0, 0),
        "image_num_crops": images.repeat(1)[:, 0],
    }


def mark_image_area(images: SequenceImages) -> Int64[Tensor, "S L"]:
    """Return 1 at image tokens and at the tokens around and between them."""
    ids = images.tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_col>", "<low_res_im_start>", "<im_end>"])
    return torch.isin(images.sequence.input_ids, torch.tensor(ids, device=images.image_mask.device)).long()


def feed_beside_in_tiles(images: SequenceImages) -> dict[str, Tensor]:
    """Return (S, N, tiles, 3, h, w): N images per sequence, each in the first of its tiles (Llama 3.2 Vision).

    The mask (S, L, N, tiles) lets text and queries read all images of their step, and image tokens the images up to
    their own.
    """
    pixels, own, shown = group_by_sequence(images)
    each, tiles = len(images.pixels) // len(images.sequence.images), images.config.vision_config.max_num_tiles
    # Queries before the images read them too: a position that reads no image would read the images of all steps.
    shown = shown.masked_fill(images.sequence.query_mask, each)
    read = shown[:, :, None] > torch.arange(each, device=shown.device)
    read = (own[..., None] & read[:, :, None]).flatten(2)  # (S, L, N)
    count = read.new_zeros(*pixels.shape[:2], tiles, dtype=torch.int64)
    count[..., 0] = 1
    empty = pixels.new_zeros(*pixels.shape[:2], tiles - 1, *pixels.shape[2:])
    whole = 1 + images.config.vision_config.supported_aspect_ratios.index([1, 1])
    return {
        "pixel_values": torch.cat([pixels[:, :, None], empty], 2),
        "aspect_ratio_ids": count.new_full(count.shape[:2], whole),
        "aspect_ratio_mask": count,
        "cross_attention_mask": nn.functional.pad(read[..., None], (0, tiles - 1)).long(),
    }
