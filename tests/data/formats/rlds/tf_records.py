"""Writes RLDS data sets as TensorFlow does: protocol buffers in TFRecord files, and their descriptions."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anyvla.data.formats.rlds import tfrecord


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes, wire: int = 2) -> bytes:
    return varint(number << 3 | wire) + (varint(len(data)) if wire == 2 else b"") + data


def feature(values: np.ndarray | Sequence[bytes]) -> bytes:
    """Return a list of byte strings, of floats, or of integers."""
    if not isinstance(values, np.ndarray):
        return field(1, b"".join(field(1, value) for value in values))
    if values.dtype.kind == "f":
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(v)) for v in values.ravel())))


def example(features: Mapping[str, bytes]) -> bytes:
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()))


def png(color: Sequence[int], size: tuple[int, int] = (4, 6)) -> bytes:
    """Return an image of one color."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_records(path: Path, records: Sequence[bytes]) -> None:
    """Write records with checksums of their headers, but none of the data."""
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", tfrecord._masked(tfrecord._crc32c(length))) + record + bytes(4))


def leaf(values: Any) -> dict[str, Any]:
    """Return the entry of features.json for one key, from its values over the steps of an episode."""
    if isinstance(values, np.ndarray):
        sizes = [str(n) for n in values.shape[1:]]
        return {"tensor": {"dtype": str(values.dtype), "encoding": "none", "shape": {"dimensions": sizes}}}
    if values[0].startswith(b"\x89PNG"):
        return {"image": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "-1", "3"]}}}
    return {"text": {}}


def write_rlds(
    folder: Path, name: str, splits: Mapping[str, Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]]
) -> Path:
    """Write splits of one file each. An episode is (values of keys below `steps`, values beside `steps`)."""
    folder.mkdir(parents=True)
    steps, beside = next(iter(splits.values()))[0]
    tree: dict[str, Any] = {}
    for key, values in steps.items():
        *parents, last = key.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {"featuresDict": {"features": {}}})["featuresDict"]["features"]
        at[last] = leaf(values)
    top = {"steps": {"sequence": {"feature": {"featuresDict": {"features": tree}}}}}
    top |= {key: leaf(values) for key, values in beside.items()}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": top}}))
    counts = [{"name": split, "shardLengths": [str(len(episodes))]} for split, episodes in splits.items()]
    (folder / "dataset_info.json").write_text(json.dumps({"name": name, "version": folder.name, "splits": counts}))
    for split, episodes in splits.items():
        records = [
            example({f"steps/{k}": feature(v) for k, v in within.items()} | {k: feature(v) for k, v in out.items()})
            for within, out in episodes
        ]
        write_records(folder / f"{name}-{split}.tfrecord-00000-of-00001", records)
    return folder
