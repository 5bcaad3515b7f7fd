"""Decide whether the features of a frozen vision tower are kept in a training, and keep them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.frozen_features import FrozenFeatures
from anyvla.backbones.tokens import TokenBackbone
from anyvla.policy import VLA
from anyvla.training.config import TrainingRecipe
from anyvla.training.processes import Processes

OWN = Path("train") / "features"  # in the folder of a run


def freezes_vision(recipe: TrainingRecipe) -> bool:
    """Return whether no weight of the vision tower is trained, as far as the recipe says."""
    options = recipe.model.backbone.config
    trained, lora = getattr(options, "train", None), getattr(options, "lora", None)
    part = recipe.training.optim.parts.get("vision")
    frozen = (trained is not None and not trained.vision) or (part is not None and not part.train)
    return frozen and not (lora is not None and lora.vision)


def why_not_kept(recipe: TrainingRecipe) -> str | None:
    """Return why the features of a frozen vision tower are computed at each use; None if they are kept."""
    backbone = recipe.model.backbone
    if recipe.training.shard:
        return "training.shard gathers the weights of the tower where all processes use it"
    if not keeps_features(backbone.target):
        return f"the backbone {backbone.name} computes them inside of its model"
    changed = [name for name, amount in dataclasses.asdict(recipe.training.augment).items() if _any(amount)]
    if changed:
        return f"training.augment.{changed[0]} makes new images in each step: set it to 0 to keep them"
    crop = recipe.model.view.crop
    if any(share < 1 for share in (crop if isinstance(crop, tuple) else (crop,))):
        return "model.view.crop makes new images in each step: set it to 1 to keep them"
    return "training.features_gb is 0" if recipe.training.features_gb == 0 else None


def keeps_features(backbone: type) -> bool:
    """Return whether a class of backbones can keep the features of its vision tower."""
    return issubclass(backbone, TokenBackbone) and backbone.compute_features is not TokenBackbone.compute_features


@contextmanager
def keeping_features(
    recipe: TrainingRecipe,
    vla: VLA,
    run: Path,
    shared: Path | None,
    say: Callable[[str], None],
    processes: Processes,
) -> Iterator[None]:
    """Keep the features of a frozen vision tower within the context, and say whether they are kept.

    `shared`: a folder that several trainings share. Without it they are in the run, and are removed when the context
    ends without an error.
    """
    backbone = vla.backbone
    if any(weight.requires_grad for weight in parameters_by_part(backbone)["vision"]) or not freezes_vision(recipe):
        yield
        return
    if reason := why_not_kept(recipe):
        say(f"features of the frozen vision tower are computed at each use: {reason}")
        yield
        return
    assert isinstance(backbone, TokenBackbone)
    folder, most = shared or run / OWN, recipe.training.features_gb
    say(f"features of the frozen vision tower are computed once: {folder} keeps up to {most:g} GB of them")
    features = FrozenFeatures(folder, most, backbone, backbone.compute_features)
    backbone.frozen_features = features
    try:
        yield
    finally:
        backbone.frozen_features = None
        features.close()
    processes.wait_for_all()  # they write there
    if shared is None and processes.is_main:
        shutil.rmtree(folder, ignore_errors=True)


def _any(amount: float | tuple[float, ...]) -> bool:
    return any(amount) if isinstance(amount, tuple) else bool(amount)
