from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from anyvla.cli.doctor import command as doctor
from anyvla.cli.doctor.command import MachineCheck
from anyvla_sim.workers.trial import TrialFailed

GIB = 2**30


def machine(monkeypatch: pytest.MonkeyPatch, memory: float, disk: float, python: tuple[int, int]) -> dict[str, str]:
    """Return the state of each finding of a machine with so much memory and free disk, in GiB."""
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(total=memory * GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=disk * GIB))
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(*python, 0)))
    return {f.what: f.state for f in doctor._machine()}


@pytest.mark.parametrize(
    ("memory", "disk", "python", "states"),
    [
        (4, 2, (3, 11), ("ok", "ok", "ok")),
        (3.9, 1.9, (3, 13), ("note", "note", "ok")),
        (64, 100, (3, 10), ("ok", "ok", "missing")),
        (64, 100, (3, 14), ("ok", "ok", "missing")),
    ],
)
def test_the_quickstart_needs_so_much(
    monkeypatch: pytest.MonkeyPatch, memory: float, disk: float, python: tuple[int, int], states: tuple[str, ...]
) -> None:
    found = machine(monkeypatch, memory, disk, python)
    assert (found["memory"], found["free disk here"], found["python"]) == states


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("note", 0), ("missing", 1)])
def test_only_missing_parts_make_it_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Any, status: int
) -> None:
    for part in ("_machine", "_packages", "_extras"):
        monkeypatch.setattr(doctor, part, list)
    monkeypatch.setattr(doctor, "_rendering", lambda: MachineCheck("rendering", "ok", "egl"))
    monkeypatch.setattr(doctor, "_video", lambda: MachineCheck("video", state, "PyAV", "fix it"))
    assert doctor.main(["--json"]) == status
    assert json.loads(capsys.readouterr().out)[1] == {
        "what": "video", "state": state, "found": "PyAV", "fix": "fix it"
    }  # fmt: skip


def test_of_the_extras_only_the_simulator_of_the_quickstart_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    states = {f.what: (f.state, f.fix) for f in doctor._extras()}
    assert states.pop("extra metaworld") == ("missing", 'pip install "anyvla[metaworld]"')
    assert {state for state, _ in states.values()} == {"note"}
    assert states["extra lora"] == ("note", 'pip install "anyvla[lora]"')


def test_rendering_tries_egl_first_unless_a_backend_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def run_trial(code: str, environment: dict[str, str]) -> None:
        tried.append(environment["MUJOCO_GL"])
        if environment["MUJOCO_GL"] != "osmesa":
            raise TrialFailed("no")

    monkeypatch.setattr(doctor, "run_trial", run_trial)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert doctor._rendering() == MachineCheck("rendering", "ok", "MUJOCO_GL=osmesa")
    assert tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert doctor._rendering().state == "missing"
    assert tried == ["egl", "osmesa", "egl"]
