import pytest
import torch
from small import embodiment

from anyvla.config import ConfigError, build
from anyvla.heads.fusers import GPTFuser, LSTMFuser
from anyvla.heads.regression import RegressionDecoder

SPACE = embodiment().action


def decoder(**keys):
    torch.manual_seed(0)
    return RegressionDecoder(build(RegressionDecoder.Config, {"hidden": 16, **keys}), 8, 3, SPACE)


def data():
    g = torch.Generator().manual_seed(1)
    context = torch.randn(2, 2, 8, generator=g)
    actions = torch.rand(2, 2, 3, 4, generator=g) * 2 - 1
    return context, actions, torch.rand(2, 2, 3, generator=g) > 0.3


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
    torch.testing.assert_close(loss.value, distance(head(context) - actions)[mask].mean())
    assert set(loss.parts) == {"position", "gripper"}


def test_a_gripper_under_bce_is_open_or_closed_and_weighted():
    head, (context, actions, mask) = decoder(gripper="bce", gripper_weight=0.01), data()
    assert set(head.sample(context[:, 0])[..., 3].flatten().tolist()) <= {-1.0, 1.0}
    predicted = head(context)
    position = (predicted - actions).abs()[..., :3][mask].sum()
    logits, closed = predicted[..., 3][mask], (actions[..., 3][mask] > 0).float()
    gripper = torch.nn.functional.binary_cross_entropy_with_logits(logits, closed, reduction="sum")
    torch.testing.assert_close(head.loss(context, actions, mask).total, position + 0.01 * gripper)


def test_without_a_valid_element_the_loss_is_zero():
    head, (context, actions, mask) = decoder(), data()
    assert head.loss(context, actions, torch.zeros_like(mask)).value == 0


@pytest.mark.parametrize("make", [LSTMFuser, GPTFuser])
def test_fusers_never_see_later_steps(make):
    sizes = {"hidden": 16, "layers": 2} if make is LSTMFuser else {"width": 16, "layers": 2, "heads": 2}
    torch.manual_seed(0)
    fuser = make(build(make.Config, sizes), 8, 4).eval()
    features = torch.randn(1, 4, 8)
    changed = features.clone()
    changed[:, 2:] += 1
    one, other = fuser(features), fuser(changed)
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert (one[:, 2:] - other[:, 2:]).abs().max() > 1e-4
    assert one.shape[-1] == fuser.width


def test_gpt_heads_must_divide_its_width():
    with pytest.raises(ConfigError, match="width 10 must be a multiple of heads 4"):
        build(GPTFuser.Config, {"width": 10, "heads": 4})
