from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest

from anyvla.config import ConfigError
from anyvla.evaluation.conditions import Condition, expand_conditions, parse, parse_scene
from anyvla.migrations import migrate_recipe
from tests.evaluation.toy_world import Toy


class Lit(Toy):
    """A benchmark with two factors and two disturbances."""

    factors: Mapping[str, Sequence[str]] = MappingProxyType({"light": ("dim", "bright"), "texture": ("dark",)})
    disturbances: Sequence[str] = ("push", "pull")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("original", Condition()),
        ("paraphrased", Condition("paraphrased")),
        ("empty+delay=1", Condition("empty", delay=1)),
        ("swapped+light=dim", Condition("swapped", (("light", "dim"),))),
        ("unrelated+push@20", Condition("unrelated", disturbance=("push", 20))),
        (
            "original+camera=far+light=very-dim+push@0+delay=14",
            Condition("original", (("camera", "far"), ("light", "very-dim")), ("push", 0), 14),
        ),
    ],
)
def test_a_condition_is_read_and_written(text: str, condition: Condition) -> None:
    assert parse(text) == condition
    assert str(condition) == text


def test_the_order_of_factors_makes_no_difference() -> None:
    """Neither does the order of delay and disturbance: each condition has one name."""
    for text in ("original+light=dim+camera=far+push@3+delay=2", "original+delay=2+push@3+camera=far+light=dim"):
        assert str(parse(text)) == "original+camera=far+light=dim+push@3+delay=2"


DISTURBANCES = ("push@10", "push@30", "pull@10", "pull@30")


@pytest.mark.parametrize(
    ("written", "conditions"),
    [
        (["language"], ["original", "paraphrased", "swapped", "unrelated", "empty"]),
        (["latency"], ["original", "original+delay=1", "original+delay=2", "original+delay=4", "original+delay=8"]),
        (["generalization"], ["original", "original+light=dim", "original+light=bright", "original+texture=dark"]),
        (["correction"], ["original", *(f"original+{d}" for d in DISTURBANCES)]),
        (
            ["swapped", "latency", "original"],
            ["swapped", "original", "original+delay=1", "original+delay=2", "original+delay=4", "original+delay=8"],
        ),
        (["original", "original", "original+texture=dark"], ["original", "original+texture=dark"]),
    ],
)
def test_sets_are_expanded_without_duplicates(written: list[str], conditions: list[str]) -> None:
    """A set begins with its reference condition."""
    assert [str(c) for c in expand_conditions(written, Lit())] == conditions


def test_the_factors_of_a_scene() -> None:
    assert parse_scene("original") == {}
    assert parse_scene("texture=dark+light=dim") == {"light": "dim", "texture": "dark"}
    for bad in ("light", "push@3", "light=dim+delay=2", "swapped"):
        with pytest.raises(ConfigError):
            parse_scene(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("originel", "did you mean 'original'"),
        ("original+light", "'light' is none of FACTOR=LEVEL"),
        ("original+a=b+a=c", "the factor a occurs twice"),
        ("original+push@1+pull@2", "'pull@2' is none of"),
        ("original+wind=strong", "toy has no factor 'wind'; known: light: dim, bright; texture: dark"),
        ("original+light=dark", "light has no level 'dark'"),
        ("original+light=dim+kick@3", "toy has no disturbance 'kick'; known: push, pull"),
    ],
)
def test_invalid_conditions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_conditions([text], Lit())


def test_conditions_and_scenes_of_a_recipe_of_schema_1_have_todays_names() -> None:
    before = {
        "evaluation": {"conditions": ["told", "told+light=coloured", "swapped+push@3", "generalisation"]},
        "collect": {"scenes": ["original", "light=coloured+texture=plain"]},
    }
    assert migrate_recipe(before, "config.yaml") == {
        "evaluation": {"conditions": ["original", "original+light=colored", "swapped+push@3", "generalization"]},
        "collect": {"scenes": ["original", "light=colored+texture=plain"]},
    }
