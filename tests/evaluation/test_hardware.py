from __future__ import annotations

from types import SimpleNamespace

import pytest

from anyvla.evaluation import hardware


def test_the_machine_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cpu_name", lambda: "Some CPU @ 2 GHz")
    memory = SimpleNamespace(total=12 * 1024**3)
    monkeypatch.setattr(hardware, "psutil", SimpleNamespace(cpu_count=lambda: 7, virtual_memory=lambda: memory))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert hardware.describe_machine() == "Some CPU @ 2 GHz, 7 CPU cores, 12 GiB, Some GPU, Linux x86_64"
