"""Tests that docs/structures.md agrees with the program."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from anyvla.combinations import combinations
from anyvla.recipe import presets
from anyvla.registry import decoders, fusers, histories, representations

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "structures.md"
PRESETS = presets()


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_structures_page", ROOT / "tools" / "make_structures_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_follows_the_rules(tool: ModuleType) -> None:
    page = PAGE.read_text()
    remedy = "run `python tools/make_structures_page.py --table`"
    assert page == tool.replace_table(page, list(combinations())), remedy


def test_a_page_without_the_marks_is_refused(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        tool.replace_table("# Structures", [])


def test_every_part_is_explained() -> None:
    page = PAGE.read_text()
    for name in (*histories, *fusers, *representations, *decoders):
        assert f"`{name}`" in page, name


def test_every_preset_has_its_picture_and_there_are_no_others() -> None:
    page = PAGE.read_text()
    pictures = {path.stem for path in (ROOT / "docs" / "images" / "structures").glob("*.svg")}
    assert pictures == set(PRESETS), "run `python tools/make_structures_page.py`"
    for name in PRESETS:
        assert f"### {name}\n" in page
        assert f"(images/structures/{name}.svg)" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_picture_equals_the_output_of_explain(tool: ModuleType, name: str) -> None:
    drawn = (tool.PICTURES / f"{name}.svg").read_text()
    assert drawn == tool.draw(name), f"run `python tools/make_structures_page.py --only {name}`"
