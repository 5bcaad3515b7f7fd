"""The section `model:` of a recipe: the parts of a policy, and which of them go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.combinations import explain_conflict, find_nearest_valid
from anyvla.config import STRICT, BackbonePart, DecoderPart, FuserPart, HistoryPart, Part, RepresentationPart
from anyvla.limits import STEPS
from anyvla.observing import Implausible
from anyvla.representations.codec import Continuous
from anyvla.robot.normalize import Method
from anyvla.robot.views import ViewConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NormalizationConfig:
    """Scaling of each vector. Grippers are always scaled by their declared range."""

    action: Method = "quantile"  # scaling of actions
    proprio: Method = "meanstd"  # scaling of proprio


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VLAConfig:
    """The section `model:` of a recipe."""

    backbone: BackbonePart  # the vision-language model
    history: HistoryPart  # how the steps of a window are read
    fuser: FuserPart  # joins the readouts of a window
    decoder: DecoderPart  # turns a context into actions
    # continuous actions, or a codec for tokens
    representation: RepresentationPart = Part("representations", "continuous", Continuous.Config())
    readouts: int = Field(default=1, ge=1, le=STEPS)  # R, queries per step
    chunk: int = Field(default=10, ge=1, le=STEPS)  # N, actions predicted at once
    # actions executed before the next prediction; also the distance between the steps of a window
    execute: int = Field(default=1, ge=1, le=STEPS)
    proprio: Literal["fuser", "token", "none"] = "fuser"  # where proprio enters: the fuser, or the backbone as a token
    normalization: NormalizationConfig = NormalizationConfig()
    view: ViewConfig = ViewConfig()
    implausible: Implausible = "error"  # proprio or committed actions far from the training data: error or warn

    def __post_init__(self) -> None:
        if self.execute > self.chunk:
            raise ValueError(f"execute {self.execute} exceeds chunk {self.chunk}: there is no such action to execute")
        names = (self.history.name, self.fuser.name, self.decoder.name, self.representation.name)
        reason = explain_conflict(*names)
        if reason is not None:
            raise ValueError(f"{reason}; the nearest that is possible: {find_nearest_valid(*names)}")
        if self.representation.target.kind == "tokens" and self.normalization.action == "meanstd":
            raise ValueError(
                f"representation {self.representation.name} encodes actions in [-1, 1], and "
                "normalization.action meanstd puts a third of them outside: use quantile or minmax"
            )
