"""A small folder with the layout of CALVIN's repository, and three of the official chains."""

from __future__ import annotations

from pathlib import Path

from anyvla_sim.calvin.sequences import Chain

_UTILS = """
import contextlib
from calvin_agent.models.mcil import MCIL
import numpy as np
from numpy import pi
import pyhash
import torch

hasher = pyhash.fnv1_32()

def unrelated():
    raise RuntimeError

@contextlib.contextmanager
def temp_seed(seed):
    state = np.random.get_state()
    np.random.seed(seed)
    yield
    np.random.set_state(state)

def get_env_state_for_initial_condition(condition):
    with temp_seed(hasher(str(condition.values()))):
        return np.full(15, pi), np.random.uniform(size=24)
"""
_SEQUENCES = """
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
import functools
from calvin_agent.evaluation.utils import temp_seed
import numpy as np

def worker(number):
    np.random.seed(number)
    return [str(np.random.randint(100)) for _ in range(5)]

@functools.lru_cache
def get_sequences(count=1000, num_workers=None):
    with temp_seed(0):
        with ProcessPoolExecutor(max_workers=num_workers) as executor:
            results = [(deepcopy({"led": i}), tuple(t)) for i, t in enumerate(executor.map(worker, range(count)))]
        np.random.shuffle(results)
    return results
"""
_PHRASES = """
# lights
turn_on_led: ["press the button"]
open_drawer: [ "pull the handle"]
"""
_EVALUATION, _CONF = "calvin_models/calvin_agent/evaluation", "calvin_models/conf"
FILES = {  # paths as in the repository; official evaluations use the phrases of validation, not of training
    f"{_EVALUATION}/utils.py": _UTILS,
    f"{_EVALUATION}/multistep_sequences.py": _SEQUENCES,
    f"{_CONF}/callbacks/rollout/tasks/new_playtable_tasks.yaml": "tasks: {}",
    f"{_CONF}/annotations/new_playtable_validation.yaml": _PHRASES,
    f"{_CONF}/annotations/new_playtable.yaml": "turn_on_led: [ press it, push it ]\nopen_drawer: [ open it ]",
    "calvin_env/calvin_env/envs/play_table_env.py": "",
    "calvin_env/conf/scene/calvin_scene_D.yaml": "",
}


def write(root: Path) -> Path:
    """Write the files below `root`, and return it."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _start(led: int, bulb: int, slider: str, drawer: str, red: str, blue: str, pink: str) -> dict[str, object]:
    blocks = {"red_block": red, "blue_block": blue, "pink_block": pink}
    return {"led": led, "lightbulb": bulb, "slider": slider, "drawer": drawer, **blocks, "grasped": 0}


OFFICIAL = [  # the first of the published list, as in RoboVLMs' configs/data/calvin/eval_sequences.json
    Chain(
        _start(1, 1, "left", "open", "slider_left", "table", "slider_right"),
        [
            "rotate_blue_block_right",
            "move_slider_right",
            "lift_red_block_slider",
            "place_in_slider",
            "turn_off_lightbulb",
        ],
    ),
    Chain(
        _start(1, 1, "right", "open", "slider_right", "table", "slider_left"),
        ["turn_off_led", "push_into_drawer", "lift_blue_block_drawer", "place_in_slider", "close_drawer"],
    ),
    Chain(
        _start(0, 1, "right", "closed", "table", "slider_right", "slider_left"),
        ["lift_pink_block_slider", "place_in_slider", "open_drawer", "rotate_red_block_right", "lift_red_block_table"],
    ),
]
