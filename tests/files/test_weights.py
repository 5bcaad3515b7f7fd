from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anyvla.files import weights
from anyvla.policy import VLA
from tests import small


class Tied(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.table.weight
        self.norm = nn.BatchNorm1d(width)


def test_weights_are_loaded_into_the_existing_tensors(tmp_path: Path) -> None:
    one, other = Tied(), Tied()
    one.norm.running_mean.normal_()
    weights.save(one, tmp_path / "w.safetensors")
    places = {n: t.data_ptr() for n, t in other.state_dict().items()}
    weights.load(other, tmp_path / "w.safetensors")
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in one.state_dict().items())
    assert {n: t.data_ptr() for n, t in other.state_dict().items()} == places
    assert other.head.weight is other.table.weight
    assert len(load_file(tmp_path / "w.safetensors")) == len(one.state_dict()) - 1  # tied weights are saved once


def test_weights_of_another_dtype_are_converted(tmp_path: Path) -> None:
    one, other = Tied(), Tied().to(torch.bfloat16)
    weights.save(one, tmp_path / "w.safetensors")
    weights.load(other, tmp_path / "w.safetensors")
    assert torch.equal(other.table.weight, one.table.weight.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"missing: norm\.bias"),
        ("tied", r"missing: head\.weight, table\.weight"),
        ("extra", r"not of this model: more\.weight"),
        (
            "shape",
            r"of another shape: norm\.bias is \(3,\), not \(4,\)",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_changed(
    tmp_path: Path, fault: str, message: str
) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(Tied(), path)
    tensors = load_file(path)
    if fault == "missing":
        del tensors["norm.bias"]
    elif fault == "tied":
        tensors = {n: t for n, t in tensors.items() if n not in ("head.weight", "table.weight")}
    elif fault == "extra":
        tensors["more.weight"] = torch.zeros(1)
    else:
        tensors["norm.bias"] = torch.zeros(3)
    save_file(tensors, path)
    model = Tied()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"w\.safetensors holds a checkpoint whose classes don't match .*{message}"):
        weights.load(model, path)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_mask_may_be_infinite_but_no_weight(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    masked = Tied()
    masked.register_buffer("mask", torch.full((3,), -torch.inf))
    weights.save(masked, path)
    weights.load(masked, path)
    with torch.no_grad():
        masked.norm.weight[1] = torch.inf
    weights.save(masked, path)
    with pytest.raises(ValueError, match=r"w\.safetensors holds NaN or infinity in norm\.weight: it is damaged"):
        weights.load(masked, path)


@pytest.mark.parametrize("kind", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(Tied(), path)
    save_file(load_file(path) | {"norm.bias": torch.ones(4).to(kind)}, path)
    with pytest.raises(ValueError, match=r"of another kind of number: norm\.bias is \w+, not F32"):
        weights.load(Tied(), path)


@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_a_damaged_file_says_so(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(Tied(), path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"w.safetensors (is missing|cannot be read .* copy the folder again, whole)"):
        weights.load(Tied(), path)


@pytest.mark.parametrize(
    "options",
    [
        {"lora": {"rank": 2}, "train": {"vision": False}},
        {"resampler": {"tokens": 3, "depth": 1}},
        {"quantize": "int8", "lora": {"rank": 2}},
        {"pretrained": "vision_only", "dtype": "bfloat16"},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_adapted_policy_acts_the_same_after_saving_and_loading(tmp_path: Path, options: dict[str, Any]) -> None:
    if "quantize" in options:
        pytest.importorskip("bitsandbytes")
    vla = small.policy(backbone=small.NANO | options)
    with torch.no_grad():
        for number, weight in enumerate(p for n, p in vla.named_parameters() if "lora_B" in n):
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    vla.save(tmp_path)
    again = VLA.load(tmp_path)
    observation = small.observation(small.batch(1, 1), 0, 0)
    one, other = (v.act([observation], [v.start("open it")]) for v in (vla, again))
    assert (one[0].actions == other[0].actions).all()
    trained = {n for n, p in vla.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in again.named_parameters() if p.requires_grad}
