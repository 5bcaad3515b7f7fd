"""UForm-Gen 2 (unum-cloud/uform-gen2-qwen-500m): a ViT-H/14, a pooler to a few latents, Qwen1.5-0.5B.

Written against the public `gen_model.py` of github.com/unum-cloud/uform and the model card of the second generation:
`image_encoder`, `image_pooler`, `text_decoder`. Tested with a stand-in of that interface, not with the released weights
and files of the second generation. The language model is one of `transformers` and keeps all its capabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer

from anyvla.backbones.base import CAPABILITIES
from anyvla.backbones.remote_code.loading import Components, RemoteBackbone
from anyvla.backbones.template import Template

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n "


class UFormBackbone(RemoteBackbone):
    """The pooler gives each image `image_pooler_num_latents` tokens."""

    capabilities = frozenset(CAPABILITIES)
    about = "UForm-Gen 2"
    required_modules = ("image_encoder", "image_pooler", "text_decoder")
    other_model_key = "text_decoder_name_or_path"
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
    template = Template(opening=SYSTEM, text=" {prompt}<|im_end|>\n<|im_start|>assistant\n")

    def split_model(self, model: Any, tokenizer: Any) -> Components:
        self.image_size = model.config.image_size
        return Components(model.image_encoder, model.text_decoder, tokenizer, model.image_pooler)

    def load_tokenizer(self, folder: Path, config: Any) -> Any:
        """Return the tokenizer of the folder, or of the language model that the configuration names."""
        here = (folder / "tokenizer_config.json").is_file()
        return AutoTokenizer.from_pretrained(folder if here else config.tokenizer_name_or_path, trust_remote_code=False)

    def extract_features(self, pixels: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N F Dv"]:
        return getattr(self.tower, "forward_features", self.tower)(pixels)
