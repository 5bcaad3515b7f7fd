"""MoonDream 2 (vikhyatk/moondream2): a SigLIP tower, two layers of projection, Phi-1.5.

Written against the public code of the revision of 2024-08-26 (`moondream/hf` in github.com/vikhyat/moondream), whose
tower takes tensors. Revisions before May 2024 take only pictures, and revisions from 2025 on are a different model;
neither is supported. Tested with a stand-in of that interface, and once with the original code at a reduced size under
transformers 5.23; not tested with the released weights. The code needs torchvision and einops.
"""

from __future__ import annotations

from typing import Any

from anyvla.backbones.base import capabilities_without
from anyvla.backbones.remote_code.loading import Components, RemoteBackbone
from anyvla.backbones.template import Template


class MoondreamBackbone(RemoteBackbone):
    """Images of 378 pixels become 729 tokens; larger images are scaled down, without the tiles of the original."""

    capabilities = capabilities_without(frozenset({"cache"}))  # its cache needs methods that transformers has dropped
    about = "MoonDream 2 of 2024-08-26"
    required_modules = ("vision_encoder", "text_model")
    image_size = 378
    template = Template(text="\n\nQuestion: {prompt}\n\nAnswer:")

    def split_model(self, model: Any, tokenizer: Any) -> Components:
        self.image_size = getattr(model.config, "image_size", self.image_size)
        return Components(model.vision_encoder, model.text_model, tokenizer)
