"""Models load from folders and from the cache without a network and without unneeded packages."""

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
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from transformers import AutoModelForImageTextToText

from anyvla.backbones.auto import AutoBackbone
from tests.backbones.families.common import tiny_tokenizer

# Load each model in argv (a folder, or ID@REVISION) and read one step with it. Print the absolute sum of the readouts,
# or the error.
READ = """
import json, sys, torch
from anyvla.backbones.auto import AutoBackbone
from anyvla.sequence.layout import lay_out
def read(model):
    path, _, revision = model.partition("@")
    config = AutoBackbone.Config(path=path, revision=revision or None, prompt="do {instruction}")
    backbone = AutoBackbone(config).eval()
    block = backbone.tokenize(torch.zeros(1, 2, 28, 28, 3, dtype=torch.uint8), ["open"])
    sequence = lay_out(block, [1], 1, pad_id=backbone.pad_id, query_id=backbone.query_id)
    with torch.no_grad():
        return float(backbone(sequence, torch.ones(1, backbone.width)).abs().sum())
found = {}
for model in sys.argv[1:]:
    try:
        found[model] = read(model)
    except ValueError as error:
        found[model] = str(error)
print(json.dumps(found))
"""
# Two packages appear not to be installed; importing one raises an error that no code catches. (If torchvision is
# installed, transformers imports it.)
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


def python(code: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that has no network."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", BLOCK + code, *arguments]
    return subprocess.run(command, env=keep | settings, cwd=home, capture_output=True, text=True, check=False)


def put_in_cache(folder: Path, home: Path, name: str, revision: str = "main", commit: str = "c0ffee") -> None:
    """Put a model where `hf download` puts it: blobs named by hash, a snapshot of links, and a ref."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit.ljust(40, "0")
    for place in (snapshot, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(snapshot.name)
    for file in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)


def test_folders_and_cached_models_load_without_a_network_torchvision_or_timm(
    llava_folder: Path, tmp_path: Path
) -> None:
    headless = tmp_path / "headless"
    shutil.copytree(llava_folder, headless, ignore=shutil.ignore_patterns("*.safetensors"))
    put_in_cache(llava_folder, tmp_path, "nobody/whole")
    put_in_cache(headless, tmp_path, "nobody/headless")
    # Another revision with other weights, tokens and pixels.
    older = tmp_path / "older"
    shutil.copytree(llava_folder, older)
    tensors = {name: 1.5 * tensor for name, tensor in load_file(older / "model.safetensors").items()}
    save_file(tensors, older / "model.safetensors", {"format": "pt"})
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("open", "shut")
    tokenizer.save_pretrained(older)
    numbers = json.loads((older / "preprocessor_config.json").read_text())
    (older / "preprocessor_config.json").write_text(json.dumps(numbers | {"image_mean": [0.1, 0.2, 0.9]}))
    put_in_cache(older, tmp_path, "nobody/whole", "v1", "decade")
    models = [str(llava_folder), str(older), "nobody/whole", "nobody/whole@v1", "nobody/headless", "nobody/missing"]
    done = python(READ, *models, home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[str(llava_folder)] > 0, found
    assert found["nobody/whole"] == found[str(llava_folder)]
    assert found["nobody/whole@v1"] == found[str(older)] != found["nobody/whole"]
    assert "the model at 'nobody/headless' is not complete" in found["nobody/headless"]
    assert "`hf download nobody/headless`" in found["nobody/headless"]
    assert "no model at 'nobody/missing': it is neither a local folder nor available from" in found["nobody/missing"]
    assert "run `hf download nobody/missing` on one with a network" in found["nobody/missing"]


def test_the_blocked_packages_cannot_be_imported(tmp_path: Path) -> None:
    for name in ("torchvision", "timm.models"):
        assert f"imported {name}" in python(f"import {name}", home=tmp_path).stderr


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
    with pytest.raises(ValueError, match=rf"(?s)is not complete: .*{shards[1].name}.*Copy the whole folder again"):
        AutoBackbone(AutoBackbone.Config(path=str(sharded)))


@pytest.mark.parametrize("model_type", ["perception_lm", "fast_vlm", "gemma3n"])
def test_a_family_that_needs_a_package_names_it(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These three families have vision towers of timm in transformers 5.23."""
    monkeypatch.setattr("transformers.utils.import_utils.is_timm_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tiny_tokenizer().save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"needs the package timm, which .*`pip install timm`, or choose another"):
        AutoBackbone(AutoBackbone.Config(path=str(tmp_path)))
