"""Checks the types in `meta/info.json` before the readers rely on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MOST = 1 << 40  # bound of counts, sizes and numbers of episodes


def check_info(facts: Any, where: str) -> None:
    """Raise ValueError that names the key if a needed fact is missing or has another type than in LeRobot."""
    if not isinstance(facts, Mapping):
        raise ValueError(f"{where} holds no keys and values; copy the dataset again")
    for key in ("fps", "features", "total_episodes", "data_path"):
        if key not in facts:
            raise ValueError(f"{where} lacks {key!r}; copy the dataset again")
    if not _number(facts["fps"]) or not 0 < facts["fps"] < _MOST:
        raise _wrong(where, "fps", "a rate above 0", facts["fps"])
    if not _count(facts["total_episodes"]):
        raise _wrong(where, "total_episodes", "a whole number", facts["total_episodes"])
    if not isinstance(facts["features"], Mapping):
        raise _wrong(where, "features", "keys and values", facts["features"])
    for name, feature in facts["features"].items():
        _check_feature(feature, where, f"features, {name}")
    own = facts.get("anyvla", {})
    if not isinstance(own, Mapping) or not all(isinstance(own.get(k, {}), Mapping) for k in ("provenance", "notes")):
        raise _wrong(where, "anyvla", "keys and values", own)


def _check_feature(feature: Any, where: str, key: str) -> None:
    if not isinstance(feature, Mapping):
        raise _wrong(where, key, "keys and values", feature)
    if not isinstance(feature.get("dtype"), str):
        raise _wrong(where, f"{key}, dtype", "the name of a type", feature.get("dtype"))
    shape = feature.get("shape")
    if not isinstance(shape, list) or not all(_count(n) for n in shape):
        raise _wrong(where, f"{key}, shape", "a list of whole numbers", shape)
    if not isinstance(feature.get("names"), list | Mapping | None):
        raise _wrong(where, f"{key}, names", "a list, or keys and values", feature["names"])
    for part in ("info", "video_info"):
        if not isinstance(feature.get(part), Mapping | None):
            raise _wrong(where, f"{key}, {part}", "keys and values", feature[part])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return _number(value) and value == int(value) and 0 <= value < _MOST


def _wrong(where: str, key: str, expected: str, value: Any) -> ValueError:
    return ValueError(
        f"{where}: {key} is {str(value)[:60]!r}, expected {expected}; correct it, or copy the dataset again"
    )
