"""Play a policy on a benchmark while it trains: from the same start states each time, so that its curve is paired."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.config import ConfigError, build, to_dict
from anyvla_sim.base import BenchmarkUnusable, Suite

if TYPE_CHECKING:
    from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig
    from anyvla.evaluation.results import EpisodeResult
    from anyvla.evaluation.suites import OpenedSuite
    from anyvla.policy import VLA
    from anyvla.recipe import Recipe

FOLDER = "evaluations"  # in RUN/train: one folder of results for each step
SUCCESS = "evaluation.success"
_APART_S = 2.0  # seconds between two reports of progress
_OWN_STARTS = 500_000  # the first start state, where a suite has any number of them: final evaluations begin at 0


class InTrainingEvaluation:
    """Plays `training.evaluate` of a recipe and measures `evaluation.success`, with its interval.

    Episodes with results are not played again, so an interrupted evaluation resumes. A simulator that fails is
    reported, and training continues without the numbers.
    """

    saves_first = True

    def __init__(self, recipe: Recipe, run: Path) -> None:
        """Open the benchmark once, to check that it is there and has the tasks.

        Raises ConfigError for a benchmark, task or condition that does not exist, BenchmarkUnusable if it cannot run.
        """
        assert recipe.training.evaluate is not None
        self.recipe, self.run, self.asked = recipe, run, recipe.training.evaluate
        name = self.asked.benchmark or recipe.benchmark
        if name is None:
            raise ConfigError(
                "training.evaluate has no benchmark, and the recipe names none: give training.evaluate.benchmark, such "
                "as metaworld/mt10 (anyvla list benchmarks)"
            )
        self.benchmark = name
        opened = self._open()
        try:
            self.embodiment = opened.embodiment
            self.config, self.plans = self._plan(opened)
        finally:
            opened.benchmark.close()
        self.report_to()

    def report_to(
        self,
        say: Callable[[str], None] = lambda text: None,
        show: Callable[[int, int, str], None] = lambda step, steps, text: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take functions that print a line, show the progress of playing, and return whether to stop."""
        self.say, self.show, self.stop = say, show, stop

    def start(self, vla: VLA) -> InTrainingEvaluation:
        """Take the policy to play. Raises ConfigError if it is not for the robot of the benchmark."""
        from anyvla.evaluation.runner import check_embodiment

        check_embodiment([r.embodiment for r in vla.robots], self.embodiment)
        self.vla = vla
        return self

    @property
    def every(self) -> int:
        """The number of steps from one evaluation to the next."""
        return self.asked.every

    @property
    def names(self) -> Mapping[str, bool]:
        """The names of the rates; under a swapped or unrelated instruction, a lower success is better."""
        return {
            _name(str(plan.condition)): plan.condition.language not in ("swapped", "unrelated", "empty")
            for plan in self.plans
        }

    def describe(self) -> str:
        """Return the number of episodes, the benchmark and the start states."""
        first = self.config.first_seed
        return (
            f"evaluation every {self.every} steps: {len(self.plans)} episodes of {self.benchmark}, from start state "
            f"{first} on{'' if self._apart else ', which the final evaluation plays too'}"
        )

    def measure(self, step: int) -> Mapping[str, float]:
        """Play the episodes that have no results yet, and return the rate of each condition with its interval."""
        from anyvla.evaluation.statistics import summarize
        from anyvla.training.measurements import undisturbed

        implausible = self.vla.implausible
        try:
            with undisturbed(self.vla):
                results = self._play(self.vla, step)
        except (RuntimeError, OSError, ValueError, BenchmarkUnusable) as error:
            self.say(
                f"step {step}: the evaluation on {self.benchmark} failed and is left out: {error}. Training continues; "
                f"the checkpoint of this step can be evaluated with anyvla eval {self.run} --checkpoint {step}"
            )
            return {}
        finally:
            self.vla.implausible = implausible
        numbers: dict[str, float] = {}
        for condition, of in summarize(results).conditions.items():
            if of.success is not None:
                name, rate = _name(condition), of.success.overall
                numbers |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return numbers

    def _open(self) -> OpenedSuite:
        from anyvla.evaluation.suites import open_suite

        own = self.benchmark == self.recipe.benchmark
        settings = {**(self.recipe.environment if own else {}), **self.asked.environment}
        return open_suite(self.benchmark, settings, self.asked.python)

    def _plan(self, opened: OpenedSuite) -> tuple[EvaluationConfig, list[EpisodePlan]]:
        """Return the configuration and the episodes, by default from start states that the final evaluation skips."""
        from anyvla.evaluation.conditions import expand_conditions
        from anyvla.evaluation.protocol import EvaluationConfig, plan_episodes

        own = self.benchmark == self.recipe.benchmark
        final = self.recipe.evaluation if own else EvaluationConfig()
        given = {key: list(value) for key in ("conditions", "tasks") if (value := getattr(self.asked, key))}
        config = build(
            EvaluationConfig,
            to_dict(final) | given | {"episodes": self.asked.episodes, "unrelated_episodes": None},
            where="training.evaluate",
        )
        starts, first = _count_starts(opened.suite), self.asked.first_seed
        most = max(opened.suite.episodes, *(task.episodes or 0 for task in opened.suite.tasks))
        used = final.first_seed + (final.episodes or most)
        if first is None:
            first = _OWN_STARTS if starts is None else min(used, max(0, starts - self.asked.episodes))
        self._apart = first >= used or first + self.asked.episodes <= final.first_seed
        config = dataclasses.replace(config, first_seed=first)
        return config, plan_episodes(opened.suite, config, expand_conditions(config.conditions, opened.benchmark))

    def _play(self, vla: VLA, step: int) -> Sequence[EpisodeResult]:
        from anyvla.evaluation.results import read_results
        from anyvla.evaluation.runner import evaluate

        folder = self.run / "train" / FOLDER / f"step-{step:08d}"
        lines, weights = folder / "results.jsonl", hash_weights(vla)
        if lines.is_file() and any(result.checkpoint != weights for result in read_results(lines)):
            shutil.rmtree(folder)  # of another run of this step, with other settings from then on
        won, steps, shown = list[bool](), self.recipe.training.steps, -_APART_S

        def count(result: EpisodeResult) -> None:
            won.append(result.success)

        def show(done: int, total: int) -> None:
            nonlocal shown
            if done == total or time.monotonic() - shown >= _APART_S:
                shown = time.monotonic()
                self.show(step, steps, f"evaluation {done}/{total}, {sum(won)} succeeded")

        opened = self._open()
        try:
            return evaluate(
                vla,
                self.plans,
                opened,
                self.config,
                folder,
                checkpoint=weights,
                progress=show,
                on_result=count,
                stop=self.stop,
            )
        finally:
            opened.benchmark.close()


def _count_starts(suite: Suite) -> int | None:
    """Return the number of start states that every task of a suite has (or the number of its chains); None: any."""
    if suite.chains:
        return len(suite.chains)
    return min((n for n in (suite.starts, *(task.episodes for task in suite.tasks)) if n is not None), default=None)


def hash_weights(vla: VLA) -> str:
    """Return a short hash of all weights, which identifies a policy that has no checkpoint of its own."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in vla.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _name(condition: str) -> str:
    return SUCCESS if condition == "original" else f"evaluation.{condition}"
