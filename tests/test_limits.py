"""Every number of every configuration has bounds: absurd numbers are refused before they exhaust memory or hang."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import anyvla
from anyvla.config import ConfigError, build, to_dict
from anyvla.registry import REGISTRIES
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import Group
from tests import small

# Reports, results and tables of the package itself, which configure nothing.
REPORTS = {
    "anyvla.representations.codec_report",
    "anyvla.report.published",
    "anyvla.evaluation.results",
    "anyvla.evaluation.open_loop.results",
    "anyvla.training.warm_start.record",
    "anyvla.study.store",
    "anyvla.advice.rules",
}
ABSURD = [float("nan"), float("inf"), -float("inf"), -1e308, 1e308, -(10**30), 10**30, True, False]
_ON_X = {"name": "c", "axis": "x"}
NEEDED: Mapping[str, Any] = {  # values of fields that have no default
    "Group": {"name": "position", "size": 3},
    "AutoBackbone.Config": {"path": "here"},
    "TinyBackbone.Config": {"family": "llava"},
    "RemoteConfig": {"path": "here", "trust_remote_code": True},
    "FlamingoBackbone.Config": {"path": "here"},
    "Source": {"path": "here"},
    "ProprioKey": {"key": "states", "rotation": "quaternion_xyzw"},
    "ValidationConfig": {"fraction": 0.1},
    "ColumnGroup": {"key": "action", "group": {"name": "position", "size": 3}},
    "OxeEntry": {"robot": "arm", "cameras": {}, "action": [], "instruction": []},
    "StudyFile": {"name": "a", "question": "?", "base": "b", "axes": {"x": {"y": {}}}, "comparisons": [_ON_X]},
    "VLAConfig": to_dict(small.model()),
    "Embodiment": to_dict(small.embodiment()),
}


def config_classes() -> dict[str, type]:
    found = {}
    for module in pkgutil.walk_packages(anyvla.__path__, "anyvla."):
        if not module.name.startswith("anyvla.cli."):
            for outer in vars(importlib.import_module(module.name)).values():
                for cls in (outer, *vars(outer).values()) if isinstance(outer, type) else ():
                    config = getattr(cls, "__pydantic_config__", {})
                    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and config.get("extra") == "forbid":
                        found[cls.__qualname__] = cls
    return {n: c for n, c in found.items() if c.__module__.startswith("anyvla.") and c.__module__ not in REPORTS}


def insert_number(hint: Any, value: Any) -> Iterator[Any]:
    """Yield `value` at each position of `hint` where a number may be."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        yield value
    elif origin in (typing.Union, types.UnionType):
        for each in inner:
            yield from insert_number(each, value)
    elif origin is tuple:
        for filled in insert_number(inner[0], value):
            yield [filled] * (2 if inner[-1] is not Ellipsis else 1)
    elif origin in (dict, Mapping) or isinstance(origin, type):
        for filled in insert_number(inner[-1], value):
            yield {"a": filled}


CLASSES = config_classes()
FIELDS = [
    (name, field)
    for name, cls in CLASSES.items()
    for field, hint in typing.get_type_hints(cls).items()
    if any(insert_number(hint, 1))
]


def test_the_walk_finds_the_configs() -> None:
    assert {"VLAConfig", "TrainingConfig", "OptimConfig", "NanoBackbone.Config", "Group"} <= CLASSES.keys()
    assert len(FIELDS) > 100


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_absurd_numbers_are_refused(name: str, field: str) -> None:
    cls = CLASSES[name]
    given = NEEDED.get(name, {})
    for value in ABSURD:
        for filled in insert_number(typing.get_type_hints(cls)[field], value):
            with pytest.raises(ConfigError, match=field):
                build(cls, {**given, field: filled}, where="here")


PARTS = [
    (kind, name, field)
    for kind in ("histories", "fusers", "decoders", "representations", "backbones")
    for name in REGISTRIES[kind]
    for field, hint in typing.get_type_hints(REGISTRIES[kind][name].Config).items()
    if any(insert_number(hint, 1)) and (kind, name) not in {("backbones", b) for b in ("auto", "flamingo", "moondream")}
    if name not in ("qwen_vl", "uform")
]


@pytest.mark.parametrize(("kind", "name", "field"), PARTS)
def test_numbers_at_the_lower_end_build_or_are_refused(kind: str, name: str, field: str) -> None:
    axis = {"histories": "history", "representations": "representation"}.get(kind, kind[:-1])
    sizes: Any = small.NANO if name == "nano" else small.DECODERS.get(name, {}) if axis == "decoder" else {}
    if name == "tiny":
        sizes = NEEDED["TinyBackbone.Config"]
    keys: dict[str, Any] = {}
    if name in ("bins", "fast", "vq", "tokens", "lm_tokens"):
        keys = {"decoder": "tokens", "representation": "bins"}
    hint = typing.get_type_hints(REGISTRIES[kind][name].Config)[field]
    for filled in [f for value in (-1, 0) for f in insert_number(hint, value)]:
        try:
            small.policy(**keys | {axis: {**sizes, "name": name, field: filled}})
        except ValueError as error:
            message = str(error)
        else:
            message = field
        assert any(reason in message for reason in (field, "fit-codec", "LM head"))


@pytest.mark.parametrize("control_hz", [0, -1, float("nan"), 1e300])
def test_a_robot_acts_at_a_rate(control_hz: float) -> None:
    robot = {"name": "arm", "cameras": ["a"], "proprio": {"groups": []}, "action": {"groups": []}}
    with pytest.raises(ConfigError, match="control_hz"):
        build(Embodiment, robot | {"control_hz": control_hz})


def test_the_ends_of_a_gripper_must_differ() -> None:
    for low, high in ((0.0, 1e-60), (1e8, 1e8 + 1), (0.0, 1e30)):
        with pytest.raises(ConfigError, match=r"low|high"):
            build(Group, {"name": "gripper", "size": 1, "kind": "gripper", "low": low, "high": high})
