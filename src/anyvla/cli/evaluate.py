"""`anyvla eval RUN`: evaluate a trained policy on a benchmark: success rates with intervals, and videos.

With --open-loop: compare its predictions with the actions of recorded episodes, without a simulator or a robot.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyvla.cli.common import ProgressBar, console
from anyvla.cli.console import Console
from anyvla.cli.recipe_help import KeyParser
from anyvla.cli.stopping import graceful
from anyvla.config import ConfigError, build, override
from anyvla.files.folder_lock import lock_folder

if TYPE_CHECKING:
    from anyvla.evaluation.protocol import EvaluationConfig
    from anyvla.evaluation.results import EpisodeResult
    from anyvla.recipe import Recipe

_EPILOG = """\
Any key of the section `evaluation` can be set, and any setting of the benchmark:
  --episodes 50 --conditions '[original, swapped, original+light=dim]' --execute 4 --environment.render native
On its own benchmark, the recipe gives the default conditions. On others they are original, swapped and unrelated,
which also show whether the policy uses its instruction. For the score alone: --conditions '[original]'.
Sets of conditions: language, generalization, correction, latency (docs/conditions.md).
Open loop: anyvla eval RUN --open-loop [--data PATH] --episodes 50 (docs/validation.md).
"""


def main(argv: list[str]) -> int:
    """Evaluate, and print the table (or, with --json, the summary)."""
    parser = KeyParser(
        prog="anyvla eval", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder such as outputs/quickstart, or a checkpoint folder")
    parser.add_argument("--checkpoint", help="of the run: last, best (training.best) or a number of steps")
    parser.add_argument("--benchmark", help="such as metaworld/mt10 or gym:CartPole-v1 (default: the recipe's)")
    parser.add_argument("--python", help="the Python interpreter that has the simulator (default: this one)")
    parser.add_argument("--out", type=Path, help="the results folder (default: RUN/eval, or RUN/eval-<benchmark>)")
    parser.add_argument("--device", default="auto", help="device of the policy: cpu, cuda or auto (default)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that the checkpoint contains or names; read it first"
    )
    parser.add_argument("--open-loop", action="store_true", help="compare predictions with recorded actions instead")
    parser.add_argument(
        "--data",
        help="with --open-loop: recorded episodes (default: those that the run held out, else its training data)",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE.yaml",
        help="with --data: keys of a source as in a recipe's data.sources (embodiment, cameras, hz, ...), except path",
    )
    parser.add_keys("anyvla.evaluation.protocol:EvaluationConfig", heading="Keys of the section evaluation")
    parser.add_keys("anyvla.evaluation.open_loop.recordings:OpenLoopConfig", heading="Keys with --open-loop")
    options, overrides = parser.parse_known_args(argv)
    if options.open_loop:
        from anyvla.cli.open_loop import run_open_loop

        return run_open_loop(options, overrides)
    if options.data or options.source:
        raise ConfigError("--data and --source are for --open-loop: a benchmark makes its own episodes")
    from anyvla.checkpoint.files import check_checkpoint, checkpoint_of, read_document
    from anyvla.checkpoint.of_run import results_folder
    from anyvla.evaluation.protocol import EvaluationConfig

    checkpoint = checkpoint_of(options.run, options.checkpoint)
    if not (checkpoint / "config.yaml").is_file():
        raise ConfigError(f"{options.run} holds no trained policy: no checkpoint/config.yaml, no config.yaml")
    check_checkpoint(checkpoint)
    recipe = read_document(checkpoint)
    own = recipe.get("benchmark")
    benchmark = options.benchmark or own
    if not benchmark:
        raise ConfigError(
            "the recipe names no benchmark. Give one with the policy's robot: --benchmark NAME (anyvla list "
            "benchmarks). Without a simulator: --open-loop compares predictions with recorded actions. For a real "
            f"robot: anyvla serve {shlex.quote(str(options.run))}; anyvla report "
            f"{shlex.quote(str(options.run))} writes a page that says how"
        )
    is_own = benchmark == own  # the recipe's counts and settings fit only its own benchmark
    sections = {**recipe.get("evaluation", {}), "environment": recipe.get("environment", {})} if is_own else {}
    given = override(sections, overrides)
    settings = given.pop("environment", {})
    if not options.trust_remote_code and (code := find_code(benchmark, settings, options.benchmark, overrides)):
        raise ConfigError(
            f"{checkpoint / 'config.yaml'} would make the evaluation run {code}. Read it first; then give "
            "--trust-remote-code, or your own --benchmark and --environment settings"
        )
    config = build(EvaluationConfig, given, where="evaluation")
    name = "eval" if is_own else "eval-" + benchmark.replace("/", "-").replace(":", "-")
    folder = options.out or results_folder(checkpoint, name)
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
    from anyvla.report.evaluation import write_evaluation_report

    page = write_evaluation_report(folder)
    summary = summarize(read_results(folder / "results.jsonl"))
    if options.json:
        print(json.dumps(summary.to_dict()))
        return 0
    Console().print(table(summary))
    print(page)
    return 0


def find_code(benchmark: str, settings: Mapping[str, Any], asked: str | None, overrides: Sequence[str]) -> str:
    """Return the local code that the checkpoint names and the command line does not; "" if none."""
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
    """Evaluate the checkpoint in the run folder of a recipe."""
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
    videos: bool = True,
) -> None:
    """Play every episode that has no result yet, then film some if there shall be `videos`."""
    from anyvla.checkpoint.files import read_robots
    from anyvla.evaluation.conditions import expand_conditions
    from anyvla.evaluation.protocol import plan_episodes
    from anyvla.evaluation.runner import check_embodiment, hash_checkpoint
    from anyvla.evaluation.runner import evaluate as run_evaluation
    from anyvla.evaluation.suites import open_suite
    from anyvla.policy import VLA
    from anyvla.report.filming import film
    from anyvla.training.device import pick_device

    where = pick_device(device)
    with lock_folder(folder):
        opened = open_suite(name, settings, python)
        check_embodiment([r.embodiment for r in read_robots(checkpoint)], opened.embodiment)  # before weights are read
        plans = plan_episodes(opened.suite, config, expand_conditions(config.conditions, opened.benchmark))
        vla = VLA.load(checkpoint, where, trust_remote_code=trust_remote_code)
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
                        checkpoint=hash_checkpoint(checkpoint),
                        progress=lambda done, total: bar(done, total, score.text),
                        on_result=score.count,
                        stop=stop,
                    )
                if videos:
                    with ProgressBar("film") as bar:
                        film(results, opened, folder, failures=config.failure_videos, progress=bar, stop=stop)
            finally:
                opened.benchmark.close()
    console.print(f"results: {folder}")


class _Score:
    """The running success rate of a condition, with its interval."""

    def __init__(self, condition: str) -> None:
        self.condition = condition
        self.won = self.played = self.errors = 0

    def count(self, result: EpisodeResult) -> None:
        """Count a result."""
        if result.outcome == "error":
            self.errors += 1
        elif result.condition == self.condition:
            self.won += result.success
            self.played += 1

    @property
    def text(self) -> str:
        """Return a text such as "original 87 % (75 to 94)"."""
        if not self.played:
            return ""
        from anyvla.evaluation.intervals import wilson

        interval = wilson(self.won, self.played)
        failed = f", {self.errors} errors" if self.errors else ""
        return f"{self.condition} {interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%}){failed}"
