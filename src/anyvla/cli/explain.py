"""`anyvla explain RECIPE`: show the token layout, the attention mask and the parameter counts of a recipe's model.

The model is built and reads one made-up window, so the output shows the code that runs. It needs the backbone of the
recipe; `--model.backbone nano` replaces it by a small one and keeps the structure.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from anyvla.cli.common import console
from anyvla.cli.console import Console
from anyvla.cli.recipe_help import KeyParser
from anyvla.config import ConfigError, build
from anyvla_sim.base import BenchmarkUnusable

if TYPE_CHECKING:
    from anyvla.recipe import Recipe
    from anyvla.report.explanation import Explanation
    from anyvla.robot.embodiment import Embodiment

COLORS = {
    "start": "white",
    "image": "blue",
    "text": "magenta",
    "past": "bright_magenta",
    "proprio": "green",
    "readout": "yellow",
    "suffix": "red",
}


def main(argv: list[str]) -> int:
    """Print the explanation, and write the picture if `--svg` is given."""
    parser = KeyParser(
        prog="anyvla explain",
        description=__doc__,
        epilog="Any key of the recipe can be set: --model.backbone nano --model.history.window 4",
    )
    parser.add_argument("recipe", help="a YAML file, or the name of a bundled recipe (anyvla list recipes)")
    parser.add_argument("--stage", metavar="NAME", help="of a recipe with stages: explain the model of this one")
    parser.add_keys()
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the layout and the mask")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options, overrides = parser.parse_known_args(argv)
    from anyvla.recipe import read
    from anyvla.report.structure import draw_structure
    from anyvla.stages import read_stages, up_to

    if options.stage is None:
        recipe = read(options.recipe, overrides)
    else:
        recipe = up_to(read_stages(options.recipe, overrides), options.stage)[-1].recipe
    explained = explain_recipe(recipe, options.recipe)
    if options.svg is not None:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(draw_structure(explained), encoding="utf-8")
    if options.json:
        print(json.dumps(explained.to_dict(), indent=1))
        return 0
    print_explanation(explained, Console())
    if options.svg is not None:
        console.print(f"the picture: {options.svg}", soft_wrap=True)
    return 0


def explain_recipe(recipe: Recipe, name: str) -> Explanation:
    """Build the model of the recipe called `name` with made-up statistics and codec, and explain it.

    Raises ConfigError, with a command to use instead, if the backbone cannot be loaded.
    """
    from anyvla.planning.inputs import fit_made_up_codec
    from anyvla.policy import VLA
    from anyvla.report.explanation import dummy_statistics, explain
    from anyvla.robot.shared_layout import Robot

    robot, config = choose_robot(recipe), recipe.model
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        codec = Path(folder) / "codec"
        if config.representation.target.kind == "tokens" and fit_made_up_codec(config, robot, codec):
            notes.append(
                "the codec is fitted to made-up chunks; for the token counts of real ones: anyvla data fit-codec"
            )
        try:
            config.backbone.target.find_capabilities(config.backbone.config)
            vla = VLA(config, [Robot(robot, dummy_statistics(robot))], codec=codec).eval()
        except ConfigError:
            raise
        except (ValueError, OSError, ImportError) as error:
            if config.backbone.name == "nano":
                raise
            raise ConfigError(
                f"the backbone of {recipe.name} cannot be loaded: {error}\n"
                f"To see the same structure around a small one: anyvla explain {name} --model.backbone nano"
            ) from error
        with silenced("anyvla.decoders"):  # an untrained policy writes invalid chunks
            return explain(vla, recipe.name, notes)


@contextlib.contextmanager
def silenced(name: str) -> Iterator[None]:
    """Suppress the warnings of the loggers below `name`."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def choose_robot(recipe: Recipe) -> Embodiment:
    """Return the robot of the recipe's data or benchmark, or an ordinary arm if neither can be opened."""
    from anyvla.data.training.mixture import open_mixture
    from anyvla.evaluation.suites import open_suite
    from anyvla.planning.inputs import ORDINARY_ARM
    from anyvla.robot.embodiment import Embodiment

    if recipe.data.given:
        try:
            return open_mixture(recipe.data, Path()).layout.embodiment
        except ValueError as error:
            console.print(f"the recipe's data cannot be opened ({error}); using an ordinary arm")
    if recipe.benchmark is not None:
        try:
            return open_suite(recipe.benchmark, recipe.environment).embodiment
        except BenchmarkUnusable as error:  # its extra is not installed
            console.print(f"the recipe's benchmark cannot be opened ({error}); using an ordinary arm")
    return build(Embodiment, ORDINARY_ARM)


