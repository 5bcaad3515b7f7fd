"""`benchmarks/gpu.py`: each part in a process of its own, with a limit, and what it measured before it ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

PARTS = """
import json, sys, time
from pathlib import Path

name, rows = sys.argv[1], Path(sys.argv[3])
rows.write_text(json.dumps({"case": "one", "samples/s": 50.5, "% MFU": 12}) + "\\n")
if name == "slow":
    time.sleep(60)
if name == "broken":
    raise ValueError("no memory is left")
if name == "elsewhere":
    print("it needs CUDA", file=sys.stderr)
    sys.exit(77)
print(sys.argv[4:], file=sys.stderr)
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return the module with parts that are made up."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    monkeypatch.setitem(sys.modules, "gpu_parts", type(sys)("gpu_parts"))
    sys.modules["gpu_parts"].SKIPPED = 77  # type: ignore[attr-defined]
    import gpu  # type: ignore[import-not-found]

    (tmp_path / "gpu_parts.py").write_text(PARTS)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gpu.py"))
    yield gpu
    sys.modules.pop("gpu", None)


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("fine", "done", ""),
        ("broken", "failed", "ValueError: no memory is left"),
        ("elsewhere", "skipped", "it needs CUDA"),
        ("slow", "out of time", "after 3 s"),
    ],
)
def test_a_part_ends_alone_and_keeps_its_rows(gpu: Any, name: str, status: str, reason: str) -> None:
    outcome = gpu.run_part(name, ["--device", "cpu"], 3.0)
    assert (outcome.part, outcome.status, outcome.reason) == (name, status, reason)
    assert [row["samples/s"] for row in outcome.rows] == [50.5]
    assert outcome.seconds < 30


def test_the_table_has_each_case_and_compares_it_with_its_goals(gpu: Any) -> None:
    outcomes = [
        gpu.Outcome("full", "done", 9.0, "", [{"case": "batch 16", "samples/s": 50.55555, "% MFU": 12}]),
        gpu.Outcome("chunk", "out of time", 9.0, "after 9 s", [{"case": "eager", "ms": 12.0}]),
        gpu.Outcome("tests", "skipped", 1.0, "tests marked gpu need CUDA"),
    ]
    goals = {"full": {"samples/s": ">= 40", "% MFU": ">= 45"}, "chunk": {"ms": "<= 12"}}
    facts = {"machine": "H200", "torch": "2", "transformers": "5", "commit": "abc", "command": "make gpu"}
    table = gpu.write_table(facts, outcomes, goals).splitlines()
    assert table[0] == "H200, torch 2, transformers 5, commit abc; make gpu"
    assert table[4:] == [
        "| full | batch 16 | 50.56 samples/s, 12 % MFU | samples/s >= 40: reached, % MFU >= 45: missed |",
        "| chunk | eager | 12 ms | ms <= 12: reached |",
        "| chunk | | out of time: after 9 s | |",
        "| tests | | skipped: tests marked gpu need CUDA | |",
    ]


def test_the_parts_take_less_than_eight_minutes() -> None:
    code = "import gpu_parts as g, gpu; print(sum(p.limit_s for p in g.PARTS.values()), set(g.GOALS) <= set(g.PARTS))"
    run = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    seconds, known = run.stdout.split()
    assert float(seconds) < 480
    assert known == "True"


@pytest.mark.slow
def test_every_part_runs_in_the_small_or_is_skipped_with_a_reason(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--small", "--device", "cpu", "--minutes", "60"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True)
    document = json.loads((tmp_path / "gpu.json").read_text())
    found = {part["part"]: part for part in document["parts"]}
    skipped = {name: part["reason"] for name, part in found.items() if part["status"] == "skipped"}
    assert skipped.keys() == {"quantized", "tests"}
    assert all(skipped.values())
    for name in found.keys() - skipped.keys():
        assert found[name]["status"] == "done", found[name]
        assert found[name]["rows"]
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} |" in table for name in found)
