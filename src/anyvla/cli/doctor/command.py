"""`anyvla doctor`: check this machine, and print the command that installs a missing package."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from rich.table import Table
from rich.text import Text

from anyvla.cli.console import Console
from anyvla_sim.workers.trial import TrialFailed, run_trial

GL_PACKAGES = "sudo apt-get install -y libegl1 libgl1-mesa-dri libgles2 libosmesa6"
EXTRAS = {
    "metaworld": ("metaworld", "mujoco"),
    "gym": ("gymnasium",),
    "libero": ("robosuite", "bddl"),
    "lora": ("peft",),
    "quantize": ("bitsandbytes",),
    "diffusion": ("diffusers",),
    "vq": ("vector_quantize_pytorch",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "dev": ("pytest", "hypothesis", "ruff", "mypy"),
}
_RENDER = """
import mujoco

from anyvla.cli.console import Console

context = mujoco.GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


@dataclass(frozen=True)
class MachineCheck:
    """The result of one check."""

    what: str
    state: Literal["ok", "missing", "note"]
    found: str
    fix: str = ""


def main(argv: list[str]) -> int:
    """Print the results. The exit status is 1 if something that the quickstart needs is missing."""
    if argv[:1] == ["backbone"]:
        from anyvla.cli.doctor import backbone as doctor_backbone

        return doctor_backbone.main(argv[1:])
    if argv[:1] == ["policy"]:
        from anyvla.cli.doctor import policy as doctor_policy

        return doctor_policy.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="anyvla doctor",
        description=__doc__,
        epilog="To check a vision-language model instead: anyvla doctor backbone FOLDER_OR_ID. "
        "A served policy: anyvla doctor policy CHECKPOINT --dataset PATH",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    findings = [*_machine(), *_packages(), *_extras(), _rendering(), _video()]
    if options.json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        table = Table("", "what", "found", "to fix it", box=None, pad_edge=False)
        colors = {"ok": "green", "missing": "red", "note": "yellow"}
        for f in findings:
            table.add_row(Text(f.state, colors[f.state]), f.what, f.found, f.fix)
        Console().print(table)
    return 1 if any(f.state == "missing" for f in findings) else 0


def _check(what: str, ok: bool, found: str, remedy: str, otherwise: Literal["missing", "note"]) -> MachineCheck:
    return MachineCheck(what, "ok", found) if ok else MachineCheck(what, otherwise, found, remedy)


def _machine() -> list[MachineCheck]:
    import torch

    from anyvla.training.device import pick_device, pick_precision

    memory, disk = psutil.virtual_memory().total / 2**30, shutil.disk_usage(Path.cwd()).free / 2**30
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = pick_precision("auto", pick_device("auto")) == torch.bfloat16
    return [
        _check("python", right, platform.python_version(), "use Python 3.11 to 3.13", "missing"),
        MachineCheck("cores", "ok", str(cores)),
        _check("memory", memory >= 4, f"{memory:.0f} GiB", "quickstart: 4 GB", "note"),
        _check("free disk here", disk >= 2, f"{disk:.0f} GiB", "free 2 GiB", "note"),
        MachineCheck("GPU", "ok" if gpus else "note", ", ".join(gpus) or "none: training runs on the CPU"),
        MachineCheck("bfloat16 units", "ok" if bf16 else "note", "yes" if bf16 else "no: precision auto is float32"),
    ]


def _packages() -> list[MachineCheck]:
    return [MachineCheck(name, "ok", metadata.version(name)) for name in ("anyvla", "torch", "transformers")]


def _extras() -> list[MachineCheck]:
    findings = []
    for extra, modules in EXTRAS.items():
        lacking = [m for m in modules if importlib.util.find_spec(m) is None]
        found = f"lacks {', '.join(lacking)}" if lacking else ", ".join(f"{m} {metadata.version(m)}" for m in modules)
        remedy = f'pip install "anyvla[{extra}]"'
        otherwise: Literal["missing", "note"] = "missing" if extra == "metaworld" else "note"
        findings.append(_check(f"extra {extra}", not lacking, found, remedy, otherwise))
    return findings


def _rendering() -> MachineCheck:
    """Try each backend in a separate process, because a broken driver may crash it."""
    if importlib.util.find_spec("mujoco") is None:
        return MachineCheck("rendering", "note", "not tried: mujoco is not installed")
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        with contextlib.suppress(TrialFailed):
            run_trial(_RENDER, os.environ | {"MUJOCO_GL": backend})
            return MachineCheck("rendering", "ok", f"MUJOCO_GL={backend}")
    return MachineCheck("rendering", "missing", "neither EGL nor OSMesa gives MuJoCo a GL context", GL_PACKAGES)


def _video() -> MachineCheck:
    import av

    found = "libx264" in av.codecs_available
    return _check("video", found, f"PyAV {av.__version__}", "pip install -U av", "missing")
