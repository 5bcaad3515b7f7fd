"""Images of families that take them in a way of their own. Functions as in `anyvla.backbones.vision_inputs`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from anyvla.backbones.vision_inputs import Images


def nothing(_images: Images) -> dict[str, Any]:
    """No arguments."""
    return {}


def no_features(images: Images) -> dict[str, Any]:
    """No pixels, but the features of no image (BLIP-2 and InstructBLIP want one of both)."""
    none = BaseModelOutputWithPooling(pooler_output=images.pixels.new_zeros(0))
    none.qformer_outputs = none.vision_outputs = None
    arguments = {"pixel_values": None, "mm_encoder_outputs": {"image": none}}
    return arguments | ({} if images.second_tokenizer is None else {"qformer_input_ids": None})


def instructed(images: Images) -> dict[str, Tensor]:
    """(N, 3, h, w), and what the Q-Former reads beside each image: the text of its step, in ids of its own."""
    text = _texts_of_steps(images)
    read = images.second_tokenizer(text, padding=True, return_tensors="pt").to(images.pixels.device)
    each = len(images.pixels) // len(text)
    return {
        "pixel_values": images.pixels,
        "qformer_input_ids": read["input_ids"].long().repeat_interleave(each, 0),
        "qformer_attention_mask": read["attention_mask"].long().repeat_interleave(each, 0),
    }


def _texts_of_steps(images: Images) -> list[str]:
    """The text of each of the M steps, read back from its tokens."""
    sequence = images.sequence
    written = sequence.attention_mask & ~sequence.query_mask & ~images.places
    rows = zip(sequence.input_ids.tolist(), sequence.step_ids.masked_fill(~written, -1).tolist(), strict=True)
    steps: list[list[int]] = []
    for (ids, numbers), count in zip(rows, (sequence.step_ids.amax(1) + 1).tolist(), strict=True):
        own: list[list[int]] = [[] for _ in range(count)]
        for token, number in zip(ids, numbers, strict=True):
            if number >= 0:
                own[number].append(token)
        steps += own
    return [images.tokenizer.decode(step, skip_special_tokens=True) for step in steps]
