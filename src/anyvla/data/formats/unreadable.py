"""Episodes of a data set that cannot be read: named when it is opened, so that only they are lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

_NAMED = 3  # of those that a message names


def report_unreadable(root: Path, lost: Mapping[int, str], count: int) -> None:
    """Warn of episodes that cannot be read. Raises ValueError if there are no others."""
    if not lost:
        return
    if len(lost) >= count:
        raise ValueError(f"none of the {count} episodes of {root} can be read. {list_reasons(lost)}")
    log.warning(
        "%s: %d of %d episodes cannot be read; anyvla data check lists them. %s",
        root,
        len(lost),
        count,
        list_reasons(lost),
    )


def report_empty(root: Path, names: list[str]) -> None:
    """Warn of episodes without steps, which are left out."""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        log.warning("%s: episodes without steps are left out: %s%s", root, ", ".join(names[:_NAMED]), more)


def list_reasons(lost: Mapping[int, str]) -> str:
    """Return the first of them with their reasons."""
    more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return "; ".join(f"episode {i}: {text}" for i, text in list(lost.items())[:_NAMED]) + more
