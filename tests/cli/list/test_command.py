from __future__ import annotations

import json
from typing import Any

import pytest

from anyvla.cli.main import main


def listed(what: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["list", what, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_recipe_is_listed_with_its_first_line_and_its_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("recipes", capsys)
    assert rows["quickstart"]["benchmark"] == "metaworld/half-open"
    assert rows["quickstart"]["what"].startswith("From demonstrations to a polic")
    assert {row["kind"] for row in rows.values()} == {"recipe"}


def test_each_part_is_listed_under_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {name: row["kind"] for name, row in listed("heads", capsys).items()}
    assert (kinds["flow"], kinds["regression"], kinds["bins"]) == ("decoders", "decoders", "representations")
    assert {row["kind"] for row in listed("formats", capsys).values()} == {"formats"}
