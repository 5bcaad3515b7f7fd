from __future__ import annotations

import pytest
import torch
from torch import nn

from anyvla.actions.space import ActionSpace
from anyvla.config import ConfigError, build
from anyvla.heads.base import Setting
from anyvla.heads.fusers import GPTFuser, IdentityFuser, LSTMFuser, MLPFuser
from anyvla.heads.regression import RegressionDecoder

SMALL = {
    IdentityFuser: {},
    MLPFuser: {"widths": [16, 12]},
    LSTMFuser: {"hidden": 16, "layers": 2},
    GPTFuser: {"width": 16, "layers": 2, "heads": 2},
}
OVER_TIME = [LSTMFuser, GPTFuser]


def fuser(make, window=4, features=8):
    torch.manual_seed(0)
    return make(build(make.Config, SMALL[make]), features, window).eval()


@pytest.mark.parametrize("make", SMALL)
def test_a_step_never_depends_on_later_ones(make):
    fuse, features = fuser(make), torch.randn(2, 4, 8)
    whole = fuse(features)
    assert whole.shape == (2, 4, fuse.width)
    for k in range(4):
        changed = features.clone()
        changed[:, k] += 1
        other = fuse(changed)
        torch.testing.assert_close(whole[:, :k], other[:, :k])
        assert (whole[:, k] - other[:, k]).abs().max() > 1e-4
        if not make.fuses_time:
            torch.testing.assert_close(whole[:, k + 1 :], other[:, k + 1 :])


@pytest.mark.parametrize("make", OVER_TIME)
def test_a_later_step_depends_on_each_earlier_one(make):
    fuse, features = fuser(make), torch.randn(2, 4, 8, requires_grad=True)
    fuse(features)[:, -1, 0].sum().backward()
    assert (features.grad.abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("make", SMALL)
def test_the_begin_of_a_window_is_read_as_a_shorter_window(make):
    """So a session that has seen k steps gives what the k-th step of a padded training window does."""
    fuse, features = fuser(make), torch.randn(2, 4, 8)
    whole = fuse(features)
    for k in range(1, 5):
        torch.testing.assert_close(fuse(features[:, :k]), whole[:, :k])


@pytest.mark.parametrize("make", SMALL)
def test_windows_of_a_batch_are_apart(make):
    fuse, features = fuser(make), torch.randn(3, 4, 8)
    torch.testing.assert_close(fuse(features[1:2]), fuse(features)[1:2])
    assert fuser(make, window=1)(features[:, :1]).shape == (3, 1, fuse.width)


def test_bad_options():
    with pytest.raises(ConfigError, match="width 10 must be a multiple of heads 4"):
        build(GPTFuser.Config, {"width": 10, "heads": 4})
    with pytest.raises(ConfigError, match="'widths': Tuple should have at least 1 item"):
        build(MLPFuser.Config, {"widths": []})


@pytest.mark.parametrize(("make", "millions"), [(MLPFuser, 6.6), (LSTMFuser, 41), (GPTFuser, 106)])
def test_the_defaults_are_the_heads_of_the_paper(make, millions):
    pose = {"groups": [{"name": "pose", "size": 6}]}
    pose["groups"].append({"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1})
    with torch.device("meta"):
        fuse = make(make.Config(), 2048, 16)
        setting = Setting(fuse.width, 10, build(ActionSpace, pose), None, nn.Identity())
        decoder = RegressionDecoder(RegressionDecoder.Config(gripper_mlp=True), setting)
    count = sum(p.numel() for part in (fuse, decoder) for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("make", OVER_TIME)
def test_at_full_depth_contexts_tell_inputs_apart_from_the_first_step_on(make):
    torch.manual_seed(0)
    depth = {"hidden": 128, "layers": 4} if make is LSTMFuser else {"width": 128, "layers": 8}
    fuse = make(build(make.Config, depth), 256, 8)
    features = torch.randn(16, 8, 256)
    context = fuse(features)
    spread = context.std(0).mean(1)  # (W,)
    assert (spread > 0.05).all(), spread
    assert (spread < 2).all(), spread


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_an_lstm_runs_in_its_own_precision_on_every_device(device, monkeypatch):
    """Under autocast cuDNN runs one in float16, and most gradients become 0."""
    fuse, entered = fuser(LSTMFuser), []

    class Elsewhere:
        """Features that say they are on another device."""

        def __init__(self):
            self.device = torch.device(device)

        def to(self, dtype):
            assert dtype == torch.float32
            return torch.ones(1, 4, 8)

    class Noted(torch.autocast):
        def __init__(self, device_type, **keys):
            entered.append((device_type, keys))
            super().__init__("cpu", **keys)

    monkeypatch.setattr(torch, "autocast", Noted)
    assert fuse(Elsewhere()).dtype == torch.float32
    assert entered == [(device, {"enabled": False})]
