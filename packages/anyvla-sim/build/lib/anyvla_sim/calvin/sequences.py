"""CALVIN's 1000 chains and their start states, computed by CALVIN's own code.

The code is read from the user's checkout but not imported: its modules import torch, a trainer and `pyhash`, which the
functions used here do not need. Only these functions run, with replacements for the names that they use.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np

COUNT = 1000  # of the published list; sampling fewer gives other chains, since states are sampled in equal shares
_FOLDER = "calvin_models/calvin_agent/evaluation"
UTILS, SEQUENCES = f"{_FOLDER}/utils.py", f"{_FOLDER}/multistep_sequences.py"


@dataclass(frozen=True)
class Chain:
    """Tasks in a row and the start state of their scene."""

    start: Mapping[str, Any]  # "drawer" -> "open", "led" -> 1, "red_block" -> "table", ..., in CALVIN's order
    tasks: Sequence[str]


Poses = Callable[[Mapping[str, Any]], "tuple[np.ndarray, np.ndarray]"]


def load_start_states(root: Path) -> Poses:
    """Return CALVIN's function from `Chain.start` to robot_obs (15,) and scene_obs (24,).

    `Chain.start` also seeds the poses of the blocks. Raises ValueError if the checkout has no such function.
    """
    wanted = ("temp_seed", "get_env_state_for_initial_condition")
    given = {"np": np, "pi": np.pi, "contextlib": contextlib, "hasher": hash_as_pyhash}
    found = _run(root / UTILS, given, lambda node: isinstance(node, ast.FunctionDef) and node.name in wanted)
    return _get_function(found, "get_env_state_for_initial_condition", root / UTILS)


def load_chains(root: Path) -> Sequence[Chain]:
    """Return the official chains. Sampling them takes two minutes of one core, so they are cached on disk.

    Raises ValueError if the checkout lacks the functions.
    """
    source = (root / SEQUENCES).read_bytes()
    name = f"chains-{hashlib.sha256(source).hexdigest()[:16]}.json"
    try:
        drawn = json.loads((_find_cache() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        print("anyvla: sampling CALVIN's 1000 chains; this takes minutes", file=sys.stderr, flush=True)
        drawn = [[dict(start), list(tasks)] for start, tasks in sample_chains(root)]
        _write_cache(name, json.dumps(drawn))
    return [Chain(start, tasks) for start, tasks in drawn]


def sample_chains(root: Path, count: int = COUNT) -> Sequence[Any]:
    """Return the (start, tasks) pairs of CALVIN's `get_sequences(count)`. Raises ValueError without that function."""
    seeded = _run(root / UTILS, {"np": np, "contextlib": contextlib}, lambda n: getattr(n, "name", "") == "temp_seed")
    given = {"temp_seed": _get_function(seeded, "temp_seed", root / UTILS)}
    found = _run(root / SEQUENCES, given, lambda n: not (getattr(n, "module", None) or "").startswith("calvin_agent"))
    sample = _get_function(found, "get_sequences", root / SEQUENCES)
    found["ProcessPoolExecutor"] = _SerialExecutor
    found["deepcopy"] = dict  # equal for flat states, and a fifth faster overall
    return sample(count)


def hash_as_pyhash(text: str) -> int:
    """Return `pyhash.fnv1_32()(text)`, 0 <= hash < 2**32, which seeds the poses of the blocks.

    The package `pyhash` no longer builds. Unlike FNV-1 (http://www.isthe.com/chongo/tech/comp/fnv/), its hash starts at
    0 instead of the offset basis, and reads the UTF-16 code units of a string.
    """
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value


class _SerialExecutor:
    """A replacement for the process pool, since worker processes could not import these functions.

    As in another process, a call leaves numpy's global generator as it was; the list is shuffled with it afterwards.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        pass

    def __enter__(self) -> _SerialExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], inputs: Iterable[Any]) -> list[Any]:
        before = np.random.get_state()
        try:
            return [function(one) for one in inputs]
        finally:
            np.random.set_state(before)


def _run(path: Path, given: Mapping[str, Any], wanted: Callable[[ast.stmt], bool]) -> dict[str, Any]:
    """Run the wanted statements of a file, with the names in `given` defined, and return all names."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    tree.body = [node for node in tree.body if wanted(node)]
    names: dict[str, Any] = {"__name__": path.stem, **given}
    exec(compile(tree, str(path), "exec"), names)
    return names


def _get_function(names: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in names:
        raise ValueError(f"{path} defines no {name}(): not the CALVIN of github.com/mees/calvin, or a changed one")
    return names[name]


def _find_cache() -> Path:
    """Return the folder that anyvla uses: $ANYVLA_CACHE, by default ~/.cache/anyvla. Raises OSError without a home."""
    own = os.environ.get("ANYVLA_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "anyvla"
    try:
        return root.expanduser() / "calvin"
    except RuntimeError:  # a user of a container may have no home
        raise OSError("this user has no home directory") from None


def _write_cache(name: str, text: str) -> None:
    """Write the file atomically, since several workers may start at once. Print a warning if it cannot be written."""
    try:
        path = _find_cache() / name
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        print(
            f"anyvla: the chains cannot be cached ({error}) and are sampled again each time; set ANYVLA_CACHE to a "
            "writable folder",
            file=sys.stderr,
            flush=True,
        )
