"""The packaged results of the test matrix: the families of models that passed the checks of a backbone.

`tools/make_backbone_matrix.py` writes `families.json`: it runs the checks of `anyvla.backbones.checks.conformance` on
a tiny model of each family. Reading the file imports neither torch nor transformers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.backbones.families.unsupported import UNSUPPORTED

RESULTS = Path(__file__).parent / "families.json"


@dataclass(frozen=True)
class FamilyResult:
    """The results of one family of models that `auto` reads, or of one registered backbone."""

    name: str
    model_class: str
    model_type: str
    capabilities: tuple[str, ...] | None  # None: they depend on the model
    checks: Mapping[str, tuple[str, str]]  # check -> its state, and the reason if it did not pass
    image_wrapping: int  # tokens around and between the tokens of an image
    attention: str  # which tokens see later ones, see `anyvla.backbones.masks`
    any_size: bool  # the tower takes images of any size, in steps
    note: str

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that it failed."""
        return tuple(check for check, (state, _) in self.checks.items() if state == "failed")


@dataclass(frozen=True)
class FamilyResults:
    """All results, and the versions with which they were measured."""

    versions: Mapping[str, str]
    backbones: Mapping[str, FamilyResult]  # the ones that anyvla registers; without checks if none were run
    families: Mapping[str, FamilyResult]  # read by `auto`
    untried: Mapping[str, str]  # model types that `auto` may read as well -> their class


@functools.cache
def load_results() -> FamilyResults:
    """Return the packaged results."""
    return parse_results(json.loads(RESULTS.read_text(encoding="utf-8")))


def parse_results(document: Mapping[str, Any]) -> FamilyResults:
    """Parse the content of `families.json`."""

    def rows(kind: str) -> dict[str, FamilyResult]:
        return {
            name: FamilyResult(
                name=name,
                capabilities=None if row["capabilities"] is None else tuple(row["capabilities"]),
                checks={check: tuple(result.partition(": ")[::2]) for check, result in row["checks"].items()},
                **{k: v for k, v in row.items() if k not in ("capabilities", "checks")},
            )
            for name, row in document[kind].items()
        }

    untried = {kind: name for kind, name in document["untried"].items() if kind not in UNSUPPORTED}
    return FamilyResults(document["versions"], rows("backbones"), rows("families"), untried)


def backbones_with(needs: frozenset[str]) -> list[str]:
    """Return the names of the tested families and backbones that have all these capabilities."""
    known = load_results()
    measured = (*known.backbones.values(), *known.families.values())
    return sorted(m.name for m in measured if m.capabilities is not None and needs <= {*m.capabilities})
