from __future__ import annotations

import itertools
import json
import mmap
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from anyvla.cli import stage_meter


def test_a_stage_keeps_its_minutes_and_its_highest_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by 90 seconds whenever it is read; the memory is 1, 5, 2, and then 1 GB."""
    clock, held, seen = itertools.count(step=90), [1e9, 5e9, 2e9], threading.Event()

    def memory() -> float:
        if held:
            return held.pop(0)
        seen.set()
        return 1e9

    monkeypatch.setattr(stage_meter, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(stage_meter, "measure_process_tree", memory)
    for name, fails in (("collect", False), ("train", True)):
        held[:] = [1e9, 5e9, 2e9]
        seen.clear()
        try:
            with stage_meter.StageMeter(tmp_path / "run", name, interval_s=0.001) as measured:
                assert seen.wait(30)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert (measured.minutes, measured.peak_memory_gb) == (1.5, 5.0)
    lines = [json.loads(line) for line in (tmp_path / "run/stages.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "collect", "minutes": 1.5, "peak_memory_gb": 5.0, "finished": True},
        {"stage": "train", "minutes": 1.5, "peak_memory_gb": 5.0, "finished": False},
    ]


def test_the_memory_of_children_counts() -> None:
    before = stage_meter.measure_process_tree()
    code = "x = bytearray(b'1') * 200_000_000; print(len(x), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    grown = stage_meter.measure_process_tree() - before
    child.communicate(b"\n")
    assert 150e6 < grown < 300e6
    before = stage_meter.measure_process_tree()
    with mmap.mmap(-1, 100_000_000) as pages:  # fresh pages: an array could reuse memory this process already holds
        pages.write(bytes(len(pages)))
        assert stage_meter.measure_process_tree() > before + 50e6
