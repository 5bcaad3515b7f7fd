"""A checkpoint whose weights are in several files with an index is used like one with a single file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from anyvla.checkpoint.files import WEIGHTS, check_checkpoint
from anyvla.evaluation.runner import hash_checkpoint
from anyvla.files.weights import count_elements
from anyvla.policy import VLA
from anyvla.training.warm_start.origin import open_origin
from tests import small


def split(folder: Path, size: str = "20KB") -> int:
    """Replace the one file of weights by shards, as huggingface_hub writes them. Return their number."""
    save_torch_state_dict(load_file(folder / WEIGHTS), folder, max_shard_size=size)
    (folder / WEIGHTS).unlink(missing_ok=True)
    return len(list(folder.glob("model-*-of-*.safetensors")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small.awake(small.policy(decoder="flow")).save(tmp_path / "policy")
    return tmp_path / "policy"


def test_the_policy_is_the_same(folder: Path) -> None:
    one, count = VLA.load(folder), count_elements(folder / WEIGHTS)
    assert split(folder) > 2
    check_checkpoint(folder)
    other = VLA.load(folder)
    assert all(torch.equal(w, other.state_dict()[n]) for n, w in one.state_dict().items())
    assert count_elements(folder / WEIGHTS) == count > 100_000


def test_a_warm_start_reads_all_shards(folder: Path) -> None:
    whole = load_file(folder / WEIGHTS)
    split(folder)
    origin = open_origin(str(folder))
    _, stored = origin.describe()
    assert sorted(stored.values()) == sorted(whole)
    with origin.opened(stored, None) as read:
        assert all(torch.equal(read(name), whole[there]) for name, there in stored.items())


def test_the_hash_of_a_checkpoint_depends_on_each_shard(folder: Path) -> None:
    split(folder)
    hashes = {hash_checkpoint(folder)}
    for shard in sorted(folder.glob("model-*-of-*.safetensors")):
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        hashes.add(hash_checkpoint(folder))
    assert len(hashes) == 1 + len(list(folder.glob("model-*-of-*.safetensors")))


def test_a_folder_that_lacks_a_shard_is_refused_before_a_model_is_built(folder: Path) -> None:
    split(folder)
    next(iter(sorted(folder.glob("model-*-of-*.safetensors")))).unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-\d+\.safetensors is missing"):
        check_checkpoint(folder)
