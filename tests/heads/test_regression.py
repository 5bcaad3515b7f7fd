from __future__ import annotations

import pytest
import torch
from small import embodiment
from torch import nn

from anyvla.config import build
from anyvla.heads.base import Context, Setting
from anyvla.heads.regression import RegressionDecoder

SPACE = embodiment().action


def decoder(**keys):
    torch.manual_seed(0)
    setting = Setting(context=8, chunk=3, space=SPACE, codec=None, backbone=nn.Identity())
    return RegressionDecoder(build(RegressionDecoder.Config, {"hidden": 16, **keys}), setting)


def data():
    g = torch.Generator().manual_seed(1)
    context = torch.randn(4, 8, generator=g)
    actions = torch.rand(4, 3, 4, generator=g) * 2 - 1
    return Context(context), actions, torch.rand(4, 3, generator=g) > 0.3


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("l1", lambda d: d.abs()),
        ("l2", lambda d: d**2),
        ("huber", lambda d: torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5)),
    ],
)
def test_the_loss_is_the_mean_over_valid_elements(name, distance):
    head, (context, actions, mask) = decoder(loss=name), data()
    loss = head.loss(context, actions, mask)
    torch.testing.assert_close(loss.value, distance(head(context.vector) - actions)[mask].mean())
    assert set(loss.parts) == {"position", "gripper"}


def test_a_gripper_under_bce_is_open_or_closed_and_weighted():
    head, (context, actions, mask) = decoder(gripper="bce", gripper_weight=0.01), data()
    assert set(head.sample(context)[..., 3].flatten().tolist()) <= {-1.0, 1.0}
    predicted = head(context.vector)
    position = (predicted - actions).abs()[..., :3][mask].sum()
    logits, closed = predicted[..., 3][mask], (actions[..., 3][mask] > 0).float()
    gripper = torch.nn.functional.binary_cross_entropy_with_logits(logits, closed, reduction="sum")
    torch.testing.assert_close(head.loss(context, actions, mask).total, position + 0.01 * gripper)


def test_without_a_valid_element_the_loss_is_zero():
    head, (context, actions, mask) = decoder(), data()
    assert head.loss(context, actions, torch.zeros_like(mask)).value == 0
