"""Tiny instances of the backbones that have a name of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

# name -> a function that writes what the backbone reads into a folder and gives the options for it.
REGISTERED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nano": lambda _folder: {"width": 32, "heads": 2, "mlp": 64, "image_size": 32, "channels": [16, 16]},
}
