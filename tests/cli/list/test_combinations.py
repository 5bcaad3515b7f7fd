from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from rich.console import Console

from anyvla.cli.list.combinations import arrange, render
from anyvla.cli.main import main
from anyvla.recipe import bundled, read
from anyvla.registry import decoders, fusers, histories, representations

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
    console = Console(file=io.StringIO(), width=100)
    for line in render(arrange(found)):
        console.print(line)
    return console.file.getvalue()


def test_valid_ones_are_named_and_each_reason_is_given_once() -> None:
    m = arrange(combinations())
    assert m.histories == ["none", "interleaved"]
    assert m.rows == [
        ("regression", "continuous", ["identity", "identity, lstm"]),  # none + lstm is in no cell
        ("tokens", "bins", ["identity", "identity (1), lstm (1)"]),
    ]
    assert m.notes == [ODD]
    assert (m.valid, m.all) == (4, 16)
    text = printed(combinations())
    assert text.count(f"(1) not: {ODD}") == 1
    assert "4 of 16 combinations make a policy" in text


def test_an_unused_part_is_named_once_with_its_own_reason() -> None:
    assert set(arrange(combinations()).unused) == {KIND, HEAD, LATE}
    text = printed(combinations())
    assert all(text.count(f"- {reason}") == 1 for reason in (KIND, HEAD, LATE))


def test_where_nothing_is_valid_the_reasons_are_left() -> None:
    found = [c for c in combinations() if c.reason is not None]
    m = arrange(found)
    assert not m.rows
    assert set(m.unused) == {KIND, HEAD, LATE, ODD}


def test_every_combination_of_the_registries_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "combinations", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(histories) * len(fusers) * len(decoders) * len(representations)
    assert sum(row["valid"] for row in rows) >= 60
    names = ("history", "fuser", "decoder", "representation")
    assert len({tuple(row[n] for n in names) for row in rows}) == len(rows)
    valid = {tuple(row[n] for n in names) for row in rows if row["valid"]}
    for preset in bundled():
        model = read(preset).model
        assert (model.history.name, model.fuser.name, model.decoder.name, model.representation.name) in valid


def test_json_has_one_object_a_combination(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyvla.combinations", SimpleNamespace(combinations=combinations))
    assert main(["list", "combinations", "--json"]) == 0
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
