"""The model types of `AutoModelForImageTextToText` that cannot be the backbone of a robot policy, and why.

`AutoBackbone` refuses them with the reason; the docs list them.
"""

from __future__ import annotations

from collections.abc import Mapping

# Each reason completes "a model of this type ...".
UNSUPPORTED: Mapping[str, str] = {
    "blip": "reads one image by cross-attention: a second camera has no place (BLIP-2 reads several)",
    "evolla": "reads proteins, not images",
    "git": "puts its one image before the text by itself: a second camera has no place",
    "mistral4": "reads text only: choose a model with a vision tower, such as Mistral 3",
    "pi0": "is a robot policy already, with a head of its own: use the PaliGemma inside it",
    "pix2struct": "reads its instruction as pixels drawn above the image: there is no token of an instruction",
    "pp_formulanet": "writes the formula that an image shows and reads no instruction",
    "shieldgemma2": "judges whether an image is safe and reads no instruction: use Gemma 3",
    "udop": "reads scanned pages: words with their boxes on the page",
    "vision-encoder-decoder": "writes a caption of an image and reads no instruction",
}
