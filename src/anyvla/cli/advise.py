"""`anyvla advise`: a recipe for your robot, demonstrations, GPU and control rate, with the evidence behind each choice.

The evidence is the comparisons of studies, published results (with paper and setting, also where they disagree), and
arithmetic: memory from the planner, and the chunk that keeps the control rate.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from anyvla.cli.common import console
from anyvla.cli.console import Console
from anyvla.config import ConfigError

if TYPE_CHECKING:
    from anyvla.advice.advise import Advice
    from anyvla.advice.situation import Situation

_WIDE = 120  # columns without a terminal


def main(argv: list[str]) -> int:
    """Print the advice, and write its recipe."""
    parser = argparse.ArgumentParser(
        prog="anyvla advise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="your demonstrations: a folder, or the id of a LeRobot data set on the hub")
    source.add_argument("--benchmark", help="a benchmark with experts, as metaworld/mt10")
    source.add_argument("--recipe", help="the robot and the data of a recipe")
    parser.add_argument("--embodiment", type=Path, help="for data that declares no conventions: a YAML file with them")
    parser.add_argument(
        "--demonstrations", type=int, help="how many there will be; with experts, of each task (default: as they are)"
    )
    parser.add_argument("--gpu", help="its memory, as 24GB, or a name, as h100 (default: this machine)")
    parser.add_argument("--hz", type=float, help="control rate: actions a second (default: that of the robot)")
    parser.add_argument("--call-ms", type=float, help="the measured time of a chunk (anyvla bench latency)")
    parser.add_argument("--backbone", help="take this one: paligemma-3b, paligemma-3b-lora, smolvlm2-500m, ..., nano")
    parser.add_argument("--needs-memory", action="store_true", help="the present picture does not tell what to do")
    parser.add_argument("--disagreeing", action="store_true", help="demonstrations solve the same in several ways")
    parser.add_argument(
        "--study", type=Path, action="append", default=[], help="the folder or file of a study, as evidence"
    )
    parser.add_argument("--out", type=Path, help="write the recipe to this file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if options.embodiment is not None and options.dataset is None:
        raise ConfigError("--embodiment declares the conventions of --dataset: give both")
    from anyvla.advice.advise import Request, advise
    from anyvla.advice.studies import bundled_studies, read_studies
    from anyvla.advice.writing import format_recipe, to_document, write_recipe

    shown = read_studies([*options.study, *bundled_studies()])
    found = advise(
        Request(
            read_situation(options),
            name=options.out.stem if options.out else "advised",
            gpu=options.gpu,
            backbone=options.backbone,
            call_ms=options.call_ms,
            needs_memory=options.needs_memory,
            disagreeing=options.disagreeing,
        ),
        shown,
    )
    if options.out is not None:
        write_recipe(options.out, format_recipe(found, shlex.join(["anyvla", "advise", *argv])))
    if options.json:
        print(json.dumps(to_document(found), indent=1))
    else:
        show(found)
    if options.out is None:
        console.print("To write this recipe to a file: --out mine.yaml", soft_wrap=True)
    else:
        on = f" --gpu {options.gpu}" if options.gpu else ""
        file = shlex.quote(str(options.out))
        collect = f"anyvla data collect {file}; " if "collect" in found.recipe else ""
        following = f"anyvla plan {file}{on}; {collect}anyvla train {file}"
        console.print(f"Written to {options.out}. Next: {following}", soft_wrap=True)
    return 0


def read_situation(options: argparse.Namespace) -> Situation:
    """Return the situation that the options describe. Raises ConfigError."""
    from anyvla.advice.situation import of_benchmark, of_dataset, of_recipe

    if options.dataset is not None:
        return of_dataset(options.dataset, options.embodiment, options.demonstrations, options.hz)
    if options.benchmark is not None:
        return of_benchmark(options.benchmark, options.demonstrations, options.hz)
    return of_recipe(options.recipe, options.demonstrations, options.hz)


def show(advice: Advice) -> None:
    """Print the choices as a table."""
    from anyvla.advice.writing import LEGEND, MARKS

    out = Console()
    if not out.is_terminal:
        out.width = _WIDE
    table = Table(box=box.SIMPLE, pad_edge=False, show_lines=True)
    for title, share in (("choice", 3), ("why", 4), (f"evidence: {LEGEND}", 11)):
        table.add_column(title, ratio=share)
    for decision in advice.decisions:
        evidence = "\n".join(f"{MARKS[s.stance]} {s.text}" for s in decision.evidence)
        table.add_row(f"{decision.choice}:\n{decision.value}", decision.why, evidence)
    out.print(table)
    for note in advice.notes:
        out.print(note, soft_wrap=True)
