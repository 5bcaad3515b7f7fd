"""The vocabulary of a language model: which ids it embeds, its regular ids, and logits of single ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def check_embedded(ids: Sequence[int], tokenizer: Any, vocabulary: int) -> None:
    """Raise ValueError for an id that is not among the `vocabulary` ids that the model embeds."""
    wrong = [i for i in ids if not 0 <= i < vocabulary]
    if wrong:
        raise ValueError(
            f"the tokenizer has the token {tokenizer.convert_ids_to_tokens(wrong[0])!r:.60} (id {wrong[0]}), "
            f"but the model embeds only {vocabulary}: use the tokenizer that belongs to these weights"
        )


def find_last_ids(tokenizer: Any, vocabulary: int, image_id: int, count: int) -> Int64[Tensor, "n"]:
    """Return the last `count` regular ids, ascending: no special tokens, added tokens or image tokens.

    Raises ValueError if the vocabulary has too few regular ids.
    """
    known = min(tokenizer.vocab_size, vocabulary)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, image_id}
    regular = [i for i in range(known) if i not in special]
    if count >= len(regular):
        raise ValueError(
            f"{count} ids are more than the vocabulary of {len(regular)} regular tokens gives; use ids: added, "
            "or a codec with fewer tokens"
        )
    return torch.tensor(regular[-count:])


def logits_of_ids(
    lm_head: Any, hidden: Float[Tensor, "*batch D"], ids: Int64[Tensor, "n"]
) -> Float[Tensor, "*batch n"]:
    """Return the LM head's logits of these ids only."""
    bias = getattr(lm_head, "bias", None)
    weight = lm_head.weight
    return nn.functional.linear(hidden.to(weight.dtype), weight[ids], None if bias is None else bias[ids])
