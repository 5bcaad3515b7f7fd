"""The scenes of a suite and their instructions, as a page offers them."""

from __future__ import annotations

from typing import Any

from anyvla_sim.base import Suite, Task

PATIENCE = 3  # a robot that reaches no goal stops after this many times the horizon of its task


def list_scenes(suite: Suite) -> list[dict[str, Any]]:
    """Return the scenes by name, each with its tasks and their phrasings."""
    scenes: dict[str, list[dict[str, Any]]] = {}
    for task in suite.tasks:
        scenes.setdefault(task.scene, []).append(
            {"task": task.name, "trained": list(task.instructions), "unseen": list(task.paraphrases)}
        )
    return [{"scene": scene, "tasks": tasks} for scene, tasks in scenes.items()]


def find_task(suite: Suite, scene: str, instruction: str) -> str | None:
    """Return the task of a scene that an instruction is a known phrasing of; None for any other text."""
    asked = _plain(instruction)
    for task in suite.tasks:
        if task.scene == scene and asked in map(_plain, (*task.instructions, *task.paraphrases)):
            return task.name
    return None


def horizon(suite: Suite, task: Task) -> int:
    """Return the number of actions after which a robot stops that has reached no goal."""
    return PATIENCE * suite.limit(task.name)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".! ")
