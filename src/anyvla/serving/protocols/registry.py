"""The registry of protocols. Third parties add theirs through an entry point of the group `anyvla.protocols`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyvla.registry import Registry

if TYPE_CHECKING:
    from anyvla.serving.protocols.base import ServerProtocol

protocols = Registry(
    "protocols",
    {
        "anyvla": "anyvla.serving.protocols.anyvla:AnyvlaProtocol",
        "groot": "anyvla.serving.protocols.groot:GrootProtocol",
        "opentau": "anyvla.serving.protocols.opentau:OpenTauProtocol",
        "openpi": "anyvla.serving.protocols.openpi:OpenpiProtocol",
        "starvla": "anyvla.serving.protocols.starvla:StarVLAProtocol",
        "vla-eval": "anyvla.serving.protocols.vlaeval:VlaEvalProtocol",
    },
)
OTHER_NAMES = {"vlaeval": "vla-eval"}


def find_protocol(name: str) -> str:
    """Return the registered name of a protocol. Raises ValueError with the nearest names."""
    name = OTHER_NAMES.get(name, name)
    try:
        protocols.target(name)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    return name


def load_protocol(name: str) -> type[ServerProtocol]:
    """Import the class of a registered protocol. Raises ImportError that names the extra if a package is missing."""
    try:
        loaded: type[ServerProtocol] = protocols[name]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "anyvla":
            raise
        raise ImportError(f'--protocol {name} needs {error.name}: pip install "anyvla[serve]"') from None
    return loaded
