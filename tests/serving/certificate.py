"""Make a self-signed certificate for a test, with the `openssl` program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from anyvla.serving.tls import TlsFiles


def make_certificate(folder: Path, name: str = "own", password: str | None = None) -> TlsFiles:
    """Return the files of a new certificate for 127.0.0.1 and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl")
    files = TlsFiles(folder / f"{name}.crt", folder / f"{name}.key")
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += ["-keyout", str(files.key), "-out", str(files.certificate), "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command += ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    subprocess.run(command, check=True, capture_output=True)
    return files
