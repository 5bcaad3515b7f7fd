"""Control tokens in instructions: an instruction is plain text, even if it contains the name of a control token.

A tokenizer takes `<eos>` or `<image>` anywhere in a text for a control token. transformers can switch this off, but
only for a whole text and only for special tokens; a prompt needs its own control tokens, and added tokens that are not
special (`<loc0001>`, `<tool_call>`) act as control tokens too. So a text that contains such a name is cut inside the
name, and the pieces are tokenized one after another (a tokenizer that marks the beginning of a text marks each piece).
A text without such a name stays in one piece and is tokenized as usual.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

_MARKED = re.compile(r"<[^<>\s][^<>\n]*>|\[[A-Z_]{2,}\d*\]|\|[A-Z_]+\|")  # how control tokens are spelled
_KNOWN: WeakKeyDictionary[Any, ControlTokens] = WeakKeyDictionary()  # reading a vocabulary takes a while


class ControlTokens:
    """The control tokens of a tokenizer, and further strings that act as such, from the model's own `template`."""

    def __init__(self, tokenizer: Any, template: str = "") -> None:
        found: dict[str, int | None] = dict.fromkeys(_MARKED.findall(template))
        # Qwen's own tokenizer has a vocabulary of bytes and a separate table of control tokens.
        beside = getattr(tokenizer, "special_tokens", None)
        known = {**tokenizer.get_vocab(), **(beside if isinstance(beside, Mapping) else {})}
        found |= {text: i for text, i in known.items() if isinstance(text, str) and _MARKED.fullmatch(text)}
        for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
            text = str(token)
            if getattr(token, "special", True) or (text.strip() and text in template):
                found[text] = i
        found |= {text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens}
        # A single character (some models pad with "!") cannot be distinguished from ordinary text.
        self.names = frozenset(text for text in found if len(text) > 1)
        # Any text may contain characters that the tokenizer does not know, or knows as bytes only.
        self.ids = frozenset(found[text] for text in self.names if not re.fullmatch("<0x[0-9A-F]{2}>", text)) - {
            None,
            tokenizer.unk_token_id,
        }
        self._lengths = sorted({len(text) for text in self.names})
        self._firsts = frozenset(text[0] for text in self.names)

    def pieces(self, text: str) -> list[str]:
        """Return the text, cut after the first character of each control token's name."""
        cuts = [
            start + 1
            for start, first in enumerate(text)
            if first in self._firsts and any(text[start : start + n] in self.names for n in self._lengths)
        ]
        return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def spellings(self, text: str) -> Iterator[tuple[list[str], bool]]:
        """Yield ways to cut the text, the best first, and whether to separate it from the texts around it as well.

        The later ones are for tokenizers that change a text before they look for control tokens, and for names that
        the text forms together with its surroundings.
        """
        yield self.pieces(text), False
        yield self.pieces(text), True
        yield re.findall(r"[^\W_]+|\s+|[\W_]", text) or [text], True

    def count(self, ids: Iterable[int]) -> Counter[int]:
        """Return how often each control token occurs in the ids."""
        return Counter(i for i in ids if i in self.ids)


def encode_plainly(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Return the texts as a padded batch of tokens, without any control token from the texts themselves."""
    if tokenizer not in _KNOWN:
        _KNOWN[tokenizer] = ControlTokens(tokenizer)
    control = _KNOWN[tokenizer]
    own = control.count(tokenizer("a")["input_ids"])
    rows = []
    for text in texts:
        for pieces, _ in control.spellings(text):
            row = tokenizer(pieces, is_split_into_words=True) if len(pieces) > 1 else tokenizer(text)
            if control.count(row["input_ids"]) == own:
                break
        rows.append(row)
    return tokenizer.pad(rows, return_tensors="pt")
