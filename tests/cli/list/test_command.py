from __future__ import annotations

import json
from typing import Any

import pytest

from anyvla.cli.main import main
from anyvla.registry import REGISTRIES


def listed(what: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["list", what, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_recipe_is_listed_with_its_first_line_and_its_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("recipes", capsys)
    assert rows["quickstart"]["benchmark"] == "metaworld/half-open"
    assert rows["quickstart"]["what"].startswith("From demonstrations to a polic")
    assert {row["kind"] for row in rows.values()} == {"recipe"}


@pytest.mark.parametrize("kind", ["histories", "fusers", "decoders", "representations", "formats"])
def test_each_registry_is_listed_under_the_word_of_a_recipe(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(kind, capsys)
    assert set(rows) == set(REGISTRIES[kind])
    assert {row["kind"] for row in rows.values()} == {kind}
    assert all(row["what"] for row in rows.values())


def test_a_mapping_is_listed_with_its_protocols_and_robots(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("mappings", capsys)
    assert rows["droid"]["protocols"] == "openpi"
    assert "franka_droid" in rows["droid"]["robots"]
    assert {"libero", "droid", "aloha", "bridge", "calvin", "simpler"} <= set(rows)


@pytest.mark.parametrize(
    ("old", "new"), [("heads", "decoders or representations"), ("structures", "histories, fusers, or combinations")]
)
def test_a_word_of_before_is_refused_with_the_new_ones(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", old])
    assert new in capsys.readouterr().err
