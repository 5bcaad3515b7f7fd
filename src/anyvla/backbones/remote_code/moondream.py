"""MoonDream 2 (vikhyatk/moondream2): a SigLIP tower, two layers of projection, Phi-1.5.

Written against the public code of the revision of 2024-08-26 (`moondream/hf` in github.com/vikhyat/moondream), whose
tower takes tensors. Revisions before May 2024 take pictures only, those from 2025 on are another model: neither is read
here. Tested with a stand-in of that interface, and once with that code itself, cut to a small size, under transformers
5.23; the released weights were not at hand. The code needs torchvision and einops.
"""

from __future__ import annotations

from typing import Any

from anyvla.backbones.base import capabilities_without
from anyvla.backbones.remote_code.loading import Pair, RemoteBackbone
from anyvla.backbones.template import Template


class MoondreamBackbone(RemoteBackbone):
    """Images of 378 pixels become 729 tokens; larger ones are scaled down, where the original would also tile them."""

    capabilities = capabilities_without(frozenset({"cache"}))  # its cache needs methods that transformers has dropped
    about = "MoonDream 2 of 2024-08-26"
    needs = ("vision_encoder", "text_model")
    image_size = 378
    template = Template(text="\n\nQuestion: {prompt}\n\nAnswer:")

    def take_apart(self, model: Any, tokenizer: Any) -> Pair:
        self.image_size = getattr(model.config, "image_size", self.image_size)
        return Pair(model.vision_encoder, model.text_model, tokenizer)
