"""`anyvla quickstart`: collect demonstrations, train, evaluate, and write a report with videos.

A phase whose output is complete is skipped; an interrupted one is resumed. A recipe with stages collects for all of
them, trains them in order, and evaluates the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyvla.cli.chain import Chain, read_chain, train_chain
from anyvla.cli.common import console, read_recipe
from anyvla.cli.recipe_help import KeyParser
from anyvla.cli.stage_meter import StageMeter
from anyvla.files.folder_lock import lock_folder

if TYPE_CHECKING:
    from anyvla.recipe import Recipe


def main(argv: list[str]) -> int:
    """Run all phases. The last line printed is the path of the report (or, with --json, one object)."""
    parser = KeyParser(
        prog="anyvla quickstart",
        description=__doc__,
        epilog="Any key of the recipe can be set: --training.seed 1 --collect.demonstrations 20",
    )
    parser.add_recipe("--recipe", default="quickstart")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options, overrides = parser.parse_known_args(argv)
    begin = time.perf_counter()

    from anyvla.cli.evaluate import evaluate
    from anyvla.evaluation.results import read_results
    from anyvla.evaluation.statistics import summarize
    from anyvla.report.chain import write_chain_report
    from anyvla.report.run_report import write_report

    chain = read_chain(options, overrides)
    phases: dict[str, Callable[[], object]]
    if chain is None:
        recipe, run = policy_run = read_recipe(options, overrides)
        phases, report = _phases_of_recipe(recipe, run), write_report
    else:
        run, policy_run = chain.run, (chain.last.recipe, chain.folder(chain.last))
        phases, report = _phases_of_chain(chain), write_chain_report
    phases |= {"evaluate": lambda: evaluate(*policy_run), "report": lambda: report(run)}
    with lock_folder(run):
        peak = 0.0
        for number, (name, phase) in enumerate(phases.items(), 1):
            console.rule(f"{number}/{len(phases)} {name}", align="left")
            with StageMeter(run, name) as measured:
                phase()
            peak = max(peak, measured.peak_memory_gb)
        page = report(run)  # again, now that the times of all phases are known
    summary: dict[str, Any] = summarize(read_results(policy_run[1] / "eval" / "results.jsonl")).to_dict()
    minutes = (time.perf_counter() - begin) / 60
    if options.json:
        print(json.dumps(summary | {"minutes": minutes, "peak_memory_gb": peak, "report": str(page)}))
    else:
        console.print(f"{minutes:.1f} minutes, at most {peak:.1f} GB of memory. Open the report:")
        print(page)
    return 0


def _phases_of_recipe(recipe: Recipe, run: Path) -> dict[str, Callable[[], object]]:
    from anyvla.cli.data.collect import collect
    from anyvla.cli.data.fit_codec import fit_codec_if_needed
    from anyvla.cli.train import train

    phases: dict[str, Callable[[], object]] = {"collect": lambda: collect(recipe, run)}
    if recipe.model.representation.target.kind == "tokens":
        phases["codec"] = lambda: fit_codec_if_needed(recipe, run)
    return phases | {"train": lambda: train(recipe, run)}


def _phases_of_chain(chain: Chain) -> dict[str, Callable[[], object]]:
    from anyvla.cli.data.collect import collect_chain
    from anyvla.cli.data.fit_codec import fit_codecs_if_needed
    from anyvla.cli.train import train

    phases: dict[str, Callable[[], object]] = {"collect": lambda: collect_chain(chain)}
    if any(stage.recipe.model.representation.target.kind == "tokens" for stage in chain.asked):
        phases["codecs"] = lambda: fit_codecs_if_needed(chain)
    return phases | {"train": lambda: train_chain(chain, train)}
