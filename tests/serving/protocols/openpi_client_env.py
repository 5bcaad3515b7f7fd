"""An environment with the real client of openpi, which needs numpy < 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "ANYVLA_OPENPI_CLIENT_PYTHON"
PACKAGES = ("openpi-client==0.1.2", "numpy<2", "typing_extensions")


def install_openpi_client(folder: Path) -> str:
    """Return the interpreter that the variable names, or one of a new environment. Skip the test without a network."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    python = str(folder / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"openpi-client cannot be installed: {installed.stderr[-300:]}")
    return python
