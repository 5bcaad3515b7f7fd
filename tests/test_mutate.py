"""The tool that puts silent bugs into copies of the tree, on a tree of one module; and its tables."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
TABLE = """
tests: [tests/test_rate.py]
mutations:
- name: the rate is doubled
  file: src/rates.py
  old: "return full * share"
  new: "return 2 * full * share"
- name: a share above one is allowed
  file: src/rates.py
  old: "share > 1"
  new: "share > 2"
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # processes of the tests import it by its name
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutate", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHARED", ["pytest"])
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    files = {
        "src/rates.py": "def rate(full, share):\n    if share > 1:\n        raise ValueError\n"
        "    return full * share\n",
        "tests/test_rate.py": "from rates import rate\n\ndef test_rate():\n    assert rate(10, 0.5) == 5\n",
        "tools/mutations/rates.yaml": TABLE,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def test_the_tool_prints_what_the_tests_do_not_notice(
    tool: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tree / "src/rates.py").read_bytes()
    assert tool.main(["--jobs", "1"], tree) == 1  # 50 % is less than the usual 95 %
    out = capsys.readouterr().out
    assert "rates            1 of   2 noticed" in out
    assert "all              1 of   2 noticed, 50.0 %" in out
    assert [line for line in out.splitlines() if line.startswith("survived:")] == [
        "survived: rates: a share above one is allowed   (src/rates.py)"
    ]
    assert (tree / "src/rates.py").read_bytes() == before
    assert tool.main(["--jobs", "1", "--only", "doubled"], tree) == 0


def test_tests_that_fail_without_a_mutation_are_an_error(
    tool: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "tests/test_rate.py").write_text("def test_it():\n    assert False\n", encoding="utf-8")
    assert tool.main(["--jobs", "1"], tree) == 2
    assert "without a mutation, tests/test_rate.py ended with 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("src/rates.py", "src/gone.py", "there is no file src/gone.py"),
        ("share > 1", "share", "the old text occurs 3 times in src/rates.py, not once"),
        ("share > 1", "share >= 1", "the old text occurs 0 times in src/rates.py, not once"),
        ("tests/test_rate.py", "tests/test_gone.py", "there is no test tests/test_gone.py"),
        ('"share > 2"', '"share > 1"', "the new text is the old text"),
        ("  new: ", "  knew: ", "the entry 'the rate is doubled' lacks new"),
        ("a share above one is allowed", "the rate is doubled", "two entries have the same name"),
        ("[tests/test_rate.py]", "*gone", "found undefined alias 'gone'"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(
    tool: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    table = tree / "tools/mutations/rates.yaml"
    table.write_text(TABLE.replace(old, new), encoding="utf-8")
    assert tool.main(["--check"], tree) == 2
    assert message in capsys.readouterr().err


def test_the_tables_fit_the_code_and_cover_every_layer(tool: ModuleType) -> None:
    tables = sorted((ROOT / "tools/mutations").glob("*.yaml"))
    mutations = [m for table in tables for m in tool.read_table(table)]
    for mutation in mutations:
        mutation.apply(ROOT)
    assert len(mutations) >= 150
    folders = Counter(Path(m.file).parts[2] if m.file.startswith("src") else "simulators" for m in mutations)
    for layer in (
        "backbones",
        "data",
        "decoders",
        "demonstrations",
        "evaluation",
        "report",
        "representations",
        "robot",
        "serving",
        "training",
    ):
        assert folders[layer] >= 10, layer
    assert folders["simulators"] >= 10
