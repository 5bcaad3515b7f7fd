"""anyvla: turn any vision-language model into a vision-language-action model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["VLA", "Observation", "__version__"]

if TYPE_CHECKING:
    from anyvla.policy import VLA
    from anyvla.types import Observation


def __getattr__(name: str) -> Any:  # torch is imported when the first model is asked for, not before
    if name == "VLA":
        from anyvla.policy import VLA

        return VLA
    if name == "Observation":
        from anyvla.types import Observation

        return Observation
    raise AttributeError(f"module 'anyvla' has no attribute {name!r}")
