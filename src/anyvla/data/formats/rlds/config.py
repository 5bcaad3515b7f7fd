"""Options of reading an RLDS data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic.dataclasses import dataclass

from anyvla.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RLDSConfig:
    """Options of `format: {name: rlds}`. Keys are those below `steps`, as in features.json: observation/image."""

    split: str = "train"
    entry: str | None = None  # in the table of Open X-Embodiment; None: the data set's own name, if the table has it
    # Without an entry:
    cameras: Mapping[str, str] | None = None  # camera -> key; None: every image, by the last part of its key
    action: tuple[str, ...] = ("action",)  # one after another
    proprio: tuple[str, ...] = ()
    instruction: tuple[str, ...] = ("language_instruction",)  # those of them that the data has
    # refuse: the first damaged record is an error. skip: such records are left out and counted in the provenance.
    damaged: Literal["refuse", "skip"] = "refuse"
    checksums: bool = False  # check those of all data when the index is made, which reads all of it
