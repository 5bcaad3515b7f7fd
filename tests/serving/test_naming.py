from __future__ import annotations

from anyvla.serving.naming import join_names, quote


def test_names_of_a_client_stay_on_one_line_of_the_log() -> None:
    """A key with a line break could forge a line of the log, and one with an escape sequence the terminal's text."""
    assert join_names(["état", "a\n2026 INFO forged", "\x1b[2J"]) == r"état, a\n2026 INFO forged, \x1b[2J"
    assert quote("a\nb") == r"'a\nb'"


def test_long_lists_and_names_are_shortened() -> None:
    assert join_names([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert join_names(["x" * 61]) == "x" * 57 + "..."
