"""Features of a frozen vision tower, computed once for each image and kept on the disk.

They are a function of the image's pixels alone, so that all epochs of a training, and all trainings with the same
frozen tower, can share them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.files import durable
from anyvla.files.row_store import KEY_BYTES, RowStore

logger = logging.getLogger(__name__)

Compute = Callable[[UInt8[Tensor, "M V H W 3"]], Float[Tensor, "N F E"]]
_PROBE = (64, 80)  # pixels
# Images computed together, always as many, so that an image has the same bits whatever the others are. On a CPU, images
# take less time one by one.
_AT_ONCE = {"cpu": 1}
_AT_ONCE_ELSEWHERE = 16


class FrozenFeatures:
    """Looks up the features of images, and computes and keeps the missing ones.

    A folder inside of `folder` belongs to one tower: its name is a hash of the weights and of the bits that `compute`
    gives for an image of noise. So another size, normalization, dtype, autocast, processor, number of threads or
    version of the code is another folder wherever it makes a difference.
    """

    def __init__(self, folder: Path, gigabytes: float, backbone: Backbone, compute: Compute) -> None:
        """`compute` runs the tower of `backbone` on images. The folder of a tower has at most so many `gigabytes`."""
        self._folder, self._most = folder, int(gigabytes * 1e9)
        self._backbone, self._compute = backbone, compute
        self._store: RowStore | None = None
        self._usable = True

    def read(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F E"]:
        """Return the features of N = M * V images."""
        if self._store is None and self._usable:
            self._open(images.device)
        if self._store is None:
            return self._compute(images)
        flat = images.flatten(0, 1)
        keys = [hash_image(image) for image in np.ascontiguousarray(flat.cpu().numpy())]
        first = {key: number for number, key in reversed(list(enumerate(keys)))}  # of equal images
        unique = list(first)
        rows = np.empty((len(unique), self._row_bytes), np.uint8)
        missing = self._store.read(unique, rows)
        if missing:
            computed = self._compute_apart(flat[[first[unique[number]] for number in missing]])
            for number, row in zip(missing, _as_bytes(computed), strict=True):
                rows[number] = row
                self._store.add(unique[number], row)
        features = torch.from_numpy(rows).view(self._dtype).view(len(unique), *self._shape)
        at = {key: number for number, key in enumerate(unique)}
        return features[[at[key] for key in keys]].to(images.device)

    def close(self) -> None:
        """Write the computed features to the disk."""
        if self._store is not None:
            self._store.flush()

    def _open(self, device: torch.device) -> None:
        """Compute the features of an image of noise, and open the store of the tower that gives them."""
        noise = np.random.default_rng(0).integers(0, 256, (1, *_PROBE, 3), np.uint8)
        probe = torch.from_numpy(noise).to(device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            features, again = self._compute_apart(probe), self._compute_apart(probe)
        if features.requires_grad or not torch.equal(features, again):
            self._usable = False
            reason = "trained weights take part" if features.requires_grad else "they differ from one call to the next"
            logger.warning("features of the frozen vision tower are computed at each use: %s", reason)
            return
        self._shape, self._dtype = features.shape[1:], features.dtype
        row = _as_bytes(features)[0]
        self._row_bytes = len(row)
        name = self._hash_tower(device, row)
        kind, (tokens, width) = type(self._backbone).__name__, self._shape
        about = f"{kind}: {tokens} tokens of width {width} for each image, {self._dtype}, {len(row):,} bytes\n"
        with suppress(OSError):  # the store warns about it when it writes
            self._folder.mkdir(parents=True, exist_ok=True)
            durable.write(self._folder / f"{name}.txt", about, to_disk=False)
        self._store = RowStore(self._folder / name, len(row), self._most)

    @torch.no_grad()
    def _hash_tower(self, device: torch.device, probe: UInt8[np.ndarray, "B"]) -> str:
        made = hashlib.blake2b(digest_size=KEY_BYTES)
        made.update(f"{torch.__version__} {device.type} {self._shape} {self._dtype}".encode())
        made.update(probe.data)
        for module in self._backbone.part_modules()["vision"]:
            for name, tensor in sorted(module.state_dict().items()):
                made.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                made.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return made.hexdigest()

    def _compute_apart(self, images: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, "n F E"]:
        """Return features that do not depend on how many images there are, nor on the other images."""
        size = _AT_ONCE.get(images.device.type, _AT_ONCE_ELSEWHERE)
        found = []
        for some in images.split(size):
            blank = some.new_zeros(size - len(some), *some.shape[1:])
            found.append(self._compute(torch.cat([some, blank])[:, None])[: len(some)])
        return torch.cat(found)


@contextmanager
def computing_features(backbone: Any) -> Iterator[None]:
    """Let a backbone compute its features within the context, even if it keeps them."""
    kept = getattr(backbone, "frozen_features", None)
    backbone.frozen_features = None
    try:
        yield
    finally:
        backbone.frozen_features = kept


def hash_image(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return a key for the pixels of an image."""
    made = hashlib.blake2b(str(image.shape).encode(), digest_size=KEY_BYTES)
    made.update(image.data)
    return made.digest()


def _as_bytes(features: Float[Tensor, "n F E"]) -> UInt8[np.ndarray, "n B"]:
    return features.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
