"""Reads the values of one key over the steps of an RLDS record: numbers at once, images on demand."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from anyvla.data.episode import Frames
from anyvla.data.formats.images import decode_image
from anyvla.data.formats.rlds import tf_example, tfrecord
from anyvla.data.formats.rlds.features import FeatureSpec

_MAX_DECOMPRESSED = 64 << 20  # bytes of a tensor of one step

RecordLocation = tuple[Path, int, int]  # shard, offset and length of a record


class EncodedFrames(Frames):
    """JPEG or PNG frames of a record, as RGB."""

    def __init__(
        self, location: RecordLocation, key: str, kept: slice, shape: tuple[int | None, ...], swapped: bool, where: str
    ) -> None:
        """Open the images of the steps `kept` of a record. `swapped`: they are stored as BGR."""
        self._location, self._key, self._kept, self._swapped, self._where = location, key, kept, swapped, where
        height, width = shape[:2] if len(shape) == 3 else (None, None)
        if height is None or width is None:  # any size: take that of the first frame
            height, width = self._decode(self._encoded()[kept][0], 0).shape[:2]
        self.shape = (kept.stop - kept.start, height, width, 3)

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        encoded = self._encoded()[self._kept]
        if len(encoded) != len(self):
            raise ValueError(f"{self._where} has {len(encoded)} images, the episode {len(self)} steps")
        decoded = {step: self._decode(encoded[step], step) for step in set(steps)}
        tfrecord.release_pages(self._location[0])
        for step, image in decoded.items():
            if image.shape != self.shape[1:]:
                where = f"{self._where}: the image of step {step}"
                raise ValueError(f"{where} has shape {image.shape}, the others {self.shape[1:]}")
        return np.stack([decoded[step] for step in steps])

    def _encoded(self) -> list[memoryview]:
        feature = tf_example.parse_example(tfrecord.read_record(*self._location)).get(self._key)
        if feature is None:
            raise ValueError(f"{self._where}: the record has no such images")
        return feature.byte_strings()

    def _decode(self, data: memoryview, step: int) -> UInt8[np.ndarray, "H W 3"]:
        pixels = decode_image(data, f"{self._where}, the image of step {step}")
        return pixels[..., ::-1] if self._swapped else pixels


def read_numbers(record: tf_example.Example, name: str, spec: FeatureSpec, length: int) -> np.ndarray:
    """Return the numbers of a key over all steps: (T, *shape of one step). Raises ValueError if they do not fit."""
    feature = record.get(name)
    if feature is None:
        raise ValueError(f"the record has no {name}")
    if spec.kind != "tensor" or spec.dtype.startswith("complex"):  # booleans are numbers: some grippers are stored so
        raise ValueError(f"{name}: expected real numbers, found {spec.dtype if spec.kind == 'tensor' else spec.kind}")
    each = int(np.prod([n or 0 for n in spec.shape]))
    if spec.encoding != "none":
        parts = [_decode_tensor(text, spec, name) for text in feature.byte_strings()]
        wrong = [(i, len(part)) for i, part in enumerate(parts) if None not in spec.shape and len(part) != each]
        if wrong:
            raise ValueError(f"{name}, step {wrong[0][0]}: expected {each} numbers, found {wrong[0][1]}")
        flat = np.concatenate(parts or [np.empty(0)])
    else:
        flat = feature.numbers()
    shape = tuple(-1 if n is None else n for n in spec.shape)
    if len(flat) % max(1, length) or (length and -1 not in shape and len(flat) != length * int(np.prod(shape))):
        raise ValueError(f"{name} holds {len(flat)} numbers, which is not {list(spec.shape)} for {length} steps")
    return flat.reshape(length, *shape)


def _decode_tensor(text: memoryview, spec: FeatureSpec, name: str) -> np.ndarray:
    """Decode a tensor that is stored as bytes (`Tensor(encoding=...)` of tensorflow-datasets)."""
    try:
        data = _decompress(text) if spec.encoding == "zlib" else bytes(text)
        return np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<"))
    except (zlib.error, ValueError, TypeError) as error:
        raise ValueError(f"{name} holds a tensor that cannot be read ({error})") from None


def _decompress(text: memoryview) -> bytes:
    """Decompress the numbers of one step. Raises ValueError if there are implausibly many."""
    packed = zlib.decompressobj()
    data = packed.decompress(text, _MAX_DECOMPRESSED)
    if packed.unconsumed_tail or not packed.eof:
        raise ValueError(f"it is truncated, or decompresses to more than {_MAX_DECOMPRESSED} bytes")
    return data
