"""Compare two sequences of answers, each dim relative to the range that the policy scales it by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64

from anyvla.doctor.played import Answers, Played
from anyvla.policy import VLA
from anyvla.robot.space import ActionSpace

_ROUNDING = 1e-5  # of a value: float32, computed in another order
_CLIPPED = 4.0  # ranges; a larger difference counts as this one in a mean, so that no single dim decides


@dataclass(frozen=True)
class FirstDifference:
    """The first action that differs, and its dim that differs most."""

    where: str  # its file, for people
    step: int  # of the call
    action: int  # its position in the answer
    dim: str  # "group 'position', dim 0"
    served: float  # in the robot's unit
    training: float
    difference: float  # in ranges of the dim


@dataclass(frozen=True)
class EpisodeDifference:
    """How the answers along one episode differ from training's."""

    episode: int
    instruction: str
    calls: int
    largest: float  # difference, in ranges of the dims
    first: FirstDifference | None


class Comparison:
    """Measures differences between answers of a robot's policy. A range of a dim is ±1 to the policy."""

    def __init__(
        self,
        vla: VLA,
        robot: int,
        tolerance: float | None = None,
        convert: Callable[[np.ndarray], np.ndarray] = lambda actions: actions,
    ) -> None:
        """`tolerance`: the largest difference of equal answers, in ranges; None: by the precision of the weights.

        `convert`: actions to the convention of the client, in which answers are compared.
        """
        embodiment = vla.robots[robot].embodiment
        dims = vla.layout.robots[embodiment.name].action
        center, scale = (
            getattr(vla.action_normalizer, name)[robot, dims].float().cpu().numpy() for name in ("offset", "scale")
        )
        self.space: ActionSpace = embodiment.action
        self.scale: Float32[np.ndarray, "A"] = _convert_scale(center, np.abs(scale), convert)
        self.tolerance = pick_tolerance(vla) if tolerance is None else tolerance

    def differences(
        self, served: Float32[np.ndarray, "K n A"], other: Float32[np.ndarray, "K n A"]
    ) -> Float64[np.ndarray, "K n A"]:
        """Return the absolute differences in ranges, beyond rounding; infinite where one of both is not finite."""
        rounding = _ROUNDING * np.abs(other.astype(np.float64))
        gap = np.maximum(np.abs(served.astype(np.float64) - other) - rounding, 0) / self.scale
        return np.where(np.isfinite(gap), gap, np.inf)

    def distance(self, served: Float32[np.ndarray, "K n A"], other: Float32[np.ndarray, "K n A"]) -> float:
        """Return the root of the mean squared difference in ranges."""
        gap = np.minimum(self.differences(served, other), _CLIPPED)
        return float(np.sqrt((gap**2).mean()))

    def are_equal(self, served: Float32[np.ndarray, "K n A"], other: Float32[np.ndarray, "K n A"]) -> bool:
        """Return whether all actions are equal within the tolerance."""
        return bool(self.differences(served, other).max(initial=0) <= self.tolerance)

    def compare(self, episode: Played, served: Answers, training: Float32[np.ndarray, "K n A"]) -> EpisodeDifference:
        """Return how the answers along an episode differ from training's answers at the same calls."""
        gap = self.differences(served.actions, training)
        over = np.argwhere(gap.max(-1) > self.tolerance)
        return EpisodeDifference(
            episode=episode.recording.number,
            instruction=episode.instruction,
            calls=len(served.steps),
            largest=float(gap.max(initial=0)),
            first=self._describe_first(episode, served, training, gap, *over[0].tolist()) if len(over) else None,
        )

    def _describe_first(
        self,
        episode: Played,
        served: Answers,
        training: Float32[np.ndarray, "K n A"],
        gap: Float64[np.ndarray, "K n A"],
        call: int,
        action: int,
    ) -> FirstDifference:
        dim = int(gap[call, action].argmax())
        return FirstDifference(
            where=episode.recording.dataset.where(episode.recording.index),
            step=int(served.steps[call]),
            action=action,
            dim=self.space.locate(dim),
            served=float(served.actions[call, action, dim]),
            training=float(training[call, action, dim]),
            difference=float(gap[call, action, dim]),
        )


def _convert_scale(
    center: Float32[np.ndarray, "A"], scale: Float32[np.ndarray, "A"], convert: Callable[[np.ndarray], np.ndarray]
) -> Float32[np.ndarray, "A"]:
    """Return the range of each dim in the client's convention, around the center of the recorded actions."""
    ends = convert((center + np.diag(scale)).astype(np.float32))  # (A, A): one dim at the end of its range
    moved = np.abs(np.diagonal(ends) - convert(center[None].astype(np.float32))[0])
    return np.where(moved > 0, moved, scale)


def pick_tolerance(vla: VLA) -> float:
    """Return the tolerance for weights of the least precise type: other batches round in another way."""
    kinds = {p.dtype for p in vla.parameters() if p.is_floating_point()}
    if kinds & {torch.bfloat16, torch.float16}:
        return 0.05
    return 1e-4 if vla.device.type == "cpu" else 1e-3
