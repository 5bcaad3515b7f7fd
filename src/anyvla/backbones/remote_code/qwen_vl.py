"""Qwen-VL, the first generation (Qwen/Qwen-VL, arXiv 2308.12966): a ViT-bigG with a resampler to 256 tokens, Qwen-7B.

Written against its public code (`modeling_qwen.py`, `visual.py`, `tokenization_qwen.py`): the tower is
`transformer.visual`, and the tokens of an image are enclosed by `<img>` and `</img>`. That code reads images from paths
spelled in token ids; here it gets token ids without images, and a hook overwrites all embeddings. Tested with a
stand-in of this interface, and once with the original code at a reduced size under transformers 5.23; not tested with
the released weights and tokenizer. The code needs torchvision, einops and tiktoken.
"""

from __future__ import annotations

from typing import Any

import torch

from anyvla.backbones.hooks import overwrite_embeddings
from anyvla.backbones.remote_code.loading import Components, RemoteBackbone
from anyvla.backbones.template import Template


class QwenVLBackbone(RemoteBackbone):
    """Each image takes 256 tokens and the two tokens around them."""

    # Its masks are two-dimensional, and its cache has a form that transformers has dropped.
    capabilities = frozenset({"interleave", "continue", "lm_head"})
    about = "Qwen-VL (v1)"
    required_modules = ("transformer.visual", "transformer.h", "transformer.ln_f", "lm_head")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
    template = Template(opening="", before_image="<img>", after_image="</img>", text="{prompt}")

    def split_model(self, model: Any, tokenizer: Any) -> Components:
        self.image_size, start = (model.config.visual[key] for key in ("image_size", "image_start_id"))
        # Its tokenizer would take the text between these for a path.
        ends = {"<img>": start, "</img>": start + 1}
        return Components(model.transformer.visual, model, tokenizer, literal_ids=ends)

    def run_language(self, given: dict[str, Any]) -> None:
        """Run the model over ids without images, with all embeddings overwritten: it accepts no embeddings."""
        embedded = given.pop("inputs_embeds")
        given.pop("position_ids", None)  # it counts positions itself
        ids = torch.zeros(embedded.shape[:2], dtype=torch.int64, device=embedded.device)
        everywhere = torch.arange(ids.numel(), device=ids.device)
        with overwrite_embeddings(self.embedding, ids.shape, everywhere, embedded.flatten(0, 1)):
            self.model(input_ids=ids, **given)
