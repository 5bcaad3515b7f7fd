"""The rules of which parts make a policy. They read attributes, so they hold for parts of third parties too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from anyvla.backbones.families.results import backbones_with
from anyvla.config import ConfigError, Part
from anyvla.histories.base import History
from anyvla.registry import decoders, fusers, histories, representations


@dataclass(frozen=True)
class Combination:
    """One combination of history, fuser, decoder and representation."""

    history: str
    fuser: str
    decoder: str
    representation: str
    reason: str | None  # why it makes no policy; None if it makes one

    def __str__(self) -> str:
        axes = ("history", "fuser", "decoder", "representation")
        return ", ".join(f"{axis}: {getattr(self, axis)}" for axis in axes)


def combinations() -> Iterator[Combination]:
    """Yield all combinations, in the order of the registries."""
    for names in product(histories, fusers, decoders, representations):
        yield Combination(*names, reason=explain_conflict(*names))


def explain_conflict(history: str, fuser: str, decoder: str, representation: str) -> str | None:
    """Return why these parts make no policy together; None if they do."""
    past, fuse = histories[history], fusers[fuser]
    kind, reads = representations[representation].kind, decoders[decoder].reads
    if not past.fuses and fuse.fuses_time:
        return f"fuser {fuser} fuses the steps of a window, and history {history} has one step"
    if past.fuses and not past.in_backbone and not fuse.fuses_time:
        return f"history {history} leaves time to the fuser, and fuser {fuser} reads each step by itself"
    if past.carries_state and not fuse.carries_state:
        return f"history {history} carries the state of its fuser over the session, and fuser {fuser} has no state"
    if kind not in reads:
        if kind == "continuous":
            return f"decoder {decoder} writes tokens, and representation {representation} has none"
        return f"decoder {decoder} gives continuous actions, and representation {representation} makes them tokens"
    return None


def find_nearest_valid(history: str, fuser: str, decoder: str, representation: str) -> Combination:
    """Return a combination that makes a policy and differs in as few parts as possible, preferably later ones."""
    wanted = (history, fuser, decoder, representation)

    def distance(c: Combination) -> tuple[int, tuple[bool, ...]]:
        differs = tuple(a != b for a, b in zip((c.history, c.fuser, c.decoder, c.representation), wanted, strict=True))
        return sum(differs), differs

    return min((c for c in combinations() if c.reason is None), key=distance)


def check_capabilities(
    backbone: Part, history: Part, decoder: Part, decoder_needs: frozenset[str], has: frozenset[str]
) -> None:
    """Raise ConfigError if a backbone that `has` these capabilities lacks one for its history or its decoder."""
    built: History = history.build()
    for what, needs, instead in (
        (f"history {history.name!r}", built.needs, built.instead),
        (f"decoder {decoder.name!r}", decoder_needs, "a decoder that reads the context alone, as regression"),
    ):
        lacking = sorted(needs - has)
        if lacking:
            model = getattr(backbone.config, "path", None)
            raise ConfigError(
                f"{what} needs a backbone that can {', '.join(lacking)}; this one ({backbone.name}"
                f"{f', {model}' if model else ''}) can {', '.join(sorted(has)) or 'read one step only'}. "
                f"Use {instead}, or a backbone that can: {', '.join(backbones_with(needs))}"
            )
