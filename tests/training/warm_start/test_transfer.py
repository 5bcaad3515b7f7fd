"""A policy that is filled from another one predicts the same wherever its structure allows it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.decoders.denoising import DenoisingDecoder
from anyvla.policy import VLA
from tests.backbones.families import FAMILIES as BACKBONES
from tests.backbones.families.common import write_family
from tests.small import DECODERS, FUSERS, batch, fit_codec, windowed
from tests.training.warm_start.policies import (
    GRIPPER,
    JOINTS,
    PLACE,
    POSITION,
    ROTATION,
    dims,
    policy,
    rearrange,
    robot,
    statuses,
    transfer,
)

HEAD = {"name": "policy_head", "window": 3}
TOKENS = {"tokens": "bins", "lm_tokens": "bins"}  # decoder -> its representation
MOVED = [GRIPPER, ROTATION, POSITION]  # the old groups in another order, with a new one between them


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("decoder", "fuser"),
    [
        *((decoder, fuser) for decoder in ("regression", "diffusion", "flow", "tokens") for fuser in (1, 2, 3, 4)),
        *((decoder, fuser) for decoder in ("lm_tokens", "expert") for fuser in (0, 1)),
    ],
)
def test_the_same_structure_is_loaded_whole_and_predicts_the_same_bits(decoder: str, fuser: int) -> None:
    keys = {"decoder": decoder, "representation": TOKENS.get(decoder, "continuous"), "fuser": FUSERS[fuser]}
    history: Any = "none" if fuser < 2 else HEAD
    old, new = policy(history, **keys), policy(history, seed=1, **keys)
    data = batch(2, 1 if history == "none" else 3)
    assert not torch.equal(windowed(old, data), windowed(new, data))
    assert set(statuses(transfer(old, new)).values()) == {"loaded"}
    assert torch.equal(windowed(old, data), windowed(new, data))


@pytest.mark.parametrize("representation", ["fast", "vq"])
def test_a_codec_of_the_same_files_keeps_its_tokens(representation: str, tmp_path: Path) -> None:
    folder = fit_codec(representation, tmp_path / "codec")
    old, new = (policy(decoder="tokens", representation=representation, codec=folder, seed=s) for s in (0, 1))
    assert set(statuses(transfer(old, new)).values()) == {"loaded"}
    assert torch.equal(windowed(old, batch(2, 1)), windowed(new, batch(2, 1)))


@pytest.mark.parametrize("fuser", range(4))
def test_regression_predicts_the_same_on_dims_and_steps_that_both_have(fuser: int) -> None:
    history: Any = "none" if fuser < 2 else HEAD
    old = policy(history, FUSERS[fuser])
    new = policy(history, FUSERS[fuser], robots=[robot(MOVED, [JOINTS, PLACE])], chunk=7, seed=1)
    transfer(old, new)
    data = batch(2, 1 if history == "none" else 3)
    there, here = windowed(old, data), windowed(new, rearrange(data, old, new, 7))
    for name in ("position", "gripper"):
        close(here[:, :, :4, dims(new, name)], there[..., dims(old, name)])


def test_a_separate_mlp_of_the_gripper_keeps_its_columns_too() -> None:
    separate = {**DECODERS["regression"], "gripper_mlp": True}
    old = policy(decoder=separate)
    new = policy(decoder=separate, robots=[robot(MOVED)], chunk=2, seed=1)
    transfer(old, new)
    data = batch(2, 1)
    there, here = windowed(old, data), windowed(new, rearrange(data, old, new, 2))
    for name in ("position", "gripper"):
        close(here[..., dims(new, name)], there[:, :, :2, dims(old, name)])


@pytest.mark.parametrize("decoder", ["flow", "diffusion", "expert"])
def test_denoisers_predict_the_same_on_dims_in_another_order(decoder: str) -> None:
    old = policy(decoder=decoder)
    new = policy(decoder=decoder, robots=[robot(MOVED, [JOINTS, PLACE])], seed=1)
    transfer(old, new)
    data = batch(2, 1)
    moved, generator = rearrange(data, old, new), torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 4, generator=generator)
    wider = torch.randn(2, 4, 7, generator=generator)
    wider[..., dims(new, "position", "gripper")] = noisy[..., dims(old, "position", "gripper")]
    time = torch.tensor([50, 3]) if decoder == "diffusion" else torch.tensor([0.9, 0.2])
    found = []
    with torch.inference_mode():
        for vla, windows, chunk in ((old, data, noisy), (new, moved, wider)):
            assert isinstance(vla.decoder, DenoisingDecoder)
            found.append(vla.decoder.predict(vla.read(windows), chunk, time))
    close(found[1][..., dims(new, "position", "gripper")], found[0][..., dims(old, "position", "gripper")])


@pytest.mark.parametrize("decoder", TOKENS)
def test_token_decoders_write_the_same_first_steps_of_a_longer_chunk(decoder: str) -> None:
    keys = {"decoder": decoder, "representation": "bins"}
    old, new = policy(**keys), policy(chunk=6, seed=1, **keys)
    transfer(old, new)
    data = batch(3, 1)
    assert torch.equal(windowed(new, rearrange(data, old, new, 6))[:, :, :4], windowed(old, data))


def test_a_longer_window_keeps_the_positions_of_its_first_steps() -> None:
    gpt = FUSERS[3]
    old, new = policy(HEAD, gpt), policy({**HEAD, "window": 5}, gpt, seed=1)
    plan = transfer(old, new)
    assert statuses(plan)["fuser.position"] == "re-mapped"
    close(windowed(new, batch(2, 3)), windowed(old, batch(2, 3)))


def test_more_readouts_change_nothing_at_first() -> None:
    old, new = policy(readouts=1), policy(readouts=3, seed=1)
    assert statuses(transfer(old, new))["queries"] == "re-mapped"
    close(windowed(new, batch(2, 1)), windowed(old, batch(2, 1)))


def test_proprio_that_is_added_changes_nothing_at_first() -> None:
    old, new = policy(proprio="none"), policy(proprio="fuser", seed=1)
    transfer(old, new)
    close(windowed(new, batch(2, 1)), windowed(old, batch(2, 1)))


def test_one_of_two_robots_keeps_its_dims() -> None:
    two = [robot([POSITION, GRIPPER], [PLACE]), robot([ROTATION, POSITION], [JOINTS], "other")]
    old, new = policy(robots=two), policy(robots=[two[1]], seed=1)
    transfer(old, new)
    data = batch(2, 1)
    windows = [
        rearrange(dataclasses.replace(data, robots=data.robots + number), policy(), vla)
        for vla, number in ((old, 1), (new, 0))
    ]
    with torch.inference_mode():
        there, here = (vla.decoder.sample(vla.read(of)) for vla, of in zip((old, new), windows, strict=True))
    names = ("rotation", "position")
    close(here[..., dims(new, *names)], there[..., dims(old, *names)])


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_family(BACKBONES["llava"], tmp_path_factory.mktemp("llava"))
    return {"name": "auto", "path": str(folder), "prompt": "do {instruction}"}


def test_weights_in_the_other_precision_are_converted(llava: dict[str, Any]) -> None:
    old, new = policy(backbone=llava), policy(backbone={**llava, "dtype": "bfloat16"}, seed=1)
    assert set(statuses(transfer(old, new)).values()) == {"loaded"}
    weight = "backbone.model.lm_head.weight"
    assert torch.equal(new.state_dict()[weight], old.state_dict()[weight].bfloat16())


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_a_float_checkpoint_fills_a_quantized_backbone(llava: dict[str, Any], to: str) -> None:
    pytest.importorskip("bitsandbytes")
    old = policy(backbone=llava)
    with torch.no_grad():
        for weight in old.backbone.parameters():
            weight.mul_(0.7)  # a checkpoint that is not the model at its path
    small = {**llava, "quantize": to}
    new, wanted = policy(backbone=small, seed=1), policy(backbone=small)
    assert {s.status for s in transfer(old, new).steps} == {"loaded"}
    data = batch(2, 1)
    there, here = windowed(old, data), windowed(new, data)
    assert (here - there).abs().mean() < (windowed(wanted, data) - there).abs().mean() / 2
    again = policy(backbone=small, seed=2)
    transfer(new, again)  # quantized weights as they are
    assert torch.equal(windowed(again, data), here)


def test_a_float_checkpoint_fills_a_quantized_backbone_below_adapters(llava: dict[str, Any]) -> None:
    pytest.importorskip("bitsandbytes")
    old = policy(backbone=llava)
    small = {**llava, "quantize": "int8", "lora": {"rank": 2}}
    new, wanted = policy(backbone=small, seed=1), policy(backbone={**llava, "quantize": "int8"}, seed=1)
    with torch.no_grad():
        for name, weight in new.named_parameters():
            weight.mul_(0 if "lora_B" in name else 1)
    plan = transfer(old, new)
    assert {s.status for s in plan.steps if "lora_" not in s.name} == {"loaded"}
    transfer(old, wanted)
    torch.testing.assert_close(windowed(new, batch(2, 1)), windowed(wanted, batch(2, 1)))


def make_lora(backbone: dict[str, Any], rank: int) -> VLA:
    vla = policy(backbone={**backbone, "lora": {"rank": rank, "alpha": 3}})
    with torch.no_grad():
        for name, weight in vla.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(rank))
    return vla


def test_the_same_adapters_are_loaded_as_adapters(llava: dict[str, Any]) -> None:
    old = make_lora(llava, 2)
    new = policy(backbone={**llava, "lora": {"rank": 2, "alpha": 3}}, seed=1)
    assert set(statuses(transfer(old, new)).values()) == {"loaded"}
    assert torch.equal(windowed(new, batch(2, 1)), windowed(old, batch(2, 1)))
