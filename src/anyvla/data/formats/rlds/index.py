"""Options of RLDS, and the index of its records, their lengths and instructions, which is made once and cached."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.config import STRICT, to_dict
from anyvla.data import cache_folder, fingerprints
from anyvla.data.formats.reader import report_empty
from anyvla.data.formats.rlds import oxe, tf_example, tfrecord
from anyvla.data.formats.rlds.features import DatasetVersion, FeatureSpec

log = logging.getLogger(__name__)

_VERSION = 1  # of the cached index; another version is rebuilt
_COLUMNS = ("shards", "numbers", "offsets", "sizes", "steps", "task")


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class RLDSConfig:
    """Options of `format: {name: rlds}`. Keys are relative to `steps`, as in features.json."""

    split: str = "train"  # split of the data set
    entry: str | None = None  # in the Open X-Embodiment table; None: the entry of the data set's name, if any
    # Used without an entry:
    cameras: Mapping[str, str] | None = None  # camera -> key; None: every image, named after the last part of its key
    action: tuple[str, ...] = ("action",)  # concatenated
    proprio: tuple[str, ...] = ()  # keys, joined in this order
    instruction: tuple[str, ...] = ("language_instruction",)  # keys that the data lacks are skipped
    # refuse: the first damaged record is an error. skip: damaged records are left out and listed in the provenance.
    damaged: Literal["refuse", "skip"] = "refuse"
    checksums: bool = False  # verify the checksums of all data when the index is made, which reads every byte


@dataclass(frozen=True)
class RecordIndex:
    """Columns with one row per episode."""

    shards: Int64[np.ndarray, "E"]
    numbers: Int64[np.ndarray, "E"]  # number of the record in its shard
    offsets: Int64[np.ndarray, "E"]
    sizes: Int64[np.ndarray, "E"]  # bytes
    steps: Int64[np.ndarray, "E"]  # in the record
    task: Int64[np.ndarray, "E"]  # index into `tasks`
    tasks: list[str]
    damaged: dict[str, str]  # shard or record that was left out -> reason
    failures: int  # number of episodes left out because they fail at their task


def build_index(
    version: DatasetVersion,
    shards: Sequence[Path],
    instructions: Sequence[str],
    entry: oxe.OxeEntry | None,
    config: RLDSConfig,
) -> RecordIndex:
    """Return the index of a split, from the cache if possible. Raises ValueError for damaged files."""
    meaning = json.dumps([_VERSION, list(instructions), to_dict(config), None if entry is None else to_dict(entry)])
    name = f"{fingerprints.cache_key(version.folder, [*shards, version.folder / 'features.json'], meaning)}.npz"
    if (known := cache_folder.read("rlds", name)) is not None:
        with np.load(io.BytesIO(known), allow_pickle=False) as kept:
            notes = json.loads(bytes(kept["notes"]).decode())
            return RecordIndex(**{column: kept[column] for column in _COLUMNS}, **notes)
    index = _scan(version, shards, instructions, entry, config)
    notes = {"tasks": index.tasks, "damaged": index.damaged, "failures": index.failures}
    buffer = io.BytesIO()
    columns: dict[str, Any] = {column: getattr(index, column) for column in _COLUMNS}
    np.savez(buffer, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **columns)
    cache_folder.write("rlds", name, buffer.getvalue())
    return index


def _scan(
    version: DatasetVersion,
    shards: Sequence[Path],
    instructions: Sequence[str],
    entry: oxe.OxeEntry | None,
    config: RLDSConfig,
) -> RecordIndex:
    rows, empty = list[tuple[int, ...]](), list[str]()
    tasks, damaged = dict[str, int](), dict[str, str]()
    failures, last_report = 0, time.monotonic()

    def fault(where: str, reason: str) -> None:
        if config.damaged == "refuse":
            advice = "copy the data set again, or leave damaged records out with damaged: skip"
            raise ValueError(f"{where}: {reason}; {advice}")
        damaged[where] = reason

    for number, shard in enumerate(shards):
        offsets, sizes, wrong = tfrecord.find_records(shard)
        expected = version.splits[config.split][number]
        if wrong or len(offsets) != expected:
            fault(str(shard), wrong or f"it holds {len(offsets)} records, dataset_info.json counts {expected}")
        for at, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
            where = f"{shard}, record {at}"
            try:
                if config.checksums and not tfrecord.has_right_checksum(shard, offset, size):
                    raise ValueError("its checksum is wrong: the data is damaged")
                record = tf_example.parse_example(tfrecord.read_record(shard, offset, size))
                steps = _count_steps(record, version.steps)
                kept = entry.kept_steps(steps) if entry is not None else slice(0, steps)
                if kept.stop <= kept.start:
                    empty.append(f"{shard.name}, record {at}")
                    continue
                wordings = [t for key in instructions for t in read_instructions(record, key, version, entry, kept)]
            except ValueError as error:
                fault(where, str(error))
                continue
            success = record.get(entry.success) if entry is not None and entry.success is not None else None
            if success is not None and not success.numbers().any():
                failures += 1
                continue
            task = tasks.setdefault(next(iter(wordings), ""), len(tasks))
            rows.append((number, at, offset, size, steps, task))
        tfrecord.release_pages(shard)
        if time.monotonic() - last_report > 10:
            last_report = time.monotonic()
            log.warning("index of %s: %d of %d files", version.folder, number + 1, len(shards))
    if not rows:
        raise ValueError(f"{version.folder} holds no episode of split {config.split!r} that can be read")
    report_empty(version.folder, empty)
    if damaged:
        log.warning("%s: %d damaged records or files are left out", version.folder, len(damaged))
    table = np.array(rows, np.int64).reshape(-1, len(_COLUMNS))
    columns = {name: np.ascontiguousarray(column) for name, column in zip(_COLUMNS, table.T, strict=True)}
    return RecordIndex(**columns, tasks=list(tasks), damaged=damaged, failures=failures)


def read_instructions(
    record: tf_example.Example, key: str, version: DatasetVersion, entry: oxe.OxeEntry | None, kept: slice
) -> list[str]:
    """Return the text of a key in a list, or an empty list if the record has none.

    Raises ValueError if the text is not UTF-8, or changes among the kept steps.
    """
    spec = version.steps.get(key)
    feature = record.get(key if spec is None else f"steps/{key}")
    if feature is None:
        return []
    if entry is not None and entry.instruction_coding == "integers" and spec is not None:
        rows = feature.numbers().reshape(-1, *(n or 1 for n in spec.shape))
        return _require_one([oxe.decode_integers(row) for row in np.unique(rows[kept], axis=0)], key)
    texts = feature.byte_strings()
    try:
        different = dict.fromkeys(map(bytes, texts if spec is None else texts[kept]))
        return _require_one([text.decode("utf-8") for text in different], key)
    except UnicodeDecodeError as error:
        raise ValueError(f"its instruction ({key}) is not UTF-8 ({error.reason} at byte {error.start})") from None


def _require_one(texts: list[str], key: str) -> list[str]:
    if len(texts) > 1:
        raise ValueError(
            f"its instruction ({key}) changes over time ({texts[0]!r}, then {texts[1]!r}), which is not supported: "
            "make each an episode of its own"
        )
    return texts


def _count_steps(record: tf_example.Example, steps: Mapping[str, FeatureSpec]) -> int:
    """Return the number of steps of an episode, by the key that is cheapest to count. Raises ValueError without one."""
    for key, spec in sorted(steps.items(), key=lambda item: (item[1].kind == "image", len(item[1].shape))):
        feature = record.get(f"steps/{key}")
        if feature is None or spec.ragged:
            continue
        each = 1 if spec.kind != "tensor" or spec.encoding != "none" else int(np.prod([n or 0 for n in spec.shape]))
        if each:
            return feature.count() // each
    raise ValueError("it has no steps")
