"""`anyvla eval RUN`: play a benchmark with a trained policy; success rates with intervals, and videos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from anyvla.cli.common import Bar, Stopped, console, graceful
from anyvla.config import ConfigError, build, override
from anyvla.evaluation.protocol import EvaluationConfig
from anyvla.recipe import Recipe


def main(argv: list[str]) -> int:
    """Parse, play, print the table (or, with --json, the summary)."""
    parser = argparse.ArgumentParser(
        prog="anyvla eval",
        description=__doc__,
        epilog="Any key of the section evaluation can be set: --episodes 50 --protocols '[told]'",
    )
    parser.add_argument("run", type=Path, help="a run folder, as outputs/quickstart, or a checkpoint folder")
    parser.add_argument("--benchmark", help="as metaworld/half-open (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="where results go (default: RUN/eval)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that the checkpoint brings along: read it first"
    )
    options, overrides = parser.parse_known_args(argv)
    checkpoint = options.run / "checkpoint" if (options.run / "checkpoint").is_dir() else options.run
    if not (checkpoint / "config.yaml").is_file():
        raise ConfigError(f"{options.run} holds no trained policy: no checkpoint/config.yaml, no config.yaml")
    recipe = yaml.safe_load((checkpoint / "config.yaml").read_text())
    benchmark = options.benchmark or recipe.get("benchmark")
    if not benchmark:
        raise ConfigError("which benchmark? The recipe names none: give --benchmark metaworld/half-open")
    config = build(EvaluationConfig, override(recipe.get("evaluation", {}), overrides), where="evaluation")
    folder = options.out or checkpoint.parent / "eval"
    play(checkpoint, benchmark, config, folder, trust_remote_code=options.trust_remote_code)
    from anyvla.evaluation.statistics import read_results, summarise

    summary = summarise(read_results(folder / "results.jsonl"))
    if options.json:
        print(json.dumps(summary.to_dict()))
        return 0
    table = Table("protocol", "task", "success", "95 % interval", "episodes", box=None, pad_edge=False)
    rows = {"told": summary.told, "swapped: first goal": summary.swapped, "unrelated": summary.unrelated}
    for protocol, rates in rows.items():
        for task, interval in [*rates.tasks.items(), ("all", rates.overall)] if rates else []:
            share = f"{interval.value:.1%}", f"{interval.low:.1%} to {interval.high:.1%}", str(interval.episodes)
            table.add_row(protocol, task, *share)
    Console().print(table)
    print(folder)
    return 0


def evaluate(recipe: Recipe, run: Path) -> None:
    """Evaluate a recipe's checkpoint in its run folder."""
    if recipe.benchmark is None:
        raise ConfigError(f"the recipe {recipe.name} names no benchmark to evaluate on")
    trusted = getattr(recipe.model.backbone.config, "trust_remote_code", False)  # the recipe is the user's own
    play(run / "checkpoint", recipe.benchmark, recipe.evaluation, run / "eval", trust_remote_code=trusted)


def play(
    checkpoint: Path, name: str, config: EvaluationConfig, folder: Path, *, trust_remote_code: bool = False
) -> None:
    """Play every episode that is not there yet, then film."""
    from anyvla.evaluation.protocol import plan
    from anyvla.evaluation.runner import Interrupted, checkpoint_hash
    from anyvla.evaluation.runner import evaluate as run_evaluation
    from anyvla.evaluation.suites import open_suite
    from anyvla.policy import VLA
    from anyvla.report.filming import film

    benchmark, suite = open_suite(name)
    vla = VLA.load(checkpoint, trust_remote_code=trust_remote_code)
    with graceful() as stop:
        try:
            with Bar("evaluate") as bar:
                results = run_evaluation(
                    vla,
                    plan(suite, config),
                    benchmark,
                    suite,
                    folder,
                    checkpoint=checkpoint_hash(checkpoint),
                    processes=config.processes,
                    slots=config.slots,
                    progress=bar,
                    stop=stop,
                )
            with Bar("film") as bar:
                film(results, benchmark, suite, folder, failures=config.failure_videos, progress=bar, stop=stop)
        except Interrupted as stopped:
            raise Stopped(str(stopped)) from None
    console.print(f"results: {folder}", highlight=False)
