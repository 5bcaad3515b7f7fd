"""Describe, for its page, how to try a policy whose recipe names no simulator: on a robot, or by another program."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.report.run_folder import RunFolder


@dataclass(frozen=True)
class UsageGuide:
    """The contents of the section."""

    python: str  # a loop on the robot
    policy: str  # the folder to serve and to evaluate, quoted for a shell
    finished: bool
    sources: Sequence[str]  # paths of the data that it was trained on, quoted for a shell


def list_sources(recipe: Mapping[str, Any]) -> list[str]:
    """Return the paths of the data sets that a recipe names itself, quoted for a shell."""
    sources = (recipe.get("data") or {}).get("sources") or []
    return [shlex.quote(str(source["path"])) for source in sources if "path" in source]


def usage_guide(run: RunFolder) -> UsageGuide | None:
    """Return the section for a run that nothing has evaluated and no simulator can; None for other runs."""
    if run.results or not run.recipe_text or run.recipe.get("benchmark"):
        return None
    finished = run.checkpoint == run.root / "checkpoint"
    policy = shlex.quote(str(run.root if finished else run.checkpoint))
    return UsageGuide(_loop(run.checkpoint, run.robot), policy, finished, list_sources(run.recipe))


def _loop(checkpoint: Path, robot: Mapping[str, Any]) -> str:
    """Return Python that lets the policy act on its robot."""
    cameras = [str(c) for c in robot.get("cameras") or ["camera"]]
    images = ", ".join(f"{json.dumps(c, ensure_ascii=False)}: ..." for c in cameras)
    hz = robot.get("control_hz")
    pace = f"  # {hz:g} actions a second" if isinstance(hz, int | float) else ""
    vectors = [*_vector("proprio", robot), *_vector("action", robot)]
    return "\n".join(
        [
            "from anyvla import VLA, Observation",
            "",
            "# images: uint8 (H, W, 3), RGB",
            *vectors,
            f"policy = VLA.load({json.dumps(str(checkpoint), ensure_ascii=False)})",
            'session = policy.start("pick up the cube")',
            "while not done:",
            f"    seen = Observation(images={{{images}}}, proprio=...)",
            "    [chunk] = policy.act([seen], [session])",
            f"    for action in chunk.actions[: policy.config.execute]:{pace}",
            "        ...  # send it to the robot",
        ]
    )


def _vector(part: str, robot: Mapping[str, Any]) -> list[str]:
    """Return comments that say what the numbers of a vector are, in order."""
    groups = (robot.get(part) or {}).get("groups") or []
    size = sum(group["size"] for group in groups)
    names = [str(name) for group in groups for name in group.get("names") or ()]
    named = ": " + ", ".join(names) if len(names) == size and names else ""
    text = f"{part}: float32 ({size},), in the units of the data{named}"
    return textwrap.wrap(text, 88, initial_indent="# ", subsequent_indent="#   ") if groups else []
