"""Tensors in several files are read as those of one file, and files that do not belong together are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anyvla.files import tensor_files

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4), "c": torch.zeros(1, dtype=torch.int64)}
SHARDS = (("a.weight",), ("b.weight", "c"))


def name(number: int, count: int = 2) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write(folder: Path, identity: str | None = "one", tensors: dict[str, Tensor] = TENSORS) -> Path:
    """Write two shards and their index by hand, in the format of Hugging Face."""
    folder.mkdir(exist_ok=True)
    more = {} if identity is None else {"checkpoint": identity}
    for number, names in enumerate(SHARDS, 1):
        save_file({n: tensors[n] for n in names}, folder / name(number), metadata={"format": "pt"} | more)
    where = {n: name(number) for number, names in enumerate(SHARDS, 1) for n in names}
    index = {"metadata": {"total_size": 48} | more, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors"


def edit(path: Path, **changes: Any) -> None:
    index = path.with_name("model.safetensors.index.json")
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))


@pytest.mark.parametrize("identity", ["one", None])
def test_shards_are_read_as_one_file(tmp_path: Path, identity: str | None) -> None:
    path = write(tmp_path, identity)
    with tensor_files.opened(path) as file:
        assert sorted(file.keys()) == sorted(TENSORS)
        assert all(torch.equal(file.get_tensor(n), tensor) for n, tensor in TENSORS.items())
        assert torch.equal(file.get_slice("a.weight")[1:, :2], TENSORS["a.weight"][1:, :2])
    files = ["model.safetensors.index.json", name(1), name(2)]
    assert [p.name for p in tensor_files.list_files(path)] == files
    assert tensor_files.size(path) == sum((tmp_path / n).stat().st_size for n in files)
    assert tensor_files.exist(path)


def test_files_of_another_name_beside_it_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path)
    save_file(TENSORS, tmp_path / "state-00001-of-00001.safetensors")
    with tensor_files.opened(path) as file:
        assert len(file.keys()) == 3


def test_a_shard_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """A copy that was interrupted leaves old shards between new ones, with the same names and shapes."""
    path, older = write(tmp_path / "new"), write(tmp_path / "old", "two")
    (older.parent / name(2)).replace(path.parent / name(2))
    message = r"model-00002-of-00002\.safetensors is of another checkpoint than .*index"
    with pytest.raises(ValueError, match=message), tensor_files.opened(path):
        pass


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing shard", r"model-00002-of-00002\.safetensors is missing"),
        ("damaged shard", r"model-00002-of-00002\.safetensors cannot be read"),
        ("cut shard", r"model-00002-of-00002\.safetensors cannot be read"),
        ("pipe", r"model-00002-of-00002\.safetensors is a pipe"),
        ("foreign shard", r"does not name model-00003-of-00003\.safetensors, which is beside it"),
        ("both forms", r"there are both .*model\.safetensors and .*index\.json"),
        ("twice", r"model-00002-of-00002\.safetensors holds a\.weight, and so does another shard"),
        ("unknown", r"model-00002-of-00002\.safetensors holds more, which .* does not name there"),
        ("misplaced", r"holds a\.weight, which .* does not name there"),
        ("lacking", r"names more, which its shards lack"),
        ("link", r"a symbolic link to"),
        ({"a.weight": "../model-00001-of-00001.safetensors"}, r"which holds '\.\.'"),
        ({"a.weight": "/etc/model-00001-of-00001.safetensors"}, r"which is absolute"),
        ({"a.weight": "x/model-00001-of-00001.safetensors"}, r"expected model-00001-of-00002\.safetensors"),
        ({"a.weight": "model-00001-of-00002.bin"}, r"expected model-00001-of-00002\.safetensors"),
        ({"a.weight": "state-00001-of-00001.safetensors"}, r"expected model-00001-of-00002\.safetensors"),
        ({"a.weight": 3}, r"names the file '3'"),
        ({"a.weight": name(1), "b.weight": name(3)}, r"not as shards of one another"),
        ({}, r"names 0 files, expected 1 to 500"),
        ({f"a{i}": f"model-{i:05d}-of-00501.safetensors" for i in range(1, 502)}, r"names 501 files"),
        (["a"], r"weight_map: expected keys and values"),
        (None, r"weight_map: expected keys and values"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, fault: Any, message: str) -> None:
    path = write(tmp_path / "folder")
    second = path.with_name(name(2))
    if not isinstance(fault, str):
        edit(path, weight_map=fault)
    elif fault in ("missing shard", "pipe", "link"):
        second.unlink()
        if fault == "pipe":
            os.mkfifo(second)
        elif fault == "link":
            save_file({"b.weight": torch.ones(4)}, tmp_path / "other")
            second.symlink_to(tmp_path / "other")
    elif fault == "damaged shard":
        second.write_bytes(b"no")
    elif fault == "cut shard":
        second.write_bytes(second.read_bytes()[:-4])
    elif fault == "foreign shard":
        save_file(TENSORS, path.with_name(name(3, 3)))
    elif fault == "both forms":
        save_file(TENSORS, path)
    elif fault in ("twice", "unknown"):
        more = {"a.weight" if fault == "twice" else "more": torch.ones(4)}
        held = {"b.weight": torch.ones(4), "c": torch.zeros(1)}
        save_file(held | more, second, metadata={"checkpoint": "one"})
    elif fault == "misplaced":
        edit(path, weight_map={n: name(2 if n == "a.weight" else 1) for n in TENSORS})
    elif fault == "lacking":
        where = {n: name(number) for number, names in enumerate(SHARDS, 1) for n in names}
        edit(path, weight_map=where | {"more": name(1)})
    with pytest.raises(ValueError, match=message), tensor_files.opened(path):
        pass


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert not tensor_files.exist(tmp_path / "model.safetensors")
    with (
        pytest.raises(ValueError, match=r"model\.safetensors is missing"),
        tensor_files.opened(tmp_path / "model.safetensors"),
    ):
        pass
