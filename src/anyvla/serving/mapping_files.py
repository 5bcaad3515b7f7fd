"""Choose the mapping of a server: a file, one that ships with the package, or the one of the policy's robot.

A mapping that ships has a section for each protocol that has clients of its robot. It names more cameras and groups of
proprio than one policy reads, as data sets of one robot name them differently; those that the policy lacks are ignored.
A file of `--mapping` has the keys of `ClientMapping`, and all of its names must be the policy's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError, build, read_options
from anyvla.registry import suggest
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.mapping import ClientMapping

PLAIN = "plain"  # the name of a protocol's own keys, without a robot's


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShippedMapping:
    """A file of the folder `mappings`."""

    about: str
    robots: tuple[str, ...]  # embodiments that it is chosen for by default
    clients: dict[str, ClientMapping]  # by the name of the protocol


@functools.cache
def load_mappings() -> Mapping[str, ShippedMapping]:
    """Return the mappings that ship, by name."""
    files = resources.files("anyvla.serving").joinpath("mappings").iterdir()
    texts = {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files if f.name.endswith(".yaml")}
    return {n: build(ShippedMapping, yaml.safe_load(text), where=f"mapping {n}") for n, text in sorted(texts.items())}


def choose_mapping(
    given: str | None, robot: Embodiment, protocol: str, keys: Mapping[str, Any] = MappingProxyType({})
) -> ClientMapping:
    """Return the mapping of a file or a name, or of the robot's name if none is given.

    `keys`: the protocol's own, for what a mapping doesn't say. Raises ConfigError for an unknown name, and for a
    mapping without the protocol or without a camera of the robot.
    """
    shipped = load_mappings()
    if given is not None and given not in shipped and given != PLAIN:
        file = Path(given)
        if file.suffix not in (".yaml", ".yml") and not file.is_file():
            known = suggest(given, [*shipped, PLAIN])
            raise ConfigError(f"--mapping {given}: there is no such file or mapping; {known}")
        return build(ClientMapping, {**keys, **read_options(file)}, where=given)
    own = (name for name, mapping in shipped.items() if robot.name in mapping.robots and protocol in mapping.clients)
    name = next(own, PLAIN) if given is None else given
    if name == PLAIN:
        return build(ClientMapping, keys, where=protocol)
    clients = shipped[name].clients
    if protocol not in clients:
        raise ConfigError(f"--mapping {name} has keys of {', '.join(clients)}, not of {protocol}: give a file")
    return _fit(_complete(clients[protocol], build(ClientMapping, keys)), f"{name} ({protocol})", robot)


def _complete(mapping: ClientMapping, own: ClientMapping) -> ClientMapping:
    """Return a mapping that ships with the protocol's own keys for what it doesn't say."""
    plain = ClientMapping()
    silent = [f.name for f in dataclasses.fields(mapping) if getattr(mapping, f.name) == getattr(plain, f.name)]
    return dataclasses.replace(mapping, **{name: getattr(own, name) for name in silent})


def _fit(mapping: ClientMapping, name: str, robot: Embodiment) -> ClientMapping:
    """Return a mapping that ships without the cameras and groups that the robot lacks."""
    for camera in robot.cameras:
        if camera not in mapping.cameras:
            raise ConfigError(
                f"the mapping {name} has no key for the camera {camera!r} ({suggest(camera, mapping.cameras)}): give "
                f"--mapping FILE, or --mapping {PLAIN} for the protocol's own keys"
            )
    groups, actions = {g.name for g in robot.proprio.groups}, {g.name for g in robot.action.groups}
    proprio = mapping.proprio
    if not isinstance(proprio, str):
        proprio = {group: key for group, key in proprio.items() if group in groups}
    return dataclasses.replace(
        mapping,
        cameras={camera: mapping.cameras[camera] for camera in robot.cameras},
        proprio=proprio,
        action_units={group: unit for group, unit in mapping.action_units.items() if group in actions},
    )
