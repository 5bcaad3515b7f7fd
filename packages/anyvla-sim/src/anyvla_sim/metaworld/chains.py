"""The suite `metaworld/chains`: up to five instructed tasks in a row in one scene, without a reset in between."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from anyvla_sim.metaworld import chain_experts
from anyvla_sim.metaworld.chain_tasks import COUNT, GOALS, State, list_chains, sample_lead_in
from anyvla_sim.metaworld.environment import CLOSED, LIMITS, OPEN, Host, MetaWorldEnvironment
from anyvla_sim.metaworld.factors import MetaWorldDisturber
from anyvla_sim.metaworld.table import JOINTS
from anyvla_sim.names import check_name

PRESSED = 0.75  # fraction of its range beyond which the button counts as pressed
_MARGIN = 0.1  # of the range: another goal counts as reached only if it was this far off since the task began
STARTS = {"open": (0.9, 1.0), "closed": (0.0, 0.1)}  # fractions of a joint's range, uniformly sampled
LEAD_IN = 2  # tasks before a demonstration, at most
_LEAD_IN_NOISE = 0.2  # standard deviation, so that the hand and the objects are not left in the same way every time
_LEAD_INS = 10  # that are tried for a seed


class ChainEnvironment(MetaWorldEnvironment):
    """A simulated Sawyer arm at a table with a button, a drawer and a window.

    Seeds below `COUNT` start the chain of that number. Later ones start somewhere in a chain: scripted experts play up
    to two tasks after which the given task is possible, and the hand stays where they leave it.
    """

    def __init__(self, benchmark: Host, suite: str) -> None:
        super().__init__(benchmark, suite)
        self._horizon = benchmark.suite(suite).horizon

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        check_name(task, GOALS, f"metaworld/{self._suite} has no task")
        if seed < COUNT:
            self._start(task, seed, factors, list_chains(1)[seed].start)
            return
        rng = np.random.default_rng((seed, list(GOALS).index(task)))
        for _ in range(_LEAD_INS):
            chain = sample_lead_in(rng, task, LEAD_IN)
            self._start(task, seed, factors, chain.start)
            if all(self._play(before, rng) for before in chain.tasks):
                self.begin(task)
                return
        raise RuntimeError(f"the experts failed before {task} from seed {seed}, {_LEAD_INS} times")

    def _start(self, task: str, seed: int, factors: Mapping[str, str] | None, state: State) -> None:
        super().reset(task, seed, factors)
        now, rng = self.simulation, np.random.default_rng((seed, COUNT))  # apart from the generator of the lead-in
        for name in ("drawer", "window"):
            joint = now.sim.data.joint(JOINTS[name])
            joint.qpos, joint.qvel = rng.uniform(*STARTS[state[name]]) * self._full(name), 0.0
        now.update()
        self._seen = now.sim._get_obs()
        self.begin(task)

    def _play(self, task: str, rng: np.random.Generator) -> bool:
        """Play a task by its expert, with noise. Return whether it succeeds, and reaches no other goal."""
        self.begin(task)
        for _ in range(self._horizon):
            noise = np.append(rng.normal(scale=_LEAD_IN_NOISE, size=3), 0.0)
            goals = self.step(self.expert(task) + noise)
            if any(goals.values()):
                return goals[task]
        return False

    def begin(self, task: str) -> None:
        """Start the next task from the current state. Raises ValueError for an unknown task."""
        check_name(task, GOALS, f"metaworld/{self._suite} has no task")
        self._task = task
        self._held = {name for name in GOALS if self._holds(name, 0.0 if name == task else _MARGIN)}
        self._disturber = MetaWorldDisturber(self.simulation.sim)  # a push returns objects to this state

    def step(self, action: np.ndarray) -> dict[str, bool]:
        goals = super().step(action)
        self._held = {name for name in self._held if self._holds(name, _MARGIN)}
        return goals

    def goals(self) -> dict[str, bool]:
        """Return for each task, the current one first, whether its goal was reached since this one began."""
        return {name: name not in self._held and self._holds(name) for name in sorted(GOALS, key=self._is_other)}

    def _is_other(self, task: str) -> bool:
        return task != self._task

    def _holds(self, task: str, margin: float = 0.0) -> bool:
        goal = GOALS[task]
        share = float(self.simulation.sim.data.joint(JOINTS[goal.object]).qpos[0]) / self._full(goal.object)
        return {
            "open": share > OPEN - margin,
            "closed": share < CLOSED + margin,
            "pressed": share > PRESSED - margin,
        }[goal.state]

    def _full(self, name: str) -> float:
        """Return the position of an object's joint when it is fully open or pressed."""
        low, high = self.simulation.sim.model.joint(JOINTS[name]).range
        return float(low if abs(low) > abs(high) else high)

    def expert(self, task: str) -> np.ndarray:
        """Return the action of the scripted expert. Raises ValueError for an unknown task."""
        check_name(task, GOALS, f"metaworld/{self._suite} has no expert for")
        now = self.simulation
        action = chain_experts.act(task, now.sim, self._seen[:4], now.policies)
        return np.clip(action, *LIMITS).astype(np.float32)

    def locate(self) -> None:
        """Return None: visitors cannot move the objects, which keep their distances."""

    def move(self, shift: np.ndarray) -> bool:
        return False
