from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from rich.console import Console

from anyvla.cli.list_structures import matrix
from anyvla.cli.main import main

LATE = "fuser 'lstm' fuses a window, but history 'none' has one step"
KIND = "decoder 'regression' reads continuous actions, not tokens"
HEAD = "decoder 'tokens' reads tokens: give it a codec"
ODD = "no such pair in a window"


@dataclass(frozen=True)
class Fake:
    history: str
    fuser: str
    decoder: str
    representation: str
    reason: str | None


def reason(history: str, fuser: str, decoder: str, representation: str) -> str | None:
    if (history, fuser) == ("none", "lstm"):
        return LATE
    if decoder == "regression" and representation == "bins":
        return KIND
    if decoder == "tokens" and representation == "continuous":
        return HEAD
    if (history, decoder) == ("interleaved", "tokens"):
        return ODD
    return None


def combinations() -> list[Fake]:
    return [
        Fake(*key, reason(*key))
        for history in ("none", "interleaved")
        for fuser in ("identity", "lstm")
        for decoder in ("regression", "tokens")
        for representation in ("continuous", "bins")
        for key in [(history, fuser, decoder, representation)]
    ]


def printed(found: list[Fake]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for line in matrix(found):
        console.print(line)
    return console.file.getvalue()


def test_valid_ones_are_marked_and_reasons_stand_once_below() -> None:
    text = printed(combinations())
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if line}
    assert rows["regression", "continuous"] == ["yes", "yes", "yes"]  # none + lstm has no column
    assert rows["tokens", "bins"] == ["yes", "1", "1"]
    assert text.count(f"1  {ODD}") == 1
    assert "4 of 16 combinations are valid" in text


def test_what_goes_with_nothing_is_named_once_and_with_its_own_reason() -> None:
    text = printed(combinations())
    assert f"regression + bins: {KIND}" in text
    assert f"tokens + continuous: {HEAD}" in text
    assert f"none + lstm: {LATE}" in text
    assert text.count(LATE) == 1


def test_json_has_one_object_a_combination(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyvla.structures.validity", SimpleNamespace(combinations=combinations))
    assert main(["list", "structures", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 16
    assert rows[0] == {
        "history": "none",
        "fuser": "identity",
        "decoder": "regression",
        "representation": "continuous",
        "valid": True,
        "reason": None,
    }
    assert all(row["valid"] == (row["reason"] is None) for row in rows)


def test_the_table_says_what_the_parts_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(sys.modules, "anyvla.structures.validity", SimpleNamespace(combinations=combinations))
    assert main(["list", "structures"]) == 0
    shown = capsys.readouterr().out
    for name in ("interleaved", "policy_head", "gpt", "histories", "fusers"):
        assert name in shown
    assert "4 of 16" in shown
