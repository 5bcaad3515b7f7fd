"""Describe the machine that computes a result."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil


def describe_machine() -> str:
    """Return processor, cores, memory, GPU and system in one line."""
    import torch

    parts = [_cpu_name(), f"{psutil.cpu_count()} CPU cores", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}"])


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
