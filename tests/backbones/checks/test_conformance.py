"""Every check of a backbone finds a backbone that breaks its promise, by little more than rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyvla.backbones.adapting import adapt
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.checks.conformance import CHECKS, examine
from anyvla.backbones.checks.examined import (
    CheckFailed,
    ExaminedBackbone,
    measure_difference,
    require_change,
    require_equal,
)
from anyvla.sequence.tokens import TokenSequence

SMALL = 1e-3  # of the readouts' spread; five times what rounding may do
Forward = Callable[..., Tensor]


@pytest.fixture
def subject(llava_folder: Path) -> ExaminedBackbone:
    config = AutoBackbone.Config(path=str(llava_folder), prompt="do {instruction}")
    return ExaminedBackbone(AutoBackbone(config).eval(), config)


def altered(subject: ExaminedBackbone, change: Callable[[Forward, TokenSequence, Tensor, Any], Tensor]) -> None:
    """Let the backbone answer by `change(forward, sequence, queries, cache)`."""
    forward = subject.backbone.forward

    def changed(sequence: TokenSequence, queries: Tensor, cache: Any = None) -> Tensor:
        return change(forward, sequence, queries, cache)

    subject.backbone.forward = changed


def add(subject: ExaminedBackbone, change: Callable[[Tensor, TokenSequence, Any], Tensor]) -> None:
    """Let the backbone add `SMALL * spread * change(...)` to its readouts."""

    def added(forward: Forward, sequence: TokenSequence, queries: Tensor, cache: Any) -> Tensor:
        out = forward(sequence, queries, cache)
        return out if not out.numel() else out + SMALL * out.std() * change(out, sequence, cache)

    altered(subject, added)


def blind_to_order(subject: ExaminedBackbone) -> None:
    def sorted_views(forward: Forward, sequence: TokenSequence, queries: Tensor, cache: Any) -> Tensor:
        order = sequence.images.flatten(2).float().mean(2).argsort(1)
        images = sequence.images[torch.arange(len(order))[:, None], order]
        return forward(dataclasses.replace(sequence, images=images), queries, cache)

    altered(subject, sorted_views)


def deaf(subject: ExaminedBackbone) -> None:
    tokenize = subject.backbone.tokenize
    subject.backbone.tokenize = lambda images, texts: tokenize(images, ["open"] * len(texts))


def not_finite(subject: ExaminedBackbone) -> None:
    altered(subject, lambda forward, *given: forward(*given) * torch.tensor(float("nan")))


def one_readout(subject: ExaminedBackbone) -> None:
    altered(subject, lambda forward, *given: forward(*given)[:, :1])


def of_padding(subject: ExaminedBackbone) -> None:
    add(subject, lambda out, sequence, cache: torch.full_like(out, (~sequence.attention_mask).sum() / 5))


def of_neighbors(subject: ExaminedBackbone) -> None:
    add(subject, lambda out, sequence, cache: torch.full_like(out, len(out)))


def of_later_steps(subject: ExaminedBackbone) -> None:
    add(subject, lambda out, sequence, cache: torch.full_like(out, float(sequence.step_ids.max())))


def of_the_plain_model(subject: ExaminedBackbone) -> None:
    add(subject, lambda out, sequence, cache: torch.ones_like(out))


def of_a_cache(subject: ExaminedBackbone) -> None:
    add(subject, lambda out, sequence, cache: torch.full_like(out, cache is not None and cache.valid is not None))


def hides_nothing(subject: ExaminedBackbone) -> None:
    altered(subject, lambda f, sequence, *given: f(dataclasses.replace(sequence, block_mask=None), *given))


def sees_no_gradient(subject: ExaminedBackbone) -> None:
    tower = subject.backbone.model.model.vision_tower

    def cut(_module: Any, _inputs: Any, out: Any) -> Any:
        out.hidden_states = tuple(None if h is None else h.detach() for h in out.hidden_states)
        return out

    tower.register_forward_hook(cut)


def forgets_when_recomputing(subject: ExaminedBackbone) -> None:
    def change(out: Tensor, sequence: TokenSequence, cache: Any) -> Tensor:
        on = any(getattr(m, "gradient_checkpointing", False) for m in subject.backbone.modules())
        return 50 * on * out

    add(subject, change)


def saves_other_numbers(subject: ExaminedBackbone) -> None:
    subject.backbone.preprocessor = subject.backbone.preprocessor | {"image_mean": [0.41, 0.5, 0.6]}


def changes_its_weights(subject: ExaminedBackbone) -> None:
    def wear(forward: Forward, *given: Any) -> Tensor:
        subject.backbone.model.lm_head.weight.data.neg_()
        return forward(*given)

    altered(subject, wear)


def rounds_queries(subject: ExaminedBackbone) -> None:
    altered(subject, lambda forward, *given: forward(*given).to(subject.backbone.model.dtype))


FAULTS: dict[str, list[Callable[[ExaminedBackbone], None]]] = {
    "cameras": [not_finite, one_readout],
    "every input": [blind_to_order, deaf],
    "plain model": [of_the_plain_model],
    "neighbors": [of_padding, of_neighbors],
    "steps": [of_later_steps, of_neighbors],
    "gradients": [sees_no_gradient],
    "checkpointing": [forgets_when_recomputing],
    "cache": [of_a_cache],
    "reading again": [of_a_cache],
    "block mask": [hides_nothing],
    "save and load": [saves_other_numbers],
    "generate": [changes_its_weights],
    "bfloat16": [rounds_queries],
}


@pytest.mark.parametrize(("check", "fault"), [(check, fault) for check, faults in FAULTS.items() for fault in faults])
def test_a_fault_is_found(subject: ExaminedBackbone, check: str, fault: Callable[[ExaminedBackbone], None]) -> None:
    CHECKS[check](subject)
    fault(subject)
    with pytest.raises(CheckFailed):
        CHECKS[check](subject)


@pytest.mark.parametrize("fault", ["starts elsewhere", "trains the rest"])
def test_a_fault_of_lora_is_found(subject: ExaminedBackbone, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add_lora = adapt.add_lora

    def faulty(backbone: Any, options: Any) -> None:
        add_lora(backbone, options)
        if fault == "trains the rest":
            backbone.model.model.language_model.layers[0].input_layernorm.requires_grad_(True)
            return
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.01)

    monkeypatch.setattr(adapt, "add_lora", faulty)
    with pytest.raises(CheckFailed):
        CHECKS["LoRA"](subject)


def test_every_check_has_a_fault_that_it_finds() -> None:
    elsewhere = {"LoRA", "plain text"}  # above, and in test_control.py
    assert set(FAULTS) | elsewhere == set(CHECKS)


def test_differences_are_in_units_of_the_spread() -> None:
    one = torch.tensor([1.0, 3.0, 5.0])  # of spread 2
    assert measure_difference(one, one + torch.tensor([0.0, 0.5, -1.0])) == pytest.approx(0.5)
    assert measure_difference(torch.tensor([4.0]), torch.tensor([5.0])) == pytest.approx(0.25)
    assert require_equal(one, one + 0.1, "", 0.06) == pytest.approx(0.05)
    with pytest.raises(CheckFailed, match=r"there: differs by 0\.05 of the spread, allowed is 0\.04"):
        require_equal(one, one + 0.1, "there", 0.04)
    with pytest.raises(CheckFailed):
        require_equal(one, one * float("nan"), "", 1.0)
    assert require_change(one, one + 0.004, "") == pytest.approx(0.002, rel=1e-2)
    with pytest.raises(CheckFailed, match="move by only"):
        require_change(one, one + 0.001, "")


def test_an_examination_reports_failures_and_errors(subject: ExaminedBackbone) -> None:
    def breaks(_subject: ExaminedBackbone) -> str:
        raise KeyError("away")

    def fails(_subject: ExaminedBackbone) -> str:
        raise CheckFailed("broken")

    checks = {"cameras": CHECKS["cameras"], "breaks": breaks, "fails": fails}
    results = {r.check: (r.state, r.detail) for r in examine(subject.backbone, subject.config, checks)}
    assert results["cameras"][0] == "passed"
    assert results["breaks"] == ("failed", "KeyError: 'away'")
    assert results["fails"] == ("failed", "broken")
