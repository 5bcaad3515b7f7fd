"""Split the batched observations of GR00T into the observations of single robots, with GR00T's checks of their forms.

An observation is {"video": {key: uint8 [B, T, H, W, 3]}, "state": {key: float32 [B, T, D]}, "language": {key: B lists
of T texts}}. Environments of GR00T's simulations send flat keys instead: "video.KEY", "state.KEY" and, for the
language, KEY with B texts. T is 1: a session keeps its history itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anyvla.serving.naming import join_names, quote

INSTRUCTION = "instruction"  # the key of the text of an observation with one key of language


def is_flat(observation: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of GR00T's simulations."""
    return "video" not in observation and any(key.startswith("video.") for key in observation)


def split_rows(observation: Any, most: int) -> list[dict[str, Any]]:
    """Return the B observations of a batch, {"video": {key: [H, W, 3]}, "state": {key: [D]}, "language": {key: text}}.

    Raises ValueError with the faulty key, for more than `most` as well.
    """
    if not isinstance(observation, Mapping):
        raise ValueError(f"the data of get_action has no 'observation' in a map, but {quote(observation)}")
    if is_flat(observation):
        observation = _nest(observation)
    parts = {name: _part(observation, name) for name in ("video", "state")}
    parts["language"] = _part(observation, "language") if "language" in observation else {}
    sizes: dict[str, int] = {}
    for key, value in parts["video"].items():
        sizes[f"video/{key}"] = _check_array(value, f"video/{key}", "uint8", ("B", "T", "H", "W", "3"))
    for key, value in parts["state"].items():
        sizes[f"state/{key}"] = _check_array(value, f"state/{key}", "float32", ("B", "T", "D"))
    for key, value in parts["language"].items():
        sizes[f"language/{key}"] = _check_language(value, f"language/{key}")
    batch = set(sizes.values())
    if len(batch) != 1 or 0 in batch:
        listed = ", ".join(f"{key} {size}" for key, size in list(sizes.items())[:8]) or "nothing"
        raise ValueError(f"the parts of an observation have one batch size, of 1 at least; got {listed}")
    rows = batch.pop()
    if rows > most:
        raise ValueError(f"the batch has {rows} observations; at most {most} are accepted (--limits.batch_rows)")
    return [_pick(parts, row) for row in range(rows)]


def _nest(observation: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, dict[str, Any]] = {"video": {}, "state": {}, "language": {}}
    for key, value in observation.items():
        part, _, rest = key.partition(".")
        if part in ("video", "state") and rest:
            nested[part][rest] = value
        elif isinstance(value, list):
            nested["language"][key] = [[text] for text in value]
    return nested


def _part(observation: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = observation.get(name)
    if not isinstance(part, Mapping):
        raise ValueError(f"the observation has no {name!r} in a map; it has {join_names(observation) or 'nothing'}")
    return part


def _check_array(value: Any, name: str, dtype: str, dims: tuple[str, ...]) -> int:
    """Return the batch size of an array. Raises ValueError for another dtype or shape."""
    needed = f"{dtype} [{', '.join(dims)}] with T = 1 is needed"
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is of type {type(value).__name__}; an array, {needed}")
    right = value.ndim == len(dims) and value.shape[1] == 1 and (dims[-1] != "3" or value.shape[-1] == 3)
    if not right or value.dtype != dtype:
        raise ValueError(f"{name} is {value.dtype} {list(value.shape)}; {needed} (get_modality_config says so)")
    return len(value)


def _check_language(value: Any, name: str) -> int:
    rows = value if isinstance(value, list) else []
    if not rows or not all(isinstance(row, list) and len(row) == 1 and isinstance(row[0], str) for row in rows):
        raise ValueError(f"{name} is {quote(value)}; for each of the B robots a list of one text is needed")
    return len(rows)


def _pick(parts: Mapping[str, Mapping[str, Any]], row: int) -> dict[str, Any]:
    language = {key: rows[row][0] for key, rows in parts["language"].items()}
    picked: dict[str, Any] = {
        "video": {key: np.ascontiguousarray(value[row, 0]) for key, value in parts["video"].items()},
        "state": {key: value[row, 0] for key, value in parts["state"].items()},
        "language": language,
    }
    if len(language) == 1:
        picked[INSTRUCTION] = next(iter(language.values()))
    return picked
