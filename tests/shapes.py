"""Check the types and shapes that the core declares, at every call, while tests run (ANYVLA_CHECK_SHAPES=1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception
from jaxtyping import install_import_hook

# The modules and packages that are checked. `make shapes` runs a part of the tests that calls all of them.
CORE = ("types", "sequence", "robot", "backbones", "histories", "fusers", "decoders", "representations", "policy")
MODULES = [f"anyvla.{name}" for name in (*CORE, "data.training")]
INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with checks of its arguments and its result."""
    try:
        return beartype(function, conf=INT_IS_FLOAT)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):  # Self, and protocols of pydantic
        return function


def install() -> None:
    """Check the core from its import on. Call it before anything imports anyvla."""
    install_import_hook(MODULES, "tests.shapes.checked")
