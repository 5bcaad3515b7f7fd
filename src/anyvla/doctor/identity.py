"""Check that a running server has the policy of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from anyvla.config import ConfigError
from anyvla.policy import VLA


def check_server(facts: Mapping[str, Any], vla: VLA, robot: int, address: str) -> Iterator[str]:
    """Raise ConfigError if the description of a server does not fit the policy. Yield notes on its gaps.

    `facts` are the server's own: only the ones that it gives are compared.
    """
    embodiment = vla.robots[robot].embodiment
    own: dict[str, Any] = {
        "robot": embodiment.name,
        "chunk": vla.config.chunk,
        "cameras": sorted(embodiment.cameras),
        "policy": vla.identify(),
    }
    theirs = {name: facts[name] for name in own if name in facts}
    if isinstance(theirs.get("cameras"), Mapping | list):
        theirs["cameras"] = sorted(map(str, theirs["cameras"]))
    differing = [f"{name} {theirs[name]} instead of {own[name]}" for name in theirs if theirs[name] != own[name]]
    if differing:
        raise ConfigError(
            f"the server at {address} has another policy than the checkpoint: {'; '.join(differing)}. Give the "
            "checkpoint that it serves, or start it with this one"
        )
    if "policy" not in theirs:
        yield f"The server at {address} does not say which policy it has; it is taken for the one of the checkpoint."
    execute = facts.get("execute", vla.config.execute)
    if execute != vla.config.execute:
        yield (
            f"The server executes {execute} actions of each chunk, and the policy was trained for {vla.config.execute}."
        )
