"""The state and the picture of a running environment of LIBERO."""

from __future__ import annotations

import numpy as np

from anyvla_sim.libero.benchmark import LiberoEnvironment


def get_state(world: LiberoEnvironment) -> np.ndarray:
    data = world.simulation.data
    return np.concatenate([data.qpos, data.qvel])


def draw(world: LiberoEnvironment) -> np.ndarray:
    return world.observe().images["agentview"].astype(int)
