from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyvla.config import ConfigError, build
from anyvla.decoders.base import DecoderSpec
from anyvla.decoders.regression import RegressionDecoder
from anyvla.fusers import GPTFuser, IdentityFuser, LSTMFuser, MinGRUFuser, MLPFuser, scan
from anyvla.robot.space import ActionSpace
from tests.decoders.token_parts import backbone

BACKBONE = backbone()  # regression does not read it

SMALL = {
    IdentityFuser: {},
    MLPFuser: {"widths": [16, 12]},
    LSTMFuser: {"hidden": 16, "layers": 2},
    GPTFuser: {"width": 16, "layers": 2, "heads": 2},
    MinGRUFuser: {"width": 16, "layers": 2},
}
OVER_TIME = [LSTMFuser, GPTFuser, MinGRUFuser]
RECURRENT = [LSTMFuser, MinGRUFuser]


def make_fuser(make, window=4, features=8):
    torch.manual_seed(0)
    return make(build(make.Config, SMALL[make]), features, window).eval()


@pytest.mark.parametrize("make", SMALL)
def test_a_step_does_not_depend_on_later_steps(make):
    fuse, features = make_fuser(make), torch.randn(2, 4, 8)
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
    fuse, features = make_fuser(make), torch.randn(2, 4, 8, requires_grad=True)
    fuse(features)[:, -1, 0].sum().backward()
    assert (features.grad.abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("make", SMALL)
def test_the_beginning_of_a_window_equals_a_shorter_window(make):
    """So the k-th step of a session equals the k-th step of a padded training window."""
    fuse, features = make_fuser(make), torch.randn(2, 4, 8)
    whole = fuse(features)
    for k in range(1, 5):
        torch.testing.assert_close(fuse(features[:, :k]), whole[:, :k])


@pytest.mark.parametrize("make", SMALL)
def test_windows_of_a_batch_do_not_affect_each_other(make):
    fuse, features = make_fuser(make), torch.randn(3, 4, 8)
    torch.testing.assert_close(fuse(features[1:2]), fuse(features)[1:2])
    assert make_fuser(make, window=1)(features[:, :1]).shape == (3, 1, fuse.width)


def test_the_mlp_is_linear_layers_with_activations_between_them():
    fuse, features = make_fuser(MLPFuser), torch.randn(2, 4, 8)
    first, last = (m for m in fuse.mlp if isinstance(m, nn.Linear))
    torch.testing.assert_close(fuse(features), last(F.gelu(first(features))))


def test_the_gpt_is_pre_norm_causal_attention_over_learned_positions():
    fuse, features = make_fuser(GPTFuser), torch.randn(4, 8)
    with torch.no_grad():
        for weight in fuse.parameters():
            weight += torch.randn(weight.shape) * 0.2
        x = fuse.enter(features) + fuse.position
        for layer in fuse.layers:
            q, k, v = layer.qkv(layer.norm_attention(x)).chunk(3, -1)
            heads = []
            for part in (slice(0, 8), slice(8, 16)):
                scores = q[:, part] @ k[:, part].T / 8**0.5
                hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
                heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, part])
            x = x + layer.out(torch.cat(heads, -1))
            up, _, down = layer.mlp
            x = x + down(F.gelu(up(layer.norm_mlp(x))))
        torch.testing.assert_close(fuse(features[None])[0], fuse.norm(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", OVER_TIME)
def test_the_order_of_earlier_steps_matters(make):
    fuse, features = make_fuser(make), torch.randn(1, 4, 8)
    swapped = fuse(features[:, [1, 0, 2, 3]])
    assert (fuse(features)[:, 3] - swapped[:, 3]).abs().max() > 1e-5


def test_the_forget_gates_of_an_lstm_begin_open():
    """The biases of its forget gates are 1 (Jozefowicz et al., 2015), all others 0; its recurrence is orthogonal."""
    fuse = make_fuser(LSTMFuser)
    for layer in range(2):
        _input, forget, _cell, _output = (fuse.lstm.get_parameter(f"bias_ih_l{layer}")).chunk(4)
        assert forget.eq(1).all()
        assert all(part.eq(0).all() for part in (_input, _cell, _output))
        assert fuse.lstm.get_parameter(f"bias_hh_l{layer}").eq(0).all()
        for gate in fuse.lstm.get_parameter(f"weight_hh_l{layer}").chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)


def test_the_residual_layers_of_the_gpt_begin_small():
    """GPT-2 divides its 0.02 by the square root of the number of residual layers, two for each block."""
    torch.manual_seed(0)
    fuse = GPTFuser(build(GPTFuser.Config, {"width": 64, "layers": 8, "heads": 2}), 8, 4)
    for layer in fuse.layers:
        for last in (layer.out, layer.mlp[2]):
            assert last.weight.detach().std().item() == pytest.approx(0.02 / 4, rel=0.1)
            assert last.bias.eq(0).all()


def test_invalid_options_are_refused():
    with pytest.raises(ConfigError, match="width 10 must be a multiple of heads 4"):
        build(GPTFuser.Config, {"width": 10, "heads": 4})
    with pytest.raises(ConfigError, match="'widths': Tuple should have at least 1 item"):
        build(MLPFuser.Config, {"widths": []})


@pytest.mark.parametrize("make", RECURRENT)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_recurrent_fuser_gives_the_same_contexts_step_by_step(make, steps):
    fuse, features = make_fuser(make), torch.randn(3, steps, 8)
    whole = fuse(features)
    state = torch.stack([fuse.start()] * 3)
    for k in range(steps):
        before, kept = state.clone(), state
        context, state = fuse.step(features[:, k], state)
        torch.testing.assert_close(context, whole[:, k], atol=1e-5, rtol=1e-5)
        assert torch.equal(before, kept)  # another session may have the same one
        assert state.shape == before.shape


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13])
def test_a_scan_is_the_recurrence(steps):
    keep, added = torch.rand(2, steps, 4), torch.randn(2, steps, 4)
    state, expected = torch.zeros(2, 4), []
    for k in range(steps):
        state = keep[:, k] * state + added[:, k]
        expected.append(state)
    torch.testing.assert_close(scan(keep, added), torch.stack(expected, 1))


