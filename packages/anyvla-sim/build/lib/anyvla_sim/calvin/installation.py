"""The user's checkout of CALVIN: find and check it, read its files, import its simulator."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping, Sequence

from anyvla_sim.base import BenchmarkUnusable, NotInstalled
from anyvla_sim.calvin.sequences import SEQUENCES, UTILS
from anyvla_sim.workers.trial import TrialFailed, run_trial

ORACLE = "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml"
ANNOTATIONS = "calvin_models/conf/annotations/new_playtable_validation.yaml"
SIMULATOR = "calvin_env/calvin_env/envs/play_table_env.py"
SCENE = "calvin_env/conf/scene/calvin_scene_D.yaml"
PACKAGES = {  # modules that calvin_env imports -> their names for pip
    "pybullet": "pybullet",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "gym": "gym",
    "git": "gitpython",
    "quaternion": "numpy-quaternion",
    "scipy": "scipy",
    "cv2": "opencv-python-headless",
}
_CLONE = (
    "git clone https://github.com/mees/calvin && git -C calvin submodule update --init calvin_env; then name the "
    "folder: --environment.root PATH, or the environment variable CALVIN_ROOT"
)


def find_checkout(root: str | None) -> Path:
    """Return the checkout at `root`, by default $CALVIN_ROOT. Raises NotInstalled or ValueError."""
    given = root or os.environ.get("CALVIN_ROOT")
    if not given:
        raise NotInstalled(f"CALVIN is played from a checkout of its repository: {_CLONE}. {_packages_hint()}")
    path = Path(given).expanduser().resolve()
    lacking = [name for name in (UTILS, SEQUENCES, ORACLE, ANNOTATIONS) if not (path / name).is_file()]
    if lacking:
        raise ValueError(f"{path} is no checkout of CALVIN: it has no {lacking[0]}. To get one: {_CLONE}")
    lacking = [name for name in (SIMULATOR, SCENE) if not (path / name).is_file()]
    if lacking:
        raise ValueError(
            f"{path} has no {lacking[0]}: its submodule is empty; git -C {path} submodule update --init calvin_env"
        )
    return path


def check_packages() -> None:
    """Raise NotInstalled with the missing packages if this interpreter lacks any."""
    lacking = [pip for module, pip in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if lacking:
        raise NotInstalled(f"Python {platform.python_version()} lacks {', '.join(lacking)}. {_packages_hint(lacking)}")


def _packages_hint(lacking: Sequence[str] = ()) -> str:
    wanted = " ".join(lacking or PACKAGES.values())
    return (
        f"Its simulator needs, in the interpreter that plays it (Python 3.8 as its authors', or later; --python PATH), "
        f"{sys.executable} -m pip install {wanted}"
    )


def read_phrases(root: Path) -> Mapping[str, Sequence[str]]:
    """Return the instructions of the official evaluation by task, one each."""
    import yaml

    read = yaml.safe_load((root / ANNOTATIONS).read_text(encoding="utf-8"))
    return {str(task): [str(phrase) for phrase in phrases] for task, phrases in read.items()}


def load_environment_config(root: Path, cameras: str) -> Any:
    """Return hydra's `env`: scene D, the arm that recorded the data sets, and `cameras`, of `calvin_env/conf/cameras`.

    CALVIN's own `get_env` reads it from a data set, which an evaluation does not need otherwise.
    """
    from hydra import compose, initialize_config_dir

    choices = (f"cameras={cameras}", "scene=calvin_scene_D", "robot=panda_longer_finger", "use_vr=false")
    quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")  # CALVIN's settings need a package for colored logs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files of hydra 1.1 under a later one
        with initialize_config_dir(str(root / "calvin_env" / "conf")):
            return compose("config_data_collection", overrides=[*choices, *quiet]).env


def import_simulator(root: Path) -> Mapping[str, Any]:
    """Return the modules of `calvin_env` as "env", "robot" and "gripper_camera".

    Raises NotInstalled, ValueError if this process has loaded them from another checkout.
    """
    folder = str(root / "calvin_env")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # its import raises without the program git
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = importlib.import_module("calvin_env.envs.play_table_env")
            robot = importlib.import_module("calvin_env.robot.robot")
            gripper_camera = importlib.import_module("calvin_env.camera.gripper_camera")
    except ImportError as error:
        raise NotInstalled(f"CALVIN's simulator cannot be imported: {error}. {_packages_hint()}") from error
    if Path(str(env.__file__)).resolve() != (root / SIMULATOR).resolve():
        raise ValueError(f"calvin_env is loaded from {env.__file__} already; {root} needs another process")
    # It logs its commit, which crashes outside of a git repository. `versions` records the commit anyway.
    vars(env)["get_git_commit_hash"] = lambda path: "see versions"
    return {"env": env, "robot": robot, "gripper_camera": gripper_camera}


_PROBE = """
import importlib.util
import pybullet
pybullet.connect(pybullet.DIRECT, options="--width=8 --height=8")
found = importlib.util.find_spec("eglRenderer")
names = (found.origin, "_eglRendererPlugin") if found else ("eglRendererPlugin",)
assert pybullet.loadPlugin(*names) >= 0, "the plugin does not load"
pybullet.getCameraImage(8, 8)
"""


@lru_cache(maxsize=None)
def find_egl_driver() -> str:
    """Return the name of the EGL driver. Raises BenchmarkUnusable if EGL does not work."""
    try:
        named = [line.split("=", 1)[1] for line in run_trial(_PROBE).splitlines() if line.startswith("GL_RENDERER=")]
        if not named:
            raise TrialFailed("the renderer does not name itself")
    except TrialFailed as why:
        raise BenchmarkUnusable(
            f"CALVIN's EGL renderer does not work here ({why}): install a GL driver with EGL (libegl1), or choose "
            "--environment.render tiny, which draws on the CPU; its pixels differ from the published ones"
        ) from None
    return named[0]
