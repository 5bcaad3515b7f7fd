from __future__ import annotations

import pytest
import torch
from torch import nn

from anyvla.config import ConfigError, build
from anyvla.decoders.base import DecoderInput, DecoderSpec
from anyvla.decoders.regression import RegressionDecoder
from anyvla.robot.space import ActionSpace
from tests.decoders.token_parts import backbone
from tests.small import embodiment

SPACE = embodiment().action
BACKBONE = backbone()  # this decoder does not read it


def make_decoder(**keys):
    torch.manual_seed(0)
    spec = DecoderSpec(context_width=8, chunk=3, space=SPACE, codec=None, backbone=BACKBONE)
    return RegressionDecoder(build(RegressionDecoder.Config, {"hidden": 16, **keys}), spec)


def data():
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 8, generator=g)
    actions = torch.rand(4, 3, 4, generator=g) * 2 - 1
    return DecoderInput(inputs), actions, torch.rand(4, 3, generator=g) > 0.3


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("l1", lambda d: d.abs()),
        ("l2", lambda d: d**2),
        ("huber", lambda d: torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5)),
    ],
)
def test_the_loss_is_the_mean_over_valid_elements(name, distance):
    decoder, (inputs, actions, mask) = make_decoder(loss=name), data()
    loss = decoder.loss(inputs, actions, mask)
    torch.testing.assert_close(loss.value, distance(decoder(inputs.context) - actions)[mask].mean())
    assert set(loss.parts) == {"position", "gripper"}


def test_a_gripper_under_bce_is_open_or_closed_and_weighted():
    decoder, (inputs, actions, mask) = make_decoder(gripper="bce", gripper_weight=0.01), data()
    assert set(decoder.sample(inputs)[..., 3].flatten().tolist()) <= {-1.0, 1.0}
    predicted = decoder(inputs.context)
    position = (predicted - actions).abs()[..., :3][mask].sum()
    logits, closed = predicted[..., 3][mask], (actions[..., 3][mask] > 0).float()
    gripper = torch.nn.functional.binary_cross_entropy_with_logits(logits, closed, reduction="sum")
    torch.testing.assert_close(decoder.loss(inputs, actions, mask).total, position + 0.01 * gripper)


def test_under_bce_a_positive_logit_is_plus_one_when_acting_as_in_training():
    decoder, (inputs, _, _) = make_decoder(gripper="bce", layers=0), data()
    with torch.no_grad():
        decoder.mlp[0].weight.zero_()
        decoder.mlp[0].bias.view(3, 4)[:] = torch.tensor(
            [[0.3, -0.7, 4.0, 0.1], [0.3, -0.7, 4.0, -0.1], [0, 0, 0, -3.0]]
        )
    sampled = decoder.sample(inputs)[0]
    assert sampled[:, 3].tolist() == [1, -1, -1]
    torch.testing.assert_close(sampled[0, :3], torch.tensor([0.3, -0.7, 4.0]))  # neither decided nor clipped
    open_, closed = torch.ones(4, 3, 4), -torch.ones(4, 3, 4)
    first = torch.tensor([[True, False, False]]).expand(4, -1)
    gripper = [decoder.loss(inputs, actions, first).parts["gripper"] for actions in (open_, closed)]
    # minus the logarithm of the logistic function of 0.1 and of -0.1
    torch.testing.assert_close(torch.stack(gripper), torch.tensor([0.644397, 0.744397]), atol=1e-5, rtol=0)


def test_the_mlp_is_linear_layers_with_activations_between_them():
    decoder, (inputs, _, _) = make_decoder(hidden=[16, 12]), data()
    one, two, last = (m for m in decoder.mlp if isinstance(m, nn.Linear))
    gelu = torch.nn.functional.gelu
    expected = last(gelu(two(gelu(one(inputs.context))))).view(4, 3, 4)
    torch.testing.assert_close(decoder(inputs.context), expected)
    torch.testing.assert_close(decoder.sample(inputs), expected)


def test_each_part_of_the_loss_is_the_mean_of_its_own_dims():
    decoder, (inputs, actions, mask) = make_decoder(gripper_weight=0.5), data()
    error, loss = (decoder(inputs.context) - actions).abs()[mask], decoder.loss(inputs, actions, mask)
    torch.testing.assert_close(loss.parts["position"], error[:, :3].mean().detach())
    torch.testing.assert_close(loss.parts["gripper"], error[:, 3].mean().detach())
    torch.testing.assert_close(loss.total, error[:, :3].sum() + 0.5 * error[:, 3].sum())
    assert loss.count == mask.sum() * 4


def test_without_a_valid_element_the_loss_is_zero():
    decoder, (inputs, actions, mask) = make_decoder(), data()
    assert decoder.loss(inputs, actions, torch.zeros_like(mask)).value == 0


def test_a_gripper_with_a_separate_mlp_keeps_its_dims():
    middle = build(
        ActionSpace,
        {
            "groups": [
                {"name": "position", "size": 2},
                {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1},
                {"name": "rotation", "size": 3},
            ]
        },
    )
    torch.manual_seed(0)
    config = build(RegressionDecoder.Config, {"hidden": [16, 8], "gripper_mlp": True})
    decoder = RegressionDecoder(
        config, DecoderSpec(context_width=8, chunk=3, space=middle, codec=None, backbone=BACKBONE)
    )
    inputs = torch.randn(5, 8)
    chunk = decoder(inputs)  # (5, 3, 6)
    torch.testing.assert_close(chunk[..., 2].flatten(1), decoder.gripper(inputs))
    torch.testing.assert_close(chunk[..., [0, 1, 3, 4, 5]].flatten(1), decoder.mlp(inputs))
    joints = build(ActionSpace, {"groups": [{"name": "joints", "size": 3}]})
    spec = DecoderSpec(context_width=8, chunk=3, space=joints, codec=None, backbone=BACKBONE)
    with pytest.raises(ConfigError, match="of these 3 action dims 0 are a gripper: leave gripper_mlp out"):
        RegressionDecoder(config, spec)


def test_hidden_layers_of_one_width_or_of_each():
    one, listed = make_decoder(hidden=16, layers=2), make_decoder(hidden=[16, 16])
    assert [p.shape for p in one.parameters()] == [p.shape for p in listed.parameters()]
    assert len(make_decoder(hidden=16, layers=0).mlp) == 1
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        make_decoder(hidden=[16, 0])
