"""Tiny instances of the named backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.backbones.families.flamingo import write_flamingo
from tests.backbones.families.remote import MODELS, write_remote


def nano(_folder: Path) -> dict[str, Any]:
    return {"width": 32, "heads": 2, "mlp": 64, "image_size": 32, "channels": [16, 16]}


def film(_folder: Path) -> dict[str, Any]:
    return {"width": 32, "heads": 2, "image_size": 32, "channels": [16, 16]}


def tiny(_folder: Path) -> dict[str, Any]:
    return {"family": "smolvlm", "width": 32, "heads": 2, "image_size": 32}


def flamingo(folder: Path) -> dict[str, Any]:
    return {**write_flamingo(folder), "prompt": "do {instruction}"}


def remote(name: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"path": str(write_remote(name, folder / name)), "trust_remote_code": True}


# name -> a function that writes the files of a backbone into a folder and returns its options.
REGISTERED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nano": nano,
    "film": film,
    "tiny": tiny,
    "flamingo": flamingo,
}
REGISTERED |= {name: remote(name) for name in MODELS}