def print_explanation(e: Explanation, out: Console) -> None:
    """Print the explanation as text."""
    from anyvla.report.structure import format_count

    made = e.structure
    out.print(e.name, style="bold")
    out.print(
        f"history {made['history']}, fuser {made['fuser']}, decoder {made['decoder']}, "
        f"representation {made['representation']}; backbone {made['backbone']}\n"
    )
    together = "in one sequence" if e.sequences == 1 else "one sequence each"
    steps = f"{e.window} steps, {together}" if e.window > 1 else "one step"
    if e.carries_state:
        steps, memory = "each step of an episode, one sequence each", "state carried over the session"
    else:
        memory = f"window {e.window}"
    limit = f" (it takes {e.limit} at most)" if e.limit else ""
    out.print("layout", style="bold", end="")
    out.print(f": {steps} of {e.length} tokens{limit}; {memory}, chunk {e.chunk} x {e.action}, "
              f"{e.execute} executed", soft_wrap=True)  # fmt: skip
    for line in format_layout(e):
        out.print(line, soft_wrap=True)
    out.print("\nmask", style="bold", end="")
    out.print(": rows attend to columns; █ to all, ▒ to some (earlier ones), · to none")
    for line in format_mask(e):
        out.print(line, soft_wrap=True)
    table = Table("\nweights", "\nall", "\ntrainable", box=None, pad_edge=False)
    for part in e.parts:
        table.add_row(
            part.name, format_count(part.parameters), format_count(part.trainable) if part.trainable else "frozen"
        )
    table.add_row(
        "together", format_count(sum(p.parameters for p in e.parts)), format_count(sum(p.trainable for p in e.parts))
    )
    for column in table.columns[1:]:
        column.justify = "right"
    out.print(table, "")
    for note in e.notes:
        out.print(f"- {note}", soft_wrap=True)


def format_layout(e: Explanation) -> list[Text]:
    """Return a line per step with its groups of tokens and their sizes."""
    from anyvla.report.structure import shown_steps

    lines, before = [], -1
    for step in shown_steps(e.window):
        if step != before + 1:
            lines.append(Text(f"  ... {step - before - 1} more", style="dim"))
        before = step
        own = step if e.sequences == 1 else 0  # sequences of one step each are alike
        line = Text(f"  step {step + 1:<3}" if e.window > 1 else "  ")
        for group in e.groups:
            if group.step == own or (group.step < 0 and (step == 0 or e.sequences > 1)):
                text = f"{group.label} {group.tokens}"
                line.append(f"({text})" if group.kind == "suffix" else f"[{text}]", COLORS[group.kind])
        lines.append(line)
    return lines


def format_mask(e: Explanation) -> list[Text]:
    """Return a line per group of tokens: its name, and the groups that it attends to."""
    from anyvla.report.structure import name_group, shown_groups

    shown = shown_groups(e)
    names = [name_group(e.groups[n], e) for n in shown]
    room = max(map(len, names))
    lines = []
    for row, name in zip(shown, names, strict=True):
        line = Text(f"  {name:>{room}} ")
        for column in shown:
            share = e.attention[row, column]
            mark = "·" if share == 0 else "█" if share >= 1 else "▒"
            line.append(mark * 2, COLORS[e.groups[column].kind] if share else "dim")
        lines.append(line)
    return lines
