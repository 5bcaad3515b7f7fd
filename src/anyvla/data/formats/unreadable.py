"""Reports the episodes of a data set that cannot be read, so that the others can still be used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

_SHOWN = 3  # episodes that a message names


def report_unreadable(root: Path, reasons: Mapping[int, str], count: int) -> None:
    """Warn of episodes that cannot be read. Raises ValueError if none of the `count` episodes can."""
    if not reasons:
        return
    shown = list_reasons(reasons)
    if len(reasons) >= count:
        raise ValueError(f"none of the {count} episodes of {root} can be read. {shown}")
    log.warning(
        "%s: %d of %d episodes cannot be read; anyvla data check lists them. %s", root, len(reasons), count, shown
    )


def report_empty(root: Path, names: list[str]) -> None:
    """Warn of episodes without steps, which are left out."""
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        log.warning("%s: episodes without steps are left out: %s%s", root, ", ".join(names[:_SHOWN]), more)


def list_reasons(reasons: Mapping[int, str]) -> str:
    """Return the first few episodes with the reasons why they cannot be read."""
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return "; ".join(f"episode {i}: {text}" for i, text in list(reasons.items())[:_SHOWN]) + more
