"""The table of exceptions: what one family of vision-language models does unlike LLaVA.

`AutoBackbone` has no branch on a family; it reads a `Quirk`. A family that is not in the table is taken for LLaVA-like:
`[BOS] image tokens, newline, prompt`, one flat batch of images, causal attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Places = Literal["image", "query"]  # which places of the sequence an extra input marks with 1


@dataclass(frozen=True)
class Quirk:
    """How to write and feed the sequences of one model type. In texts, `{bos}` stands for the tokenizer's BOS token."""

    opening: str = "{bos}"  # opens a sequence, once
    before_image: str = ""
    after_image: str = ""
    text: str = "\n{prompt}"  # follows the images of a step
    image_token: str | None = None  # None: the config's image_token_id
    pixels: Literal["flat", "nested"] = "flat"  # (N, 3, H, W), or (1, N, 3, H, W)
    first_position: int = 0  # of position_ids
    causal: bool = True  # no token sees a later one, so that right padding needs no attention mask
    interleave: bool = True  # several steps may share one sequence
    extras: Mapping[str, Places] = field(
        default_factory=lambda: {"mm_token_type_ids": "image", "image_embeds_position_mask": "image"}
    )  # inputs to give when the model's forward names them


DEFAULT = Quirk()

_IDEFICS3 = Quirk(
    before_image="<fake_token_around_image><global-img>",
    after_image="<fake_token_around_image>",
    text="{prompt}",
    pixels="nested",
)

QUIRKS: dict[str, Quirk] = {
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    "kosmos-2": Quirk(
        before_image="<image>",
        after_image="</image>",
        text="{prompt}",
        image_token="<patch_index_0000>",  # any id that no instruction contains: the features overwrite its embedding
        first_position=2,  # after the padding index, 1
    ),
    # Bidirectional over the prefix (token type 0), causal over the queries. There is one prefix per sequence: in a
    # sequence of several steps an early step would see the later ones, so these models do not interleave.
    "paligemma": Quirk(
        opening="",
        text="{bos}{prompt}\n",
        first_position=1,
        causal=False,
        interleave=False,
        extras={"token_type_ids": "query"},
    ),
}


def quirk_of(model_type: str) -> Quirk:
    """The row of a model type."""
    return QUIRKS.get(model_type, DEFAULT)


def extra_inputs(quirk: Quirk, names: frozenset[str], image: Tensor, query: Tensor) -> dict[str, Tensor]:
    """The extra inputs, (S, L) int64, that a forward with these argument names takes."""
    places = {"image": image, "query": query}
    return {name: places[kind].long() for name, kind in quirk.extras.items() if name in names}
