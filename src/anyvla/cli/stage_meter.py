"""Measure the duration and peak memory of a stage, child processes included."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil


class StageMeter:
    """`with StageMeter(run, "train") as m:` appends a line to `run/stages.jsonl`, even if the stage fails."""

    def __init__(self, run: Path, stage: str, interval_s: float = 0.5) -> None:
        self.run, self.stage, self.interval_s = run, stage, interval_s
        self.minutes, self.peak_memory_gb = 0.0, 0.0

    def __enter__(self) -> StageMeter:
        self._begin, self._over = time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.minutes = (time.perf_counter() - self._begin) / 60
        line = {
            "stage": self.stage,
            "minutes": round(self.minutes, 3),
            "peak_memory_gb": round(self.peak_memory_gb, 3),
            "finished": kind is None,
        }
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / "stages.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _sample(self) -> None:
        while True:
            self.peak_memory_gb = max(self.peak_memory_gb, measure_process_tree() / 1e9)
            if self._over.wait(self.interval_s):
                return


def measure_process_tree() -> int:
    """Return the memory of this process and its children in bytes; shared memory counts once on Linux (PSS)."""
    parent = psutil.Process(os.getpid())
    total = 0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            full = process.memory_full_info()
            total += getattr(full, "pss", full.uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
