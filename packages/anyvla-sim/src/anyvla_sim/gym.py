"""Any Gymnasium environment with pictures and continuous actions as a benchmark of one task.

What its observations mean is declared in about ten lines (docs/benchmark_gym.md):

    import: gym_pusht                          # the module that registers the id, if one must be imported
    make: {obs_type: pixels_agent_pos}         # arguments of gymnasium.make; render_mode is rgb_array
    cameras: {top: pixels}                     # camera: where in the observation; `render`: what render() gives
    proprio: [{path: agent_pos, name: position, size: 2, kind: position}]
    action: [{name: position, size: 2, kind: position}]
    control_hz: 10
    instruction: push the T onto its outline
    success: info.is_success                   # or terminated, or a threshold as: info.reward_dist >= -0.05
    horizon: 300
"""

from __future__ import annotations

import importlib
import operator
import re
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import NotInstalled, Observation, Suite, Task
from anyvla_sim.names import suggest

_REQUIRED = ("cameras", "action", "control_hz", "instruction", "success", "horizon")
_OPTIONAL = ("import", "make", "proprio", "episodes", "robot")
_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Gym:
    """The benchmark `gym`: its one suite has the environment's id for a name."""

    name = "gym"
    factors: Mapping[str, Sequence[str]] = {}
    disturbances: Sequence[str] = ()

    def __init__(self, id: str = "ID", mapping: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError for a mapping that lacks something or that does not fit the environment, NotInstalled."""
        if mapping is None:
            raise ValueError(
                f"gym:{id} needs a mapping (which observation is which camera, what is success): "
                "--environment.mapping FILE.yaml; docs/benchmark_gym.md shows one of ten lines"
            )
        known = (*_REQUIRED, *_OPTIONAL)
        unknown = [key for key in mapping if key not in known]
        lacking = [key for key in _REQUIRED if key not in mapping]
        if unknown:
            raise ValueError(f"the mapping has no key {unknown[0]!r}: {suggest(unknown[0], known)}")
        if lacking:
            raise ValueError(f"the mapping lacks {', '.join(lacking)}")
        self.id, self.mapping = id, mapping
        self.settings: Mapping[str, Any] = {"id": id, "mapping": dict(mapping)}
        self.success = Success(str(mapping["success"]))
        self._check(GymEnvironment(self))

    def _check(self, environment: GymEnvironment) -> None:
        """Play nothing, look at everything: a fault of the mapping shows before an evaluation begins."""
        try:
            environment.reset(self.id, 0, {})
            seen = environment.observe()
            size = sum(int(group["size"]) for group in self.mapping["action"])
            shape = environment.env.action_space.shape
            if shape != (size,) or not hasattr(environment.env.action_space, "low"):
                raise ValueError(
                    f"gym:{self.id} takes {environment.env.action_space}, the mapping's action has {size} dims: a "
                    "policy gives one vector of continuous numbers"
                )
            wanted = sum(int(group["size"]) for group in self.mapping.get("proprio", ()))
            if seen.proprio.shape != (wanted,):
                raise ValueError(f"the mapping's proprio has {wanted} dims, the observation {seen.proprio.shape[0]}")
        finally:
            environment.close()

    def suites(self) -> Sequence[str]:
        """The id alone."""
        return (self.id,)

    def suite(self, name: str) -> Suite:
        """Its one task, told in the mapping's words."""
        if name != self.id:
            raise ValueError(f"this is gym:{self.id}, it has no suite {name!r}")
        said = self.mapping["instruction"]
        phrases = [said] if isinstance(said, str) else list(said)
        task = Task(self.id, self.id, phrases)
        return Suite(name, [task], int(self.mapping["horizon"]), episodes=int(self.mapping.get("episodes", 50)))

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """As the mapping declares it."""
        proprio = [{k: v for k, v in group.items() if k != "path"} for group in self.mapping.get("proprio", ())]
        return {
            "name": self.mapping.get("robot", self.id),
            "cameras": list(self.mapping["cameras"]),
            "control_hz": float(self.mapping["control_hz"]),
            "proprio": {"groups": proprio},
            "action": {"groups": [dict(group) for group in self.mapping["action"]]},
        }

    def make(self, suite: str) -> GymEnvironment:
        """An environment, to be used in this process."""
        return GymEnvironment(self)

    def close(self) -> None:
        """Nothing is shared."""

    def versions(self) -> Mapping[str, str]:
        """Of Gymnasium and of what registers the environment."""
        found = {"gymnasium": str(_gymnasium().__version__), "numpy": np.__version__}
        module = self.mapping.get("import")
        if module:
            found[module] = str(getattr(importlib.import_module(module), "__version__", "unknown"))
        return found

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """The mapping."""
        return dict(self.mapping)


class GymEnvironment:
    """One Gymnasium environment."""

    def __init__(self, benchmark: Gym) -> None:
        gymnasium = _gymnasium()
        self._benchmark = benchmark
        module = benchmark.mapping.get("import")
        try:
            if module:
                importlib.import_module(module)
            keys = {"render_mode": "rgb_array", **benchmark.mapping.get("make", {})}
            self.env = gymnasium.make(benchmark.id, **keys)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise NotInstalled(f"gym:{benchmark.id} cannot be made: {error}; install what registers it") from None
        except gymnasium.error.Error as error:
            raise ValueError(f"gym:{benchmark.id}: {error}") from None
        space = self.env.action_space
        if hasattr(space, "low") and np.isfinite(space.low).all() and np.isfinite(space.high).all():
            self.limits = (space.low.astype(np.float32), space.high.astype(np.float32))
        self._seen: Any = None

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        """Start an episode. Raises ValueError for factors: it has none."""
        if factors:
            raise ValueError(f"gym:{self._benchmark.id} has no factor {next(iter(factors))!r}: it has none")
        self._seen, _ = self.env.reset(seed=seed)

    def observe(self) -> Observation:
        """The cameras and the proprio that the mapping names. Raises ValueError for a path that leads nowhere."""
        mapping = self._benchmark.mapping
        images = {camera: self._image(camera, path) for camera, path in mapping["cameras"].items()}
        parts = [np.ravel(_at(self._seen, g["path"], "observation")) for g in mapping.get("proprio", ())]
        return Observation(images, np.concatenate([np.zeros(0), *parts]).astype(np.float32))

    def _image(self, camera: str, path: str) -> np.ndarray:
        image = np.asarray(self.env.render() if path == "render" else _at(self._seen, path, "observation"))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"camera {camera} ({path}) is no picture: {image.dtype} {image.shape}, uint8 (H, W, 3) is needed"
            )
        return np.ascontiguousarray(image)

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Act once; out-of-range actions are clipped."""
        limits = getattr(self, "limits", None)
        if limits is not None:
            action = np.clip(action, *limits)
        self._seen, reward, terminated, _, info = self.env.step(np.asarray(action, np.float32))
        told = {"reward": reward, "terminated": terminated, "info": info}
        return {self._benchmark.id: self._benchmark.success(told)}

    def frame(self, height: int, width: int) -> np.ndarray:
        """What render() gives, resized by the nearest pixel."""
        image = np.asarray(self.env.render())
        rows = np.arange(height) * image.shape[0] // height
        columns = np.arange(width) * image.shape[1] // width
        return np.ascontiguousarray(image[rows][:, columns])

    def close(self) -> None:
        """Close it."""
        self.env.close()


class Success:
    """What counts as success: a flag of a step, or a number beyond a threshold."""

    def __init__(self, written: str) -> None:
        """As `info.is_success`, `terminated`, `info.distance < 0.05`. Raises ValueError."""
        match = re.fullmatch(r"([\w.]+)\s*(?:(>=|<=|>|<)\s*(-?[\d.]+(?:e-?\d+)?))?", written.strip())
        if match is None:
            raise ValueError(f"success {written!r}: write info.FLAG, terminated, or info.NUMBER >= 0.9")
        self._path, self._sign = match[1], match[2]
        self._threshold = float(match[3]) if match[3] else 0.0

    def __call__(self, told: Mapping[str, Any]) -> bool:
        value = _at(told, self._path, "step")
        return bool(_COMPARE[self._sign](float(value), self._threshold)) if self._sign else bool(value)


def _at(value: Any, path: str, what: str) -> Any:
    """The part of nested maps that a dotted path names; "." is the whole."""
    for key in path.split(".") if path != "." else ():
        if not isinstance(value, Mapping) or key not in value:
            keys = list(value) if isinstance(value, Mapping) else []
            raise ValueError(f"the {what} has no {path!r}: {suggest(key, keys) if keys else 'it is no map: use .'}")
        value = value[key]
    return value


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise NotInstalled(f'Gymnasium is not installed ({error}); pip install "anyvla-sim[gym]"') from None
    return gymnasium
