"""`anyvla eval RUN`: play a benchmark with a trained policy; success rates with intervals, and videos."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyvla.checkpoint.files import check_checkpoint, checkpoint_of, read_document
from anyvla.cli.common import ProgressBar, console
from anyvla.cli.console import Console
from anyvla.cli.stopping import graceful
from anyvla.config import ConfigError, build, override
from anyvla.evaluation.protocol import EvaluationConfig
from anyvla.evaluation.results import EpisodeResult
from anyvla.files.folder_lock import only_here
from anyvla.recipe import Recipe

_EPILOG = """\
Any key of the section evaluation can be set, and any setting of the benchmark:
  --episodes 50 --conditions '[told, swapped, told+light=dim]' --execute 4 --environment.render native
Without --conditions: the recipe's on its own benchmark, else told, swapped, unrelated, as a score says little of a
policy that may not use its words; --conditions '[told]' for the score alone.
Sets of conditions: language, generalization, correction, latency (docs/conditions.md).
"""


def main(argv: list[str]) -> int:
    """Parse, play, print the table (or, with --json, the summary)."""
    parser = argparse.ArgumentParser(
        prog="anyvla eval",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run folder, as outputs/quickstart, or a checkpoint folder")
    parser.add_argument("--benchmark", help="as metaworld/mt10, gym:CartPole-v1 (default: the recipe's)")
    parser.add_argument("--python", help="the interpreter that the simulator is installed in (default: this one)")
    parser.add_argument("--out", type=Path, help="where results go (default: RUN/eval, or eval-<benchmark>)")
    parser.add_argument("--device", default="auto", help="where the policy runs: cpu, cuda, auto (default)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that the checkpoint brings along or names: read it first",
    )
    options, overrides = parser.parse_known_args(argv)
    checkpoint = checkpoint_of(options.run)
    if not (checkpoint / "config.yaml").is_file():
        raise ConfigError(f"{options.run} holds no trained policy: no checkpoint/config.yaml, no config.yaml")
    check_checkpoint(checkpoint)
    recipe = read_document(checkpoint)
    own = recipe.get("benchmark")
    benchmark = options.benchmark or own
    if not benchmark:
        raise ConfigError(
            "the recipe names no benchmark. Give one that has the policy's robot: --benchmark NAME (anyvla list "
            f"benchmarks). A real robot plays it by: anyvla serve {shlex.quote(str(options.run))}; anyvla report "
            f"{shlex.quote(str(options.run))} writes a page that says how"
        )
    mine = benchmark == own  # a recipe's counts and settings are those of its own benchmark
    sections = {**recipe.get("evaluation", {}), "environment": recipe.get("environment", {})} if mine else {}
    given = override(sections, overrides)
    settings = given.pop("environment", {})
    if not options.trust_remote_code and (code := _code_named(benchmark, settings, options.benchmark, overrides)):
        raise ConfigError(
            f"{checkpoint / 'config.yaml'} lets an evaluation run {code}. Read it first; then give "
            "--trust-remote-code, or your own --benchmark and --environment settings"
        )
    config = build(EvaluationConfig, given, where="evaluation")
    name = "eval" if mine else "eval-" + benchmark.replace("/", "-").replace(":", "-")
    folder = options.out or checkpoint.parent / name
    play(
        checkpoint,
        benchmark,
        settings,
        config,
        folder,
        python=options.python,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    from anyvla.cli.summary import table
    from anyvla.evaluation.results import read_results
    from anyvla.evaluation.statistics import summarize
    from anyvla.report.evaluation import write_evaluation_page

    page = write_evaluation_page(folder)
    summary = summarize(read_results(folder / "results.jsonl"))
    if options.json:
        print(json.dumps(summary.to_dict()))
        return 0
    Console().print(table(summary))
    print(page)
    return 0


def _code_named(benchmark: str, settings: Mapping[str, Any], asked: str | None, overrides: Sequence[str]) -> str:
    """Return which code of this machine a checkpoint would have run, and the command line does not name; "" if none."""
    given = [word.partition("=")[0] for word in overrides]
    mapping = settings.get("mapping")
    module = mapping.get("import") if isinstance(mapping, Mapping) else mapping
    if module and "--environment.mapping" not in given:
        return f"the module {module!r} (environment.mapping)"
    if settings.get("root") and "--environment.root" not in given:
        return f"the code at {settings['root']!r} (environment.root)"
    if asked is None and benchmark.startswith("gym:") and ":" in benchmark[4:]:
        return f"the module {benchmark[4:].partition(':')[0]!r} (benchmark)"
    return ""


def evaluate(recipe: Recipe, run: Path) -> None:
    """Evaluate a recipe's checkpoint in its run folder."""
    if recipe.benchmark is None:
        raise ConfigError(f"the recipe {recipe.name} names no benchmark to evaluate on")
    trusted = getattr(recipe.model.backbone.config, "trust_remote_code", False)  # the recipe is the user's own
    checkpoint, folder = run / "checkpoint", run / "eval"
    play(checkpoint, recipe.benchmark, recipe.environment, recipe.evaluation, folder, trust_remote_code=trusted)


def play(
    checkpoint: Path,
    name: str,
    settings: Mapping[str, Any],
    config: EvaluationConfig,
    folder: Path,
    *,
    python: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Play every episode that is not there yet, then film."""
    from anyvla.evaluation.conditions import expand
    from anyvla.evaluation.protocol import plan
    from anyvla.evaluation.runner import checkpoint_hash
    from anyvla.evaluation.runner import evaluate as run_evaluation
    from anyvla.evaluation.suites import open_suite
    from anyvla.policy import VLA
    from anyvla.report.filming import film
    from anyvla.training.loop import pick_device

    with only_here(folder):
        opened = open_suite(name, settings, python)
        plans = plan(opened.suite, config, expand(config.conditions, opened.benchmark))
        vla = VLA.load(checkpoint, pick_device(device), trust_remote_code=trust_remote_code)
        score = _Score(str(plans[0].condition))
        with graceful() as stop:
            try:
                with ProgressBar("evaluate") as bar:
                    results = run_evaluation(
                        vla,
                        plans,
                        opened,
                        config,
                        folder,
                        checkpoint=checkpoint_hash(checkpoint),
                        progress=lambda done, total: bar(done, total, score.text),
                        heard=score.hear,
                        stop=stop,
                    )
                with ProgressBar("film") as bar:
                    film(results, opened, folder, failures=config.failure_videos, progress=bar, stop=stop)
            finally:
                opened.benchmark.close()
    console.print(f"results: {folder}")


class _Score:
    """The running score of a condition, with its interval."""

    def __init__(self, condition: str) -> None:
        self.condition = condition
        self.won = self.played = self.errors = 0

    def hear(self, result: EpisodeResult) -> None:
        """Count a result."""
        if result.outcome == "error":
            self.errors += 1
        elif result.condition == self.condition:
            self.won += result.success
            self.played += 1

    @property
    def text(self) -> str:
        """As "told 87 % (75 to 94)"."""
        if not self.played:
            return ""
        from anyvla.evaluation.intervals import wilson

        interval = wilson(self.won, self.played)
        failed = f", {self.errors} errors" if self.errors else ""
        return f"{self.condition} {interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%}){failed}"
