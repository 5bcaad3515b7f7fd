"""The one spelling of an instruction: texts that look the same are the same, in training and in acting.

Every path from a person or a file to a tokenizer calls `clean_instruction`. Case and punctuation are unchanged.
"""

from __future__ import annotations

import unicodedata

# Characters without a glyph of their own: soft hyphen, grapheme joiner, marks of direction, zero-width space, word
# joiner, invisible operators, byte order mark, annotation marks.
_INVISIBLE = [0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
_INVISIBLE += [0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB, 0xE0001, *range(0xE0020, 0xE0080)]
LONGEST = 10_000  # characters of an instruction
# Some tokenizers use characters of private use as control tokens.
_NO_TEXT = {"Cc": "a control character", "Cs": "half of a surrogate pair", "Co": "a character of private use"}
_DROPPED = dict.fromkeys(_INVISIBLE)
_JOINERS = "\u200c\u200d"  # they shape letters of Persian and Indic scripts, and emoji; beside ASCII they do nothing


def clean_instruction(text: str) -> str:
    """Return the text in Unicode's NFC, without invisible characters, each run of white space as one space."""
    shown = unicodedata.normalize("NFC", text).translate(_DROPPED)
    if any(joiner in shown for joiner in _JOINERS):
        shown = "".join(c for i, c in enumerate(shown) if c not in _JOINERS or _joins(shown, i))
    return " ".join(unicodedata.normalize("NFC", shown).split())


def check_instruction(text: object, *, may_be_empty: bool = False) -> str:
    """Return the clean instruction. Raises ValueError for a text that cannot be an instruction."""
    if not isinstance(text, str):
        raise ValueError(f"an instruction must be a str, got {type(text).__name__}: {text!r:.60}")
    if len(text) > LONGEST:
        raise ValueError(f"the instruction {text[:40]!r} has {len(text)} characters, at most {LONGEST} are read")
    clean = clean_instruction(text)
    for character in clean:
        kind = _NO_TEXT.get(unicodedata.category(character))
        if kind is not None:
            raise ValueError(
                f"the instruction {clean[:60]!r} holds {character!r}, which is {kind}: decode the text as UTF-8, and "
                "remove such characters"
            )
    if not clean and not may_be_empty:
        raise ValueError("the instruction is empty; say what to do, as in start('open the drawer')")
    return clean


def _joins(text: str, place: int) -> bool:
    """Return whether the joiner at `place` is between two characters that it can shape."""
    around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
    return len(around) == 2 and not any(c.isascii() or c.isspace() or c in _JOINERS for c in around)
