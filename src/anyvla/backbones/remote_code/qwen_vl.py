"""Qwen-VL, the first (Qwen/Qwen-VL, arXiv 2308.12966): a ViT-bigG with a resampler to 256 tokens, Qwen-7B.

Written against its public code (`modeling_qwen.py`, `visual.py`, `tokenization_qwen.py`): the tower is
`transformer.visual`, and the places of an image stand between `<img>` and `</img>`. That code reads images from paths
spelled in token ids. Here it gets token ids without images, and a hook writes all embeddings. It was tested with a
stand-in of this interface, and once with that code itself, cut to a small size, under transformers 5.23. The released
weights and tokenizer were not tested. The code needs torchvision, einops and tiktoken.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from anyvla.backbones.hooks import written
from anyvla.backbones.remote_code.loading import Pair, RemoteBackbone
from anyvla.backbones.template import Template


class QwenVLBackbone(RemoteBackbone):
    """Each image takes 256 tokens and two around them."""

    # Its masks are two-dimensional, its cache is of a form that transformers has dropped.
    capabilities = frozenset({"interleave", "continue", "lm_head"})
    about = "Qwen-VL (v1)"
    needs = ("transformer.visual", "transformer.h", "transformer.ln_f", "lm_head")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
    template = Template(opening="", before_image="<img>", after_image="</img>", text="{prompt}")

    def take_apart(self, model: Any, tokenizer: Any) -> Pair:
        self.image_size, start = (model.config.visual[key] for key in ("image_size", "image_start_id"))
        self._ends = {"<img>": start, "</img>": start + 1}
        return Pair(model.transformer.visual, model, tokenizer)

    def read(self, given: dict[str, Any]) -> None:
        """The model wants ids, and must not see any of an image in them."""
        embedded = given.pop("inputs_embeds")
        given.pop("position_ids", None)  # it counts places by itself
        ids = torch.zeros(embedded.shape[:2], dtype=torch.int64, device=embedded.device)
        everywhere = torch.arange(ids.numel(), device=ids.device)
        with written(self.embedding, ids.shape, everywhere, embedded.flatten(0, 1)):
            self.model(input_ids=ids, **given)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in re.split("(</?img>)", text):  # its tokenizer takes what stands between these for a path
            ids += [self._ends[piece]] if piece in self._ends else super()._encode(piece)
        return ids
