"""Begin a training: anew, where it was interrupted, or from a checkpoint (`training.init_from`).

`find_origin` refuses a checkpoint that cannot be used, before any data is read. `Start` chooses statistics and codec
(`training.statistics`) and builds the policy. A run that resumes reads its own checkpoint only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anyvla.checkpoint.files import read_robots
from anyvla.config import ConfigError, to_dict
from anyvla.files.stage_paths import find_run, name_of_stage
from anyvla.policy import VLA, VLAConfig
from anyvla.representations.codec_report import needs_fit
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.space import ActionSpace
from anyvla.training import checkpoint
from anyvla.training.config import TrainingRecipe
from anyvla.training.warm_start.description import describe
from anyvla.training.warm_start.filling import fill
from anyvla.training.warm_start.origin import KEY, Origin, check_usable, find_merged_adapters, open_origin
from anyvla.training.warm_start.plan import Plan, plan_transfer
from anyvla.training.warm_start.record import TransferredTensor, WarmStartRecord, data_statistics, read_record
from anyvla.training.warm_start.report import format_report
from anyvla.training.warm_start.statistics import keep_statistics


def find_origin(recipe: TrainingRecipe, run: Path) -> Origin | None:
    """Return the checkpoint that a run starts from; None if it starts anew or resumes. Raises ConfigError."""
    given = recipe.training.init_from
    if given is None or checkpoint.latest(run) is not None:
        return None
    origin = dataclasses.replace(open_origin(_locate(given, run)), given=given)
    check_usable(origin, recipe.model)
    return origin


def _locate(given: str, run: Path) -> str:
    """Return the path of the policy of another stage for `stage:<name>`; any other name as it is."""
    try:
        return given if name_of_stage(given) is None else str(find_run(given, run))
    except ValueError as error:
        raise ConfigError(f"{KEY}: {error}") from None


class Start:
    """The policy that a run begins with, its robots with the statistics that they use, and its codec."""

    def __init__(
        self, recipe: TrainingRecipe, run: Path, robots: Sequence[Robot], begun: Path | None, origin: Origin | None
    ) -> None:
        """Take the robots with the statistics of the data, and the checkpoint from which the run resumes or starts.

        Raises ConfigError if `training.statistics: keep` cannot be followed.
        """
        self.model, self.origin, self.of_data, self.run = recipe.model, origin, list(robots), run
        self.begun = begun
        self.robots, self.codec = list(robots), run / "codec"
        self.record = None if begun is None else read_record(begun)
        folder = begun or (None if origin is None else origin.folder)
        if folder is None or recipe.training.statistics == "data":
            return
        self.robots = keep_statistics(robots, read_robots(folder), str(folder))
        fitted = needs_fit(self.model.representation, self.model.chunk, _action_space(robots))
        if fitted and not self.codec.is_dir() and (origin is None or self._may_keep_codec(origin)):
            self.codec = folder / "codec"

    def build_policy(self, say: Callable[[str], None]) -> VLA:
        """Return the policy with its initial weights. The report of a warm start goes to `say`."""
        if self.origin is None:
            # what a policy was made from may be absent, if the run began with the policy alone
            assets = None if self.record is None or self.begun is None else self.begun / "backbone"
            return VLA(self.model, self.robots, assets, self.codec)
        vla, plan = self._fill(self.origin)
        self.record = self._make_record(self.origin, plan)
        for line in self.record.report:
            say(line)
        return vla

    def _fill(self, origin: Origin) -> tuple[VLA, Plan]:
        old, stored = origin.describe()
        merged, scale = find_merged_adapters(origin.model, self.model, old)
        vla = VLA(self.model, self.robots, self._find_assets(origin), self.codec)
        plan = plan_transfer(old, describe(vla), merged)
        if any(step.name.startswith("backbone.") and step.status in ("new", "re-mapped") for step in plan.steps):
            vla = VLA(self.model, self.robots, None, self.codec)  # these need their initial weights
        with origin.opened(stored, scale) as read:
            fill(vla, plan, read)
        return vla, plan

    def _find_assets(self, origin: Origin) -> Path | None:
        """Return the backbone's files in the checkpoint if they describe the same backbone.

        Then the model that the backbone was made from is not needed. A decoder of the LM head measures the backbone's
        weights when it is built, so they must be there.
        """
        needs = self.model.decoder.target.needs_with(self.model.representation.target.kind)
        same = _architecture(origin.model) == _architecture(self.model)
        return origin.folder / "backbone" if same and "lm_head" not in needs else None

    def _may_keep_codec(self, origin: Origin) -> bool:
        """Return whether the checkpoint's codec is one for this policy."""
        old, new = origin.model, self.model
        return (
            _action_space(origin.robots) == _action_space(self.of_data)
            and (old.chunk, old.normalization.action) == (new.chunk, new.normalization.action)
            and old.representation == new.representation
        )

    def _make_record(self, origin: Origin, plan: Plan) -> WarmStartRecord:
        names = [r.embodiment.name for r in origin.robots]
        pairs = zip(self.of_data, self.robots, strict=True)
        kept = tuple(now.embodiment.name for data, now in pairs if now is not data)
        of = f"those of the checkpoint for {', '.join(kept)}" if kept else "those of the data"
        if kept and len(kept) < len(self.robots):
            of += ", those of the data for the others"
        where = (
            origin.folder if Path(origin.given).expanduser().is_dir() else origin.given
        )  # a stage, or an id of the hub
        head = f"warm start from {where} ({', '.join(names)}); statistics: {of}"
        return WarmStartRecord(
            init_from=origin.given,
            robots=tuple(names),
            kept_statistics=kept,
            data_statistics=data_statistics(self.of_data, kept),
            report=(head, *format_report(plan)),
            tensors=tuple(
                TransferredTensor(
                    name=step.name,
                    part=step.part,
                    status=step.status,
                    numbers=step.numbers,
                    reason=step.reason,
                    source=step.source,
                )
                for step in plan.steps
            ),
        )


def _action_space(robots: Sequence[Robot]) -> ActionSpace:
    return SharedLayout([robot.embodiment for robot in robots]).embodiment.action


def _architecture(model: VLAConfig) -> dict[str, Any]:
    """Return the options of the backbone that decide which weights it has."""
    options = {"name": model.backbone.name, **to_dict(model.backbone.config)}
    return {key: value for key, value in options.items() if key not in ("train", "seed")}
