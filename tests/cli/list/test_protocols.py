from __future__ import annotations

import json

import pytest

from anyvla.cli.main import main
from anyvla.serving.protocols.registry import protocols


def test_the_rows_say_which_port_and_which_clients(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "protocols", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(protocols)
    row = rows["vla-eval"]
    assert (row["installed"], row["port"], row["address"]) == (True, 8000, "ws://HOST:8000")
    assert row["what"].startswith("vla-eval (protocol 1)")
    assert main(["list", "protocols"]) == 0
    assert "ws://HOST:8000" in capsys.readouterr().out


def test_a_protocol_whose_package_is_missing_is_listed_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(protocols._targets, "needy", "no_such_package.adapter:Protocol")
    assert main(["list", "protocols", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "needy"]
    assert not row["installed"]
    assert row["missing"] == '--protocol needy needs no_such_package: pip install "anyvla[serve]"'
    assert main(["list", "protocols"]) == 0
    assert row["missing"] in " ".join(capsys.readouterr().out.split())
