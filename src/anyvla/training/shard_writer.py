"""Write the tensors of a sharded training into several files with an index, each file by one process.

A tensor is gathered, kept by the process that writes it, and freed by all others before the next one: no process ever
holds the whole model. `anyvla.files.tensor_files` reads the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from anyvla.files import durable
from anyvla.files.sharded_tensors import gather
from anyvla.files.tensor_files import IDENTITY, MOST_SHARDS, index_path, shard_path
from anyvla.training.processes import Processes


def write_tensors(path: Path, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Write tensors under their names: one file by one process, else shards by all processes together.

    All processes give the same names in the same order. Files are on the disk on return. Raises OSError in all
    processes if one of them cannot write.
    """
    if processes.count == 1:
        with naming_errors():
            save_file({name: of.detach().contiguous() for name, of in tensors.items()}, str(path))
        return
    writer = assign(tensors, min(processes.count, MOST_SHARDS))
    own: dict[str, Tensor] = {}
    with processes.depended_on():
        for name, tensor in tensors.items():
            whole = gather(tensor.detach())
            if writer[name] == processes.rank:
                own[name] = whole.to("cpu", copy=True).contiguous()
    digests = [digest for digest in processes.gather(_digest(own) if own else None) if digest is not None]
    identity = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    numbers = {rank: number for number, rank in enumerate(sorted(set(writer.values())), 1)}

    def write() -> None:
        if own:
            shard = shard_path(path, numbers[processes.rank], len(numbers))
            save_file(own, str(shard), metadata={"format": "pt", IDENTITY: identity})
            durable.sync(shard)

    do_together(processes, write)
    shards = {rank: shard_path(path, number, len(numbers)) for rank, number in numbers.items()}

    def write_index() -> None:
        if not processes.is_main:
            return
        for rank, shard in shards.items():
            if not shard.is_file():
                raise OSError(
                    errno.ENOENT,
                    f"{processes.describe(rank)} wrote {shard.name}, and {processes.describe(0)} does not see it: give "
                    "an --out on a file system that all machines share",
                )
        size = sum(of.numel() * of.element_size() for of in tensors.values())
        index = {
            "metadata": {"total_size": size, IDENTITY: identity},
            "weight_map": {name: shards[writer[name]].name for name in sorted(tensors)},
        }
        index_path(path).write_text(json.dumps(index, indent=1), encoding="utf-8")

    do_together(processes, write_index)


def do_together(processes: Processes, work: Callable[[], None]) -> None:
    """Do work that writes files in each process. If one of them fails, all raise its OSError."""
    failed: list[int | str] | None = None
    try:
        with naming_errors():
            work()
    except OSError as error:
        failed = [error.errno or errno.EIO, error.strerror or str(error)]
        if processes.count == 1:
            raise
    for found in processes.gather(failed):
        if found is not None:
            raise OSError(*found)


@contextmanager
def naming_errors() -> Iterator[None]:
    """Turn an error of safetensors, which has no errno, into an OSError."""
    try:
        yield
    except SafetensorError as error:
        full = "os error 28" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None


def assign(tensors: Mapping[str, Tensor], writers: int) -> dict[str, int]:
    """Return which process writes each tensor, so that all write about as much: the largest first, where least is."""
    loads = [0] * writers
    chosen = {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel(), name)):
        rank = loads.index(min(loads))
        chosen[name] = rank
        loads[rank] += tensors[name].numel() * tensors[name].element_size()
    return chosen


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
