"""Models from folders and from the cache, without a network and without packages that the model does not need."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families.common import tiny_tokenizer
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from anyvla.backbones.auto import AutoBackbone

# Loads the model that argv names and reads one step with it; prints the sum of the readout.
READ = """
import sys, torch
from anyvla.backbones.auto import AutoBackbone
from anyvla.layout import lay_out
backbone = AutoBackbone(AutoBackbone.Config(path=sys.argv[1], prompt="do {instruction}")).eval()
block = backbone.prepare(torch.zeros(1, 2, 28, 28, 3, dtype=torch.uint8), ["open"])
sequence = lay_out(block, [1], 1, pad_id=backbone.pad_id, query_id=backbone.query_id)
with torch.no_grad():
    print("read", float(backbone(sequence, torch.ones(1, backbone.width)).abs().sum()))
"""
# Two packages that look as if they were not installed, and an error that nobody catches for who imports them all the
# same. (Where torchvision is installed, transformers imports it by itself.)
BLOCK = """
import builtins, sys
sys.modules["torchvision"] = sys.modules["timm"] = None
real = builtins.__import__
def refuse(name, *rest, **keys):
    if name.partition(".")[0] in ("torchvision", "timm"):
        raise AssertionError(f"imported {name}")
    return real(name, *rest, **keys)
builtins.__import__ = refuse
"""


def read(model: str | Path, cwd: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Read a step in a fresh process that has no network."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "OMP_NUM_THREADS": "1"}
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", before + READ, str(model)]
    return subprocess.run(
        command, env=keep | settings | environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def number(done: subprocess.CompletedProcess[str]) -> float:
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def in_cache(folder: Path, home: Path, name: str) -> None:
    """Put a model where `hf download` puts it: blobs named by their hash, a snapshot of links, a ref to it."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("c0ffee" + "0" * 34)
    for place in (snapshot, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for file in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)


def test_a_folder_loads_without_a_network_torchvision_or_timm(llava_folder: Path, tmp_path: Path) -> None:
    assert number(read(llava_folder, tmp_path, before=BLOCK)) > 0
    refused = read(llava_folder, tmp_path, before=BLOCK + "import torchvision\n")
    assert "imported torchvision" in refused.stderr  # the block blocks


def test_a_model_in_the_cache_loads_by_its_id(llava_folder: Path, tmp_path: Path) -> None:
    in_cache(llava_folder, tmp_path / "elsewhere", "nobody/tiny-llava")
    found = read("nobody/tiny-llava", tmp_path, HF_HOME=str(tmp_path / "elsewhere"))
    assert number(found) == number(read(llava_folder, tmp_path))
    missing = read("nobody/tiny-llava", tmp_path)
    assert missing.returncode == 1
    assert "no model at 'nobody/tiny-llava': it is neither a folder here nor" in missing.stderr
    assert "run `hf download nobody/tiny-llava` where there is one" in missing.stderr


def test_a_cached_model_without_its_weights_names_the_command(llava_folder: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    shutil.copytree(llava_folder, some)
    (some / "model.safetensors").unlink()
    in_cache(some, tmp_path / "home", "nobody/tiny-llava")
    done = read("nobody/tiny-llava", tmp_path)
    assert "ValueError: the model at 'nobody/tiny-llava' is not complete" in done.stderr
    assert "`hf download nobody/tiny-llava`" in done.stderr


def test_sharded_weights_load(llava_folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(llava_folder, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForImageTextToText.from_pretrained(llava_folder)
    model.save_pretrained(sharded, max_shard_size="50KB")
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    loaded = AutoBackbone(AutoBackbone.Config(path=str(sharded))).model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded[name]), name
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"(?s)is not complete: .*{shards[1].name}.*Copy the folder again, whole"):
        AutoBackbone(AutoBackbone.Config(path=str(sharded)))


@pytest.mark.parametrize("model_type", ["perception_lm", "fast_vlm", "gemma3n"])
def test_a_family_that_needs_a_package_names_it(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These three have vision towers of timm in transformers 5.23."""
    monkeypatch.setattr("transformers.utils.import_utils.is_timm_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tiny_tokenizer().save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"needs the package timm, which .*`pip install timm`, or choose another"):
        AutoBackbone(AutoBackbone.Config(path=str(tmp_path)))
