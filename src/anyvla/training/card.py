"""The model card that every checkpoint carries as its README.md."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import yaml

from anyvla.policy import VLA
from anyvla.training.checks import describe_robot_dims
from anyvla.training.warm_start.record import WarmStartRecord


def versions() -> dict[str, str]:
    """Return the versions that a trained model depends on."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in ("anyvla", "torch", "transformers")}


def format_model_card(vla: VLA, recipe: Mapping[str, Any], step: int, warm_start: WarmStartRecord | None = None) -> str:
    """Return the model card as Markdown: the policy, its training, its use."""
    robot, config = vla.embodiment, vla.config
    proprio = ", ".join(f"{g.name} ({g.size})" for g in robot.proprio.groups)
    notes = "".join(f"- {note}\n" for note in describe_robot_dims(vla.robots, config.normalization))
    dims = f"\n## Dims\n\n{notes}" if notes else ""
    ema = (recipe.get("training") or {}).get("ema")
    average = f"an exponential moving average of decay {ema['decay']:g}" if ema else "those of the last step"
    origin = ""
    if warm_start is not None:
        lines = "\n".join(warm_start.report)
        origin = f"\n## Start\n\nTraining started from another policy.\n\n```\n{lines}\n```\n"
    parameters = sum(p.numel() for p in vla.parameters())
    return f"""---
library_name: anyvla
pipeline_tag: robotics
---
# {recipe["name"]}

A vision-language-action model made with anyvla: {parameters / 1e6:.1f} M parameters, {step} training steps.

| | |
|---|---|
| backbone | {config.backbone.name} |
| history | {config.history.name}, {vla.history.describe()} |
| fuser, decoder | {config.fuser.name}, {config.decoder.name} |
| chunk | {config.chunk} actions, {config.execute} executed |
| robot | {robot.name}, {robot.control_hz:g} actions per second |
| cameras | {", ".join(robot.cameras)} |
| proprio | {proprio if config.proprio != "none" else "not used"} |
| action | {", ".join(f"{g.name} ({g.size}, {g.mode})" for g in robot.action.groups)} |
| weights | {average} |
| data | {"; ".join(f"{r.embodiment.name}: fingerprint {r.statistics.fingerprint[:16]}" for r in vla.robots)} |
| versions | {", ".join(f"{k} {v}" for k, v in versions().items())} |

```python
from anyvla import VLA, Observation

policy = VLA.load("path/to/this/folder")
session = policy.start("open the drawer")
[chunk] = policy.act([Observation(images=images, proprio=proprio)], [session])  # chunk.actions: (N, A)
```
{dims}{origin}
## Recipe

```yaml
{yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=120)}```
"""
