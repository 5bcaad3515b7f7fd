"""Any Gymnasium environment with images and continuous actions as a benchmark of one task.

A mapping of about ten lines declares the meaning of its observations (docs/benchmark_gym.md):

    import: gym_pusht                          # the module that registers the id, if one must be imported
    make: {obs_type: pixels_agent_pos}         # arguments of gymnasium.make; render_mode is rgb_array
    cameras: {top: pixels}                     # camera: path in the observation; `render`: the image of render()
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

from anyvla_sim.base import Benchmark, Environment, NotInstalled, Observation, Suite, Task
from anyvla_sim.names import check_factors, check_name, suggest

_REQUIRED = ("cameras", "action", "control_hz", "instruction", "success", "horizon")
_OPTIONAL = ("import", "make", "proprio", "episodes", "robot")
_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Gym(Benchmark):
    """The benchmark `gym`. Its one suite has the environment's id as its name."""

    name = "gym"

    def __init__(self, id: str = "ID", mapping: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError for a mapping that is incomplete or does not fit the environment, NotInstalled."""
        if mapping is None:
            raise ValueError(
                f"gym:{id} needs a mapping of observations to cameras and of success: "
                "--environment.mapping FILE.yaml; docs/benchmark_gym.md shows an example of ten lines"
            )
        for key in mapping:
            check_name(key, (*_REQUIRED, *_OPTIONAL), "the mapping has no key")
        missing = [key for key in _REQUIRED if key not in mapping]
        if missing:
            raise ValueError(f"the mapping lacks {', '.join(missing)}")
        self.id, self.mapping = id, mapping
        self.settings: Mapping[str, Any] = {"id": id, "mapping": dict(mapping)}
        self.success = SuccessRule(str(mapping["success"]))
        self._check(GymEnvironment(self))

    def _check(self, environment: GymEnvironment) -> None:
        """Compare the mapping with the environment, so that its errors show before an evaluation begins."""
        try:
            environment.reset(self.id, 0, {})
            observation = environment.observe()
            size = sum(int(group["size"]) for group in self.mapping["action"])
            shape = environment.env.action_space.shape
            if shape != (size,) or not hasattr(environment.env.action_space, "low"):
                raise ValueError(
                    f"gym:{self.id} takes {environment.env.action_space}, the mapping's action has {size} dims: a "
                    "policy gives one vector of continuous numbers"
                )
            wanted = sum(int(group["size"]) for group in self.mapping.get("proprio", ()))
            dims = observation.proprio.shape[0]
            if dims != wanted:
                raise ValueError(f"the mapping's proprio has {wanted} dims, the observation {dims}")
        finally:
            environment.close()

    def suites(self) -> Sequence[str]:
        return (self.id,)

    def suite(self, name: str) -> Suite:
        if name != self.id:
            raise ValueError(f"this is gym:{self.id}, it has no suite {name!r}")
        given = self.mapping["instruction"]
        task = Task(self.id, self.id, [given] if isinstance(given, str) else list(given))
        return Suite(name, [task], int(self.mapping["horizon"]), episodes=int(self.mapping.get("episodes", 50)))

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        proprio = [{k: v for k, v in group.items() if k != "path"} for group in self.mapping.get("proprio", ())]
        return {
            "name": self.mapping.get("robot", self.id),
            "cameras": list(self.mapping["cameras"]),
            "control_hz": float(self.mapping["control_hz"]),
            "proprio": {"groups": proprio},
            "action": {"groups": [dict(group) for group in self.mapping["action"]]},
        }

    def make(self, suite: str) -> GymEnvironment:
        return GymEnvironment(self)

    def versions(self) -> Mapping[str, str]:
        found = {"gymnasium": str(_import_gymnasium().__version__), "numpy": np.__version__}
        module = self.mapping.get("import")
        if module:
            found[module] = str(getattr(importlib.import_module(module), "__version__", "unknown"))
        return found

    def protocol(self, suite: str) -> Mapping[str, Any]:
        return dict(self.mapping)


class GymEnvironment(Environment):
    """One Gymnasium environment."""

    def __init__(self, benchmark: Gym) -> None:
        gymnasium = _import_gymnasium()
        self._benchmark = benchmark
        module = benchmark.mapping.get("import")
        try:
            if module:
                importlib.import_module(module)
            keys = {"render_mode": "rgb_array", **benchmark.mapping.get("make", {})}
            self.env = gymnasium.make(benchmark.id, **keys)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise NotInstalled(f"gym:{benchmark.id} cannot be made: {error}; install the package") from None
        except gymnasium.error.Error as error:
            raise ValueError(f"gym:{benchmark.id}: {error}") from None
        space = self.env.action_space
        if hasattr(space, "low") and np.isfinite(space.low).all() and np.isfinite(space.high).all():
            self.limits = (space.low.astype(np.float32), space.high.astype(np.float32))
        self._seen: Any = None

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        """Start an episode. Raises ValueError for any factor, as there are none."""
        check_factors(f"gym:{self._benchmark.id}", {}, factors)
        self._seen, _ = self.env.reset(seed=seed)

    def observe(self) -> Observation:
        """Return the images and the proprio that the mapping names. Raises ValueError for an unknown path."""
        mapping = self._benchmark.mapping
        images = {camera: self._image(camera, path) for camera, path in mapping["cameras"].items()}
        parts = [np.ravel(_look_up(self._seen, g["path"], "observation")) for g in mapping.get("proprio", ())]
        return Observation(images, np.concatenate([np.zeros(0), *parts]).astype(np.float32))

    def _image(self, camera: str, path: str) -> np.ndarray:
        image = np.asarray(self.env.render() if path == "render" else _look_up(self._seen, path, "observation"))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"camera {camera} ({path}) is no picture: {image.dtype} {image.shape}, uint8 (H, W, 3) is needed"
            )
        return np.ascontiguousarray(image)

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Execute an action, clipped to the limits. Return whether the task's goal holds."""
        limits = getattr(self, "limits", None)
        if limits is not None:
            action = np.clip(action, *limits)
        self._seen, reward, terminated, _, info = self.env.step(np.asarray(action, np.float32))
        outcome = {"reward": reward, "terminated": terminated, "info": info}
        return {self._benchmark.id: self._benchmark.success(outcome)}

    def frame(self, height: int, width: int) -> np.ndarray:
        """Return the image of render(), resized without interpolation."""
        image = np.asarray(self.env.render())
        rows = np.arange(height) * image.shape[0] // height
        columns = np.arange(width) * image.shape[1] // width
        return np.ascontiguousarray(image[rows][:, columns])

    def close(self) -> None:
        self.env.close()


class SuccessRule:
    """A test for success: a flag of a step, or a number beyond a threshold."""

    def __init__(self, rule: str) -> None:
        """Parse `info.is_success`, `terminated`, `info.distance < 0.05` and the like. Raises ValueError for others."""
        match = re.fullmatch(r"([\w.]+)\s*(?:(>=|<=|>|<)\s*(-?[\d.]+(?:e-?\d+)?))?", rule.strip())
        if match is None:
            raise ValueError(f"success {rule!r}: write info.FLAG, terminated, or info.NUMBER >= 0.9")
        self._path, self._sign = match[1], match[2]
        self._threshold = float(match[3]) if match[3] else 0.0

    def __call__(self, outcome: Mapping[str, Any]) -> bool:
        """Return whether the outcome of a step is a success. Raises ValueError if it lacks the path."""
        value = _look_up(outcome, self._path, "step")
        return bool(_COMPARE[self._sign](float(value), self._threshold)) if self._sign else bool(value)


def _look_up(value: Any, path: str, place: str) -> Any:
    """Return the value at a dotted path in nested maps; "." is the whole. Raises a ValueError that names `place`."""
    for key in path.split(".") if path != "." else ():
        if not isinstance(value, Mapping) or key not in value:
            keys = list(value) if isinstance(value, Mapping) else []
            raise ValueError(f"the {place} has no {path!r}: {suggest(key, keys) if keys else 'it is no map: use .'}")
        value = value[key]
    return value


def _import_gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise NotInstalled(f'Gymnasium is not installed ({error}); pip install "anyvla-sim[gym]"') from None
    return gymnasium
