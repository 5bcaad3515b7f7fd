"""Differences between two documents, by key with both values, short enough to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MOST = 8  # differences that one message lists
LONGEST = 80  # characters of a value in a message
ABSENT = "(absent)"


class Difference(NamedTuple):
    """One key whose values differ."""

    key: str  # "training.optim.lr", "sources.0.path"
    old: Any
    new: Any


def find_differences(old: Any, new: Any, key: str = "") -> list[Difference]:
    """Return the differences between two plain documents. Lists of equal length are compared item by item."""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        old, new = ({str(i): value for i, value in enumerate(of)} for of in (old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        pairs = [(f"{key}.{k}".strip("."), old.get(k, ABSENT), new.get(k, ABSENT)) for k in keys]
        return [found for inner, one, other in pairs for found in find_differences(one, other, inner)]
    return [] if old == new else [Difference(key, old, new)]


def check_same(
    old: Any,
    new: Any,
    refusal: str,
    *,
    may_differ: Callable[[Difference], bool] = lambda _: False,
    names: tuple[str, str] = ("then", "now"),
    error: type[ValueError] = ValueError,
) -> None:
    """Raise `error` if two documents differ in a key that may not.

    `refusal` is the message; its `{}` becomes the list of differences, with `names` for the two documents.
    """
    found = [difference for difference in find_differences(old, new) if not may_differ(difference)]
    if found:
        raise error(refusal.replace("{}", format_differences(found, *names)))


def format_differences(found: Sequence[Difference], then: str = "then", now: str = "now") -> str:
    """Return differences for a message, as "lr: 0.1 then, 0.2 now; seed: 0 then, 1 now"."""
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    return (
        "; ".join(f"{key}: {format_value(old)} {then}, {format_value(new)} {now}" for key, old, new in found[:MOST])
        + more
    )


def format_value(value: Any) -> str:
    """Return a value as a message shows it: on one line, not too long."""
    text = " ".join((value if value == ABSENT else repr(value)).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