def test_the_gates_of_a_mingru_begin_at_the_inverse_of_times_up_to_the_longest():
    """Evenly on a logarithmic scale, so that some units keep an input for the whole of a long episode."""
    torch.manual_seed(0)
    fuse = MinGRUFuser(build(MinGRUFuser.Config, {"width": 512, "layers": 1, "longest": 100}), 8, 4)
    times = 1 / fuse.layers[0].gate.bias.detach().sigmoid()
    assert 2 <= times.min() < 2.2
    assert 90 < times.max() <= 101
    assert (times - 1).log().mean().item() == pytest.approx(0.5 * torch.tensor(100.0).log().item(), rel=0.1)


def test_a_mingru_remembers_an_early_step_at_full_length():
    torch.manual_seed(0)
    fuse = MinGRUFuser(build(MinGRUFuser.Config, {"width": 64, "layers": 2}), 8, 1)
    features = torch.randn(1, 100, 8, requires_grad=True)
    fuse(features)[0, -1, 0].backward()
    assert features.grad[0, 0].abs().max() > 1e-3 * features.grad[0, -1].abs().max()


@pytest.mark.parametrize(("make", "millions"), [(MLPFuser, 6.6), (LSTMFuser, 41), (GPTFuser, 106), (MinGRUFuser, 52)])
def test_the_defaults_have_the_sizes_of_the_paper(make, millions):
    pose = {"groups": [{"name": "pose", "size": 6}]}
    pose["groups"].append({"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1})
    with torch.device("meta"):
        fuse = make(make.Config(), 2048, 16)
        setting = DecoderSpec(fuse.width, 10, build(ActionSpace, pose), None, BACKBONE)
        decoder = RegressionDecoder(RegressionDecoder.Config(gripper_mlp=True), setting)
    count = sum(p.numel() for part in (fuse, decoder) for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("make", OVER_TIME)
def test_contexts_at_full_depth_differ_between_inputs_from_the_first_step(make):
    torch.manual_seed(0)
    depth = {"hidden": 128, "layers": 4} if make is LSTMFuser else {"width": 128, "layers": 8}
    depth = {"width": 128, "layers": 4} if make is MinGRUFuser else depth
    fuse = make(build(make.Config, depth), 256, 8)
    features = torch.randn(16, 8, 256)
    context = fuse(features)
    spread = context.std(0).mean(1)  # (W,)
    assert (spread > 0.05).all(), spread
    assert (spread < 2).all(), spread


@pytest.mark.wrong_types
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_an_lstm_runs_in_float32_under_autocast_on_every_device(device, monkeypatch):
    """Under autocast cuDNN runs one in float16, and most gradients become 0."""
    fuse, entered = make_fuser(LSTMFuser), []

    class FeaturesOnDevice:
        """Features that claim to be on another device."""

        def __init__(self):
            self.device = torch.device(device)

        def to(self, dtype):
            assert dtype == torch.float32
            return torch.ones(1, 4, 8)

    class RecordedAutocast(torch.autocast):
        def __init__(self, device_type, **keys):
            entered.append((device_type, keys))
            super().__init__("cpu", **keys)

    monkeypatch.setattr(torch, "autocast", RecordedAutocast)
    assert fuse(FeaturesOnDevice()).dtype == torch.float32
    assert entered == [(device, {"enabled": False})]
