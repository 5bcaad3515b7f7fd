"""The section `training:` of a recipe, and the sections that training reads."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.data.training.augment import AugmentConfig
from anyvla.data.training.mixture import DataConfig
from anyvla.limits import BATCH, COUNT, EPISODES, GB, SEED
from anyvla.policy import VLAConfig
from anyvla.training.ema import EmaConfig
from anyvla.training.kept import KeepConfig
from anyvla.training.optim import OptimConfig
from anyvla.training.spikes import SpikesConfig

TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """The section `training.evaluate:` of a recipe: the policy is played on a benchmark while it trains.

    Other keys, such as execute and horizon, are those of the section `evaluation`, if the benchmark is the recipe's.
    """

    every: int = Field(default=5000, ge=1, le=COUNT)  # steps
    benchmark: str | None = None  # such as metaworld/mt10; null: the recipe's
    environment: dict[str, Any] = Field(default_factory=dict)  # settings of the benchmark, over those of the recipe
    python: str | None = None  # the Python interpreter that has the simulator; null: this one
    episodes: int = Field(default=10, ge=1, le=EPISODES)  # per task (for chains: in total)
    conditions: tuple[str, ...] = ("original",)  # of the instruction and the scene; one rate is logged for each
    tasks: tuple[str, ...] = ()  # of the suite; empty: those of the section evaluation
    # the first start state, the same at each step; null: one that the final evaluation does not play, if there is one
    first_seed: int | None = Field(default=None, ge=0, le=COUNT)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """The section `training:` of a recipe."""

    steps: int = Field(default=10_000, ge=1, le=COUNT)  # optimizer steps
    batch_size: int = Field(default=32, ge=1, le=BATCH)  # windows per optimizer step
    # Parts that a batch is split into, to save memory; changes no result but the dropout of the backbone.
    accumulate: int = Field(default=1, ge=1, le=COUNT)
    # A policy to start from: a run folder, a checkpoint folder or an id of the hub; in a stage, stage:NAME is an
    # earlier one, and the default is the one before. Weights move by their meaning.
    init_from: str | None = Field(default=None, min_length=1)
    # keep: normalize with the statistics of init_from for the robots that it knows, instead of those of the data
    statistics: Literal["data", "keep"] = "data"
    seed: int = Field(default=0, ge=0, le=SEED)  # of initialization, data order, augmentation, noise and dropout
    # of matrix products; weights stay float32. auto: bfloat16 where the hardware has it, else float32
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"  # "auto" | "cpu" | "cuda" | "cuda:1"
    gradient_checkpointing: bool = False  # layers keep only their inputs, and are computed again for their gradients
    # Each of several processes keeps a part of the weights, gradients and optimizer state (FSDP2); changes no result.
    shard: bool = False
    compile: bool = False  # layers run as code of torch.compile; the first steps take minutes
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig | None = None  # the policy acts with an average of its weights, which every checkpoint then holds
    augment: AugmentConfig = AugmentConfig()
    # Most GB on the disk for features of a frozen vision tower, which are then computed once for each image; 0: they
    # are computed at each use. Only where images are not augmented. A study's trainings share them.
    features_gb: float = Field(default=4.0, ge=0, le=GB)
    spikes: SpikesConfig | None = SpikesConfig()  # steps whose loss leaps are logged in RUN/train/spikes.jsonl
    log_every: int = Field(default=20, ge=1, le=COUNT)  # steps
    # where curves are shown: tensorboard, wandb, trackio, several of them as a list, or none
    track: Literal["none", "tensorboard", "wandb", "trackio"] | tuple[TrackerName, ...] = "tensorboard"
    track_project: str = Field(default="anyvla", min_length=1)  # of wandb ("project" or "team/project") and trackio
    without_gradient: Literal["warn", "error", "ignore"] = (
        "warn"  # for weights that no gradient reaches in the first steps
    )
    checkpoint_every: int = Field(default=500, ge=1, le=COUNT)  # steps
    keep: KeepConfig = KeepConfig()
    # steps from one measurement on the episodes of data.validation to the next; null: as checkpoint_every
    validate_every: int | None = Field(default=None, ge=1, le=COUNT)
    evaluate: EvaluateConfig | None = None  # null: the policy is not played in training
    # the measured number by which the best checkpoint is chosen, as validation.loss or validation.position_cm; null:
    # evaluation.success if there is training.evaluate, else validation.loss
    best: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        if self.statistics == "keep" and self.init_from is None:
            raise ValueError("statistics keep takes those of a checkpoint: name it with init_from, or leave it out")


class TrainingRecipe(Protocol):
    """The parts of a recipe that training reads. `anyvla.recipe.Recipe` is one; it adds evaluation, for example."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> VLAConfig: ...

    @property
    def training(self) -> TrainingConfig: ...
