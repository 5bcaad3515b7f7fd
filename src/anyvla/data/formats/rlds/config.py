"""Options of reading an RLDS data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic.dataclasses import dataclass

from anyvla.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RLDSConfig:
    """Options of `format: {name: rlds}`. Keys are relative to `steps`, as in features.json."""

    split: str = "train"  # split of the data set
    entry: str | None = None  # in the Open X-Embodiment table; None: the entry of the data set's name, if any
    # Used without an entry:
    cameras: Mapping[str, str] | None = None  # camera -> key; None: every image, named after the last part of its key
    action: tuple[str, ...] = ("action",)  # concatenated
    proprio: tuple[str, ...] = ()  # keys, joined in this order
    instruction: tuple[str, ...] = ("language_instruction",)  # keys that the data lacks are skipped
    # refuse: the first damaged record is an error. skip: damaged records are left out and listed in the provenance.
    damaged: Literal["refuse", "skip"] = "refuse"
    checksums: bool = False  # verify the checksums of all data when the index is made, which reads every byte
