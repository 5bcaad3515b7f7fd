"""Describe how to evaluate a policy whose recipe names no simulator: on a robot, or with another program."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.report.run_folder import RunFolder


@dataclass(frozen=True)
class UsageGuide:
    """The contents of the section 'How to evaluate it'."""

    python: str  # code that controls the robot
    policy: str  # the folder to serve and to evaluate, quoted for a shell
    finished: bool


def list_sources(recipe: Mapping[str, Any]) -> list[str]:
    """Return the paths of the datasets that a recipe names, quoted for a shell."""
    sources = (recipe.get("data") or {}).get("sources") or []
    return [shlex.quote(str(source["path"])) for source in sources if "path" in source]


def make_usage_guide(run: RunFolder) -> UsageGuide | None:
    """Return the section for a run without results and without a benchmark; None for other runs."""
    if run.results or not run.recipe_text or run.recipe.get("benchmark"):
        return None
    finished = run.checkpoint == run.root / "checkpoint"
    policy = shlex.quote(str(run.root if finished else run.checkpoint))
    return UsageGuide(_control_code(run.checkpoint, run.robot), policy, finished)


def _control_code(checkpoint: Path, robot: Mapping[str, Any]) -> str:
    """Return Python code that runs the policy on its robot."""
    cameras = [str(c) for c in robot.get("cameras") or ["camera"]]
    images = ", ".join(f"{json.dumps(c, ensure_ascii=False)}: ..." for c in cameras)
    hz = robot.get("control_hz")
    pace = f"  # {hz:g} actions a second" if isinstance(hz, int | float) else ""
    vectors = [*_describe_vector("proprio", robot), *_describe_vector("action", robot)]
    return "\n".join(
        [
            "from anyvla import VLA, Observation",
            "",
            "# images: uint8 (H, W, 3), RGB",
            *vectors,
            f"policy = VLA.load({json.dumps(str(checkpoint), ensure_ascii=False)})",
            'session = policy.start("pick up the cube")',
            "while not done:",
            f"    observation = Observation(images={{{images}}}, proprio=...)",
            "    [chunk] = policy.act([observation], [session])",
            f"    for action in chunk.actions[: policy.config.execute]:{pace}",
            "        ...  # send it to the robot",
        ]
    )


def _describe_vector(part: str, robot: Mapping[str, Any]) -> list[str]:
    """Return comments that describe a vector of the robot: its size, and the names of its dims in order."""
    groups = (robot.get(part) or {}).get("groups") or []
    size = sum(group["size"] for group in groups)
    names = [str(name) for group in groups for name in group.get("names") or ()]
    named = ": " + ", ".join(names) if len(names) == size and names else ""
    text = f"{part}: float32 ({size},), in the units of the data{named}"
    return textwrap.wrap(text, 88, initial_indent="# ", subsequent_indent="#   ") if groups else []
