"""Texts that look the same are the same instruction, on every path."""

from __future__ import annotations

import dataclasses
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.training.mixture import Mixture
from anyvla.data.transforms.subset import choose
from anyvla.text import check_instruction, clean_instruction
from tests import small


@pytest.mark.parametrize(
    ("written", "clean"),
    [
        ("open the drawer", "open the drawer"),
        (" open  the\tdrawer \r\n", "open the drawer"),
        ("open\u00a0the\u2003drawer\u3000", "open the drawer"),
        ("open the\u2028drawer\x0b\x0c\x85", "open the drawer"),
        ("\ufeffopen the\u200b drawer\u2060", "open the drawer"),
        ("op\u00aden \u200ethe\u200f \u202adrawer\u202c", "open the drawer"),
        ("op\u200den the\u200c drawer\u200d", "open the drawer"),
        ("Öffne die Schublade!", "Öffne die Schublade!"),
        ("O\u0308ffne die Schublade!", "Öffne die Schublade!"),
        ("o\u200b\u0308ffne", "öffne"),
        ("\u212bsa", "Åsa"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0631", "\u0645\u06cc\u200c\u062e\u0648\u0631"),  # a joiner that Persian needs
        ("\U0001f469\u200d\U0001f527 helps", "\U0001f469\u200d\U0001f527 helps"),  # one picture of three characters
        ("OPEN the Drawer , now ...", "OPEN the Drawer , now ..."),
        ("\uff1ceos\uff1e", "\uff1ceos\uff1e"),  # wide letters look different: they stay
        ("", ""),
    ],
)
def test_texts_that_look_the_same_become_equal(written: str, clean: str) -> None:
    assert clean_instruction(written) == clean


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    clean = clean_instruction(text)
    assert clean_instruction(clean) == clean
    assert clean_instruction(unicodedata.normalize("NFD", text)) == clean
    assert clean_instruction(f" {text}\n") == clean
    assert clean_instruction(f"\ufeff{text}\u200b") == clean


@given(st.text())
def test_an_instruction_is_text_or_refused(text: str) -> None:
    try:
        clean = check_instruction(text)
    except ValueError:
        return
    assert clean
    clean.encode()


def test_episodes_mixtures_subsets_and_sessions_have_one_spelling() -> None:
    vla, text = small.policy(), "öffne die Tür"
    for spelling in (unicodedata.normalize("NFD", text), f"{text}\n", text.replace(" ", "\u00a0"), f"\ufeff {text}"):
        episode = small.episode(3, instruction=spelling)
        assert episode.instructions == (text,)
        assert dataclasses.replace(episode, instructions=(spelling,)).instruction == text
        assert vla.start(spelling).instruction == text
        steps = small.batch(1, 1)
        one, other = (vla.loss(dataclasses.replace(steps, instructions=[t])).value for t in (spelling, text))
        assert one == other


class Data:
    """Three episodes of one task."""

    root, fingerprint, embodiment = "data", "f", small.embodiment()

    def __len__(self) -> int:
        return 3

    def task(self, index: int) -> str:
        return ("öffne es", "o\u0308ffne es ", "öffne  es")[index]


def test_a_subset_counts_tasks_by_one_spelling() -> None:
    assert len(choose(Data(), 2, 1.0, 0)) == 2  # type: ignore[arg-type]


def test_training_refuses_what_acting_refuses() -> None:
    mixture = Mixture([Data()], [1.0], [" o\u0308ffne es\n"])  # type: ignore[list-item]
    assert mixture.instruction(0, small.episode(3, instruction=" "), 0) == "öffne es"
    broken = dataclasses.replace(small.episode(3, instruction="open\x00"), provenance="file 3, episode 1")
    with pytest.raises(ValueError, match=r"file 3, episode 1: the instruction .*a control character"):
        mixture.instruction(0, broken, 0)
    with pytest.raises(ValueError, match="is empty"):
        Mixture([Data()], [1.0], ["\u200b"])  # type: ignore[list-item]
