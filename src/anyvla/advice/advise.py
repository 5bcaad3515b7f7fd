"""Choose a recipe for a situation, with the evidence for and against each choice."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from anyvla.advice.rate import Call, Rate, choose_rate, measure_call, most_hz
from anyvla.advice.rules import Choice, Facts, Option, read_evidence, read_rules
from anyvla.advice.situation import Situation
from anyvla.advice.studies import Shown, overrule
from anyvla.config import ConfigError, override_keys, parse_options
from anyvla.planning.gpus import Gpu, find_gpu, parse_gpu
from anyvla.planning.plan import Plan, make_plan
from anyvla.planning.remedies import Remedy
from anyvla.planning.table import format_bytes
from anyvla.recipe import build_recipe
from anyvla.registry import suggest

Stance = Literal["for", "against", "open", "arithmetic"]
_REMEDIES = 2  # changes of a plan to compare
_TRAINED, _FROZEN = 12, 2  # bytes of a weight at least: float32 with two moments, and bfloat16


@dataclass(frozen=True)
class Statement:
    """One piece of evidence."""

    stance: Stance
    text: str
    id: str = ""  # of the table of evidence; empty for studies and arithmetic


@dataclass(frozen=True)
class Decision:
    """One choice that was made."""

    choice: str
    value: str
    why: str
    keys: tuple[str, ...]  # of the recipe, dotted
    evidence: tuple[Statement, ...]


@dataclass(frozen=True)
class Advice:
    """An advised recipe."""

    decisions: tuple[Decision, ...]
    recipe: Mapping[str, Any]
    plan: Plan
    rate: Rate
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """The wishes of the person who asks for advice."""

    situation: Situation
    name: str = "advised"  # of the recipe
    gpu: str | None = None  # None: this machine
    backbone: str | None = None  # the name of an option; None: the first that fits
    call_ms: float | None = None  # the measured time of a call
    needs_memory: bool = False
    disagreeing: bool = False


def advise(request: Request, shown: Sequence[Shown] = ()) -> Advice:
    """Return a recipe that fits the device and keeps the control rate.

    Raises ConfigError with the reasons if no backbone does; for a backbone that was asked for, with what would fit.
    """
    if request.call_ms is not None and not 0 < request.call_ms < math.inf:
        raise ConfigError(f"--call-ms {request.call_ms:g}: give the milliseconds of a call, above 0")
    card = _find_card(request.gpu)
    facts = request.situation.facts(
        gpu=card is not None, needs_memory=request.needs_memory, disagreeing=request.disagreeing
    )
    choice = read_rules().choice("backbone")
    names = [option.name for option in choice.options]
    if request.backbone is not None and request.backbone not in names:
        raise ConfigError(f"--backbone {request.backbone}: {suggest(request.backbone, names)}")
    asked = [option for option in choice.options if request.backbone in (None, option.name)]
    refused: list[tuple[Option, str]] = []
    found = _first_that_works(request, card, facts, asked, shown, refused)
    if found is not None:
        return found
    reasons = "; ".join(_list_reasons(refused))
    others = [option for option in choice.options if option not in asked]
    instead = _first_that_works(request, card, facts, others, shown, [])
    if instead is None:
        raise ConfigError(f"no backbone is possible here ({reasons})")
    raise ConfigError(f"{reasons}. What fits: --backbone {instead.decisions[0].value}")


def _first_that_works(
    request: Request,
    card: Gpu | None,
    facts: Facts,
    options: Sequence[Option],
    shown: Sequence[Shown],
    refused: list[tuple[Option, str]],
) -> Advice | None:
    for option in options:
        try:
            return _Attempt(request, card, {**facts, "kind": str(option.kind)}, option, shown).complete(refused)
        except _Refused as reason:
            refused.append((option, str(reason)))
    return None


def _list_reasons(refused: Sequence[tuple[Option, str]]) -> list[str]:
    """Return each reason once, after the names of the backbones."""
    names: dict[str, list[str]] = {}
    for option, reason in refused:
        names.setdefault(reason, []).append(option.name)
    return [f"{', '.join(of)}: {reason}" for reason, of in names.items()]


class _Refused(Exception):
    """Why a backbone is impossible here."""


class _Attempt:
    """A recipe around one backbone."""

    def __init__(
        self, request: Request, card: Gpu | None, facts: Facts, backbone: Option, shown: Sequence[Shown]
    ) -> None:
        self.request, self.card, self.facts, self.backbone, self.shown = request, card, facts, backbone, shown
        self.run = Path("outputs") / request.name
        if not backbone.preferred(facts):
            raise _Refused("a VLM of this size is advised for a GPU only, and this machine has none (--gpu)")
        least = _TRAINED * backbone.trained + _FROZEN * (backbone.parameters - backbone.trained)
        if card is not None and least > card.memory:
            raise _Refused(
                f"weights and optimizer alone take {format_bytes(least)}, and {card.name} has "
                f"{format_bytes(card.memory)}"
            )
        self.chosen = {c.name: self._choose(c) for c in read_rules().choices}

    def _prefer(self, choice: Choice) -> Option:
        """Return the option by the rules alone."""
        if choice.name == "backbone":
            return self.backbone
        return next(option for option in choice.options if option.preferred(self.facts))

    def _choose(self, choice: Choice) -> Option:
        if choice.name == "backbone":
            return self.backbone
        return overrule(choice, self._prefer(choice), self._list_possible(choice), self.shown, self.facts)

    def _list_possible(self, choice: Choice) -> list[Option]:
        return [option for option in choice.options if option.possible(self.facts)]

    def complete(self, refused: Sequence[tuple[Option, str]]) -> Advice:
        """Return the advice. Raises _Refused if the training does not fit or the rate cannot be kept."""
        rate = self._find_rate()
        values: dict[str, Any] = {"name": self.request.name}
        document = {**values, **self.request.situation.document}
        keys = [(key, value) for option in self.chosen.values() for key, value in option.set.items()]
        keys += [("model.chunk", rate.chunk), ("model.execute", rate.execute)]
        document = override_keys(document, keys)
        document, plan = self._fit(document)
        training = self.chosen["training"]
        windows = plan.windows or self.request.situation.actions
        steps = max(training.least_steps, math.ceil((training.epochs or 1) * windows / plan.batch_size))
        document["training"] = {"steps": steps, **document["training"]}
        plan = replace(plan, training_steps=steps)
        build_recipe(document, "the advised recipe")
        decisions = [self._decide(choice, refused) for choice in read_rules().choices]
        decisions.insert(1, _decide_rate(rate, self.backbone))
        decisions.append(_decide_fitting(document, plan))
        return Advice(tuple(decisions), document, plan, rate, self.request.situation.notes)

    def _find_rate(self) -> Rate:
        rule, hz = read_rules().rate, self.request.situation.hz
        call = self._find_call()
        rate = choose_rate(hz, call, rule)
        if rate is None:
            raise _Refused(
                f"it keeps at most {most_hz(call, rule):.0f} Hz of the {hz:g} asked for: a call takes {call.ms:.3g} ms "
                f"({call.origin}), and a chunk has at most {rule.longest} actions. A call of "
                f"{1000 * rule.longest / rule.margin / hz:.2g} ms would (--call-ms after anyvla bench latency), "
                f"or a lower --hz whose actions the robot's controller interpolates"
            )
        most = self.request.situation.most_executed
        return rate if most is None else replace(rate, execute=min(rate.execute, most))

    def _find_call(self) -> Call:
        if self.request.call_ms is not None:
            return Call(self.request.call_ms, "given by --call-ms")
        if self.backbone.kind == "scratch" and self.card is None:
            keys = [(key, value) for option in self.chosen.values() for key, value in option.set.items()]
            document = override_keys({"name": self.request.name, **self.request.situation.document}, keys)
            return measure_call(build_recipe(document, "the advised recipe"), self.run)
        assert self.backbone.call_ms is not None
        ms, source = self.backbone.call_ms
        return Call(ms, f"assumed, not measured on this device: {read_evidence()[source].describe()}")

    def _fit(self, document: dict[str, Any]) -> tuple[dict[str, Any], Plan]:
        """Return the recipe with the cheapest change that makes it fit, and its plan."""
        recipe = build_recipe(document, "the advised recipe")
        try:
            plan = make_plan(recipe, self.run, gpu=self.request.gpu, remedies=_REMEDIES)
        except (ImportError, ValueError) as error:  # a missing extra, or a type that the device lacks
            raise _Refused(" ".join(str(error).split())) from error
        if plan.fits:
            return document, plan
        remedy = _pick(plan)
        if remedy is None:
            other = f"; it would fit with {' '.join(plan.remedies[0].options)}" if plan.remedies else ""
            raise _Refused(
                f"training takes {format_bytes(plan.memory.total)}, and {plan.device} has "
                f"{format_bytes(plan.available)}{other}"
            )
        plan = replace(
            plan,
            memory=remedy.use,
            accumulate=remedy.accumulate,
            largest_batch=remedy.largest_batch,
            flops=remedy.flops,
            remedies=(),
        )
        return override_keys(document, _read_changes(remedy)), plan

    def _read_studies(self, choice: Choice, option: Option) -> Iterator[Statement]:
        for found in self.shown:
            if found.is_about(choice):
                stance: Stance = "open"
                if choice.counts(found.benchmarks, self.facts):
                    stance = "for" if option.named(found.better) else "against" if option.named(found.worse) else "open"
                yield Statement(stance, found.sentence)

    def _decide(self, choice: Choice, refused: Sequence[tuple[Option, str]]) -> Decision:
        option = self.chosen[choice.name]
        statements = list(self._read_studies(choice, option))
        possible = {other.name for other in self._list_possible(choice)}
        statements += [
            Statement(_stance(row.favors, option.name), row.describe(), row.id)
            for row in read_evidence().values()
            if row.choice == choice.name and (not row.favors or possible & set(row.favors))
        ]
        if choice.name == "backbone":
            statements += [Statement("arithmetic", f"not {reason}") for reason in _list_reasons(refused)]
        why, preferred = option.why, self._prefer(choice)
        if option is not preferred:
            why = f"a study finds it better than {preferred.name}; {why}"
        return Decision(choice.name, option.name, why, tuple(option.set), tuple(statements))


def _pick(plan: Plan) -> Remedy | None:
    """Return the cheapest change that the rules accept and that leaves large enough parts of a batch, else the best."""
    rules = read_rules()
    accepted = [r for r in plan.remedies if all(key in rules.fitting for key, _ in _read_changes(r))]
    large = [r for r in accepted if plan.batch_size / r.accumulate >= rules.least_at_once]
    return large[0] if large else min(accepted, key=lambda r: r.accumulate, default=None)


def _read_changes(remedy: Remedy) -> list[tuple[str, Any]]:
    return parse_options(shlex.split(" ".join(remedy.options)))


def _stance(favors: Sequence[str], name: str) -> Stance:
    return "open" if not favors else "for" if name in favors else "against"


def _decide_rate(rate: Rate, backbone: Option) -> Decision:
    statements = [Statement("arithmetic", rate.describe())]
    statements += [
        Statement("open", row.describe(), row.id)
        for row in read_evidence().values()
        if row.choice == "rate" or (row.choice == "call" and (row.id == "nano-latency") == (backbone.kind == "scratch"))
    ]
    return Decision(
        "rate",
        f"chunk {rate.chunk}, execute {rate.execute}, at {rate.hz:g} Hz",
        f"a chunk is ready before the last one ends, with a margin of {read_rules().rate.margin:g}",
        ("model.chunk", "model.execute"),
        tuple(statements),
    )


def _decide_fitting(document: Mapping[str, Any], plan: Plan) -> Decision:
    hours = plan.hours()
    facts = [
        f"plan: {format_bytes(plan.memory.total)} of {format_bytes(plan.available)} on {plan.device}, "
        f"{plan.largest_batch:,} samples at once at most",
        *plan.notes,
    ]
    if hours is not None:
        facts.insert(1, f"{hours:.1f} hours, {plan.flops * plan.batch_size / 1e12:.4g} TFLOP a step")
    training = document["training"]
    parts = f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    also = ", activations computed twice" if training.get("gradient_checkpointing") else ""
    return Decision(
        "size",
        f"{training['steps']:,} steps of {plan.batch_size} samples{parts}{also}",
        "the epochs of the settings above, in the memory that there is",
        ("training.steps", "training.batch_size", "training.accumulate", "training.gradient_checkpointing"),
        tuple(Statement("arithmetic", fact) for fact in facts),
    )


def _find_card(gpu: str | None) -> Gpu | None:
    if gpu is not None:
        return parse_gpu(gpu)
    return find_gpu() if torch.cuda.is_available() else None
