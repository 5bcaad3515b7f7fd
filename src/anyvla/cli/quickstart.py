"""`anyvla quickstart`: collect demonstrations, train, evaluate, and write a report with videos.

A stage whose output is complete is skipped; an interrupted stage is resumed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from anyvla.cli.common import console, read_recipe
from anyvla.cli.recipe_help import KeyParser
from anyvla.cli.stage_meter import StageMeter
from anyvla.files.folder_lock import lock_folder


def main(argv: list[str]) -> int:
    """Run all stages. The last line printed is the path of the report (or, with --json, one object)."""
    parser = KeyParser(
        prog="anyvla quickstart",
        description=__doc__,
        epilog="Any key of the recipe can be set: --training.seed 1 --collect.demonstrations 20",
    )
    parser.add_recipe("--recipe", default="quickstart")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options, overrides = parser.parse_known_args(argv)
    recipe, run = read_recipe(options, overrides)
    begin = time.perf_counter()

    from anyvla.cli.data.collect import collect
    from anyvla.cli.data.fit_codec import fit_codec_if_needed
    from anyvla.cli.evaluate import evaluate
    from anyvla.cli.train import train
    from anyvla.evaluation.results import read_results
    from anyvla.evaluation.statistics import summarize
    from anyvla.report.run_report import write_report
    from anyvla.training.launchers import check_one_process

    stages: dict[str, Callable[[], object]] = {"collect": lambda: collect(recipe, run)}
    if recipe.model.representation.target.kind == "tokens":
        stages["codec"] = lambda: fit_codec_if_needed(recipe, run)
    stages |= {
        "train": lambda: train(recipe, run),
        "evaluate": lambda: evaluate(recipe, run),
        "report": lambda: write_report(run),
    }
    check_one_process()
    with lock_folder(run):
        peak = 0.0
        for number, (name, stage) in enumerate(stages.items(), 1):
            console.rule(f"{number}/{len(stages)} {name}", align="left")
            with StageMeter(run, name) as measured:
                stage()
            peak = max(peak, measured.peak_memory_gb)
        page = write_report(run)  # again, now that the times of all stages are known
    summary: dict[str, Any] = summarize(read_results(run / "eval" / "results.jsonl")).to_dict()
    minutes = (time.perf_counter() - begin) / 60
    if options.json:
        print(json.dumps(summary | {"minutes": minutes, "peak_memory_gb": peak, "report": str(page)}))
    else:
        console.print(f"{minutes:.1f} minutes, at most {peak:.1f} GB of memory. Open the report:")
        print(page)
    return 0
