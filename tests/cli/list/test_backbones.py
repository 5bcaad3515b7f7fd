from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import CAPABILITIES
from anyvla.backbones.checks.conformance import CHECKS
from anyvla.backbones.families.results import RESULTS, backbones_with, load_results, parse_results
from anyvla.backbones.families.unsupported import UNSUPPORTED
from anyvla.cli.list import backbones as list_backbones
from anyvla.cli.main import main
from anyvla.registry import backbones
from tests.backbones.families import FAMILIES, timm_towers
from tests.backbones.families.registered import REGISTERED

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_backbone_matrix", ROOT / "tools" / "make_backbone_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REMEDY = "run `python tools/make_backbone_matrix.py`"


def test_the_packaged_results_cover_the_test_matrix_and_its_checks() -> None:
    assert set(load_results().families) == set(FAMILIES) - set(timm_towers.FAMILIES), REMEDY  # measured without timm
    assert {n for n, m in load_results().backbones.items() if m.checks} == set(REGISTERED), REMEDY
    for measured in load_results().families.values():
        assert list(measured.checks) == list(CHECKS), f"{measured.name}: {REMEDY}"


def test_no_check_of_the_matrix_failed() -> None:
    measured = (*load_results().families.values(), *load_results().backbones.values())
    assert not {m.name: m.failed for m in measured if m.failed}


def test_the_capabilities_agree_with_config_json(tmp_path: Path) -> None:
    for name, family in FAMILIES.items():
        family.build().save_pretrained(tmp_path / name)
        found = AutoBackbone.find_capabilities(AutoBackbone.Config(path=str(tmp_path / name)))
        assert found == set(load_results().families[name].capabilities or ()), f"{name}: {REMEDY}"


def test_a_model_type_is_tried_or_not_or_cannot_be_done() -> None:
    tried = {m.model_type for m in load_results().families.values()}
    assert not tried & {*load_results().untried, *UNSUPPORTED}
    assert not {*load_results().untried} & {*UNSUPPORTED}


def test_the_page_is_rendered_from_the_results(tool: ModuleType) -> None:
    assert (ROOT / "docs" / "backbones.md").read_text() == tool.render(load_results()), (
        "run `python tools/make_backbone_matrix.py --render`"
    )


def test_the_page_names_failed_checks_with_their_reasons(tool: ModuleType) -> None:
    document = json.loads(RESULTS.read_text())
    document["families"]["llava"]["checks"]["cache"] = "failed: differs by 3 | 4"
    before, page = tool.render(load_results()), tool.render(parse_results(document))
    assert "- **failed** cache: differs by 3 | 4 (`llava`)" in page
    assert page.count("**no**") == before.count("**no**") + 1
    assert "{{" not in page


def test_json_has_a_row_for_every_backbone_and_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backbones", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    by_name = {(row["kind"], row["name"]): row for row in rows}
    assert len(by_name) == len(rows)
    assert {name for kind, name in by_name if kind == "backbone"} == set(backbones)
    assert set(FAMILIES) <= {name for kind, name in by_name if kind == "family"}
    assert set(list_backbones.CAPABILITIES) == set(CAPABILITIES)
    assert all({"class", "capabilities", "tested", "transformers", "notes"} <= row.keys() for row in rows)
    assert by_name["backbone", "auto"]["tested"]
    llava = by_name["family", "llava"]
    assert llava["class"] == "LlavaForConditionalGeneration"
    assert sorted(llava["capabilities"]) == sorted(CAPABILITIES)
    assert llava["tested"]
    assert llava["transformers"] == load_results().versions["transformers"]
    assert "interleave" not in by_name["family", "paligemma"]["capabilities"]
    untried = [row for row in rows if not row["tested"] and row["kind"] == "family"]
    assert all("anyvla doctor backbone" in row["notes"] for row in untried)


def test_the_table_names_every_family(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list", "backbones"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in FAMILIES)
    assert "more model types" in shown


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from anyvla.cli.main import main; main(['list', 'backbones']);"
        "heavy = {'torch', 'transformers', 'pydantic'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_backbones_of_other_packages_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine:
        """Reads tea leaves.

        Well.
        """

        capabilities = frozenset({"cache"})

    targets = dict(backbones._all()) | {"mine": Mine, "gone": "no.such.module:Thing"}
    monkeypatch.setattr(backbones, "_targets", targets)
    assert main(["list", "backbones", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mine"]["class"] == "Mine"
    assert rows["mine"]["capabilities"] == ["cache"]
    assert rows["mine"]["notes"] == "Reads tea leaves."
    assert not rows["mine"]["tested"]
    assert "cannot be imported" in rows["gone"]["notes"]


def test_backbones_with_a_capability() -> None:
    everyone = backbones_with(frozenset())
    assert {*FAMILIES, *REGISTERED} <= set(everyone)
    assert "llava" in backbones_with(frozenset({"interleave"}))
    assert "paligemma" not in backbones_with(frozenset({"interleave"}))


def test_a_family_that_cannot_be_built_is_a_result(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise RuntimeError("no such class")

    monkeypatch.setitem(FAMILIES, "broken", SimpleNamespace(build=build, options={}, seed=0))
    row = tool.examine_member("families", "broken")
    assert row["checks"] == {"build": "failed: RuntimeError: no such class"}


def test_the_page_names_every_option() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text()
    options = {field.name for field in dataclasses.fields(backbones["auto"].Config)}
    assert not {name for name in options if f"`{name}`" not in page}
