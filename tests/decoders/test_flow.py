from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import PI0Config
from transformers.models.pi0.modeling_pi0 import PI0ForConditionalGeneration

from anyvla.config import ConfigError, build
from anyvla.decoders.base import DecoderInput
from anyvla.decoders.flow import FlowDecoder
from anyvla.decoders.flow_matching import ALPHA, FIRST, integrate, interpolate, sample_times
from anyvla.robot.chunks import pad_with_last_action
from tests.decoders.denoising import SPACE, A, C, N, data, fit, generators, small


def noise_and_time(count, seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, N, A, generator=g), sample_times("uniform", count, g)


# The path and the integration


@pytest.mark.parametrize(("kind", "power"), [("beta", 1.5), ("uniform", 1.0)])
def test_times_have_the_distribution_of_their_name(kind, power):
    t = sample_times(kind, 100_000, torch.Generator().manual_seed(0))
    assert t.min() >= FIRST
    assert t.max() <= 1
    u = ((t - FIRST) / (1 - FIRST)).double().sort().values
    rank = torch.arange(1, len(u) + 1) / len(u)
    assert (u**power - rank).abs().max() < 1.95 / len(u) ** 0.5  # Kolmogorov-Smirnov, p = 0.001
    mean, variance = power / (power + 1), power / ((power + 1) ** 2 * (power + 2))
    assert u.mean() == pytest.approx(mean, abs=0.005)
    assert u.var() == pytest.approx(variance, abs=0.002)


def test_beta_times_agree_with_the_configuration_of_pi0():
    config = PI0Config()
    assert (config.time_sampling_beta_alpha, config.time_sampling_beta_beta) == (ALPHA, 1)
    assert (config.time_sampling_scale, config.time_sampling_offset) == pytest.approx((1 - FIRST, FIRST))


class Pi0(SimpleNamespace):
    """The attributes that `PI0ForConditionalGeneration` uses, with the given velocity in place of its network."""

    def __init__(self, velocity):
        cache = SimpleNamespace(get_seq_length=lambda: 0, crop=lambda length: None)
        super().__init__(
            config=SimpleNamespace(chunk_size=N, max_action_dim=A, loss_reduction="none", return_dict=True),
            velocity=velocity,
            embed_action_time=lambda state, noise, time: velocity(noise, time),
            action_out_proj=lambda hidden: hidden,
            model=self.run,
        )
        self.run.embed_prefix = lambda *args: torch.zeros(1, 1, 1)
        self.run.vlm = lambda **keys: SimpleNamespace(past_key_values=cache)

    class run:
        def __new__(cls, action_embeds, **keys):
            return SimpleNamespace(
                last_hidden_state=action_embeds, past_key_values=None, hidden_states=None, attentions=None
            )

    def __call__(self, **keys):
        return PI0ForConditionalGeneration.forward(self, **keys)


def bent(x, t):
    return torch.sin(3 * x) * t[:, None, None] + x.roll(1, -1)


def test_path_and_loss_agree_with_pi0_in_transformers():
    _, actions, _ = data(5)
    noise, time = noise_and_time(5)
    noisy, velocity = interpolate(actions, noise, time)
    out = Pi0(bent)(state=torch.zeros(5, 1), noise=noise, timestep=time, actions=actions)
    torch.testing.assert_close((velocity - bent(noisy, time)).square(), out.loss)


def test_euler_agrees_with_pi0_in_transformers():
    noise, _ = noise_and_time(5)
    ids, pixels = torch.zeros(5, 1, dtype=torch.long), torch.zeros(5, 1)
    theirs = PI0ForConditionalGeneration.sample_actions(Pi0(bent), torch.zeros(5, 1), ids, pixels, noise, num_steps=7)
    torch.testing.assert_close(integrate(bent, noise, 7), theirs)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_of_an_integration_falls_with_its_order(method, order):
    noise, _ = noise_and_time(5)
    exact = noise * torch.exp(-torch.sin(torch.tensor(1.0)))  # of dx/dt = x cos(t), from t = 1 to 0

    def error(steps):
        there = integrate(lambda x, t: x * t.cos()[:, None, None], noise, steps, method)
        return float((there - exact).abs().max())

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.15)
    assert error(16) / error(32) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_straight_path_needs_one_step(method):
    _, actions, _ = data(5)
    noise, _ = noise_and_time(5)
    torch.testing.assert_close(integrate(lambda x, t: noise - actions, noise, 1, method), actions)


def test_an_integration_is_float32_for_a_velocity_of_any_type():
    end = integrate(lambda x, t: torch.ones_like(x, dtype=torch.bfloat16), torch.full((1, N, A), 256.0), 1024)
    torch.testing.assert_close(end, torch.full((1, N, A), 255.0))  # in bfloat16, 256 - 1 / 1024 is 256


# The decoder


def test_one_batch_is_learned_and_sampled_back():
    decoder = small(FlowDecoder, trained=False, layers=2, samples=4, time="uniform", method="heun", steps=5)
    inputs, actions, mask = data(4)
    assert fit(decoder, inputs, actions, mask, 500) < 0.05  # 1.3 at the start
    with torch.no_grad():
        sampled = decoder.sample(inputs, generators(4))
    assert (sampled - actions)[mask].square().mean().sqrt() < 0.05


def test_two_modes_are_both_sampled_and_their_mean_is_not():
    decoder = small(FlowDecoder, trained=False, samples=32, steps=20)
    inputs, actions, mask = DecoderInput(torch.zeros(1, C)), torch.zeros(1, N, A), torch.ones(1, N, dtype=torch.bool)
    fit(decoder, inputs, actions, mask, 500, modes=torch.full((N, A), 0.5))
    with torch.no_grad():
        sampled = decoder.sample(DecoderInput(torch.zeros(100, C)), generators(100))
    side = sampled.mean((1, 2)).sign()
    assert 25 < (side > 0).sum() < 75
    assert (sampled - 0.5 * side[:, None, None]).abs().median() < 0.15


def test_the_loss_is_the_mean_over_valid_elements_of_padded_chunks():
    decoder, (inputs, actions, mask) = small(FlowDecoder), data(5)
    noise, time = noise_and_time(10)
    loss = decoder.loss_at(inputs, actions, mask, noise, time)
    errors = []
    for rows in (slice(0, 5), slice(5, 10)):
        noisy, velocity = interpolate(pad_with_last_action(actions, mask), noise[rows], time[rows])
        predicted = decoder.network(noisy, time[rows], decoder.network.condition(inputs.context))
        errors.append((predicted - velocity).square()[mask])
    both = torch.stack(errors)
    torch.testing.assert_close(loss.value, both.mean())
    assert loss.count == mask.sum() * A
    torch.testing.assert_close(loss.parts["position"], both[..., :2].mean().detach())
    torch.testing.assert_close(loss.parts["gripper"], both[..., 2].mean().detach())


def test_splitting_a_batch_changes_no_loss():
    decoder, (inputs, actions, mask) = small(FlowDecoder), data(5)
    noise, time = noise_and_time(5)
    whole = decoder.loss_at(inputs, actions, mask, noise, time)
    parts = [
        decoder.loss_at(DecoderInput(inputs.context[s]), actions[s], mask[s], noise[s], time[s])
        for s in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)
    assert sum(p.count for p in parts) == whole.count


def test_padding_changes_neither_loss_nor_gradients():
    decoder, (inputs, actions, mask) = small(FlowDecoder, samples=2), data(5)
    results = []
    for padding in (0.0, 7.0):
        decoder.zero_grad()
        loss = decoder.loss(inputs, actions.masked_fill(~mask[..., None], padding), mask, generators(5))
        loss.value.backward()
        results.append([loss.value.detach(), *(p.grad.clone() for p in decoder.parameters())])
    torch.testing.assert_close(results[0], results[1])


def test_without_a_valid_element_the_loss_is_zero():
    decoder, (inputs, actions, mask) = small(FlowDecoder), data(3)
    loss = decoder.loss(inputs, actions, torch.zeros_like(mask))
    assert loss.value == 0
    assert loss.count == 0


def test_a_sample_is_the_sum_of_the_steps_from_the_noise_of_its_generator():
    decoder, (inputs, _, _) = small(FlowDecoder, steps=4), data(2)
    x = torch.stack([torch.randn(N, A, generator=g) for g in generators(2)])
    with torch.no_grad():
        condition = decoder.network.condition(inputs.context)
        for time in (1.0, 0.75, 0.5, 0.25):
            x = x - 0.25 * decoder.network(x, torch.full((2,), time), condition)
        torch.testing.assert_close(decoder.sample(inputs, generators(2)), x)


def test_a_sample_depends_on_its_context_and_generator_only():
    decoder, (inputs, _, _) = small(FlowDecoder), data(4)
    with torch.no_grad():
        together = decoder.sample(inputs, generators(4))
        torch.testing.assert_close(decoder.sample(inputs, generators(4)), together)
        for row in range(4):
            alone = decoder.sample(DecoderInput(inputs.context[row : row + 1]), generators(1, first=row))
            torch.testing.assert_close(alone[0], together[row])
        assert (decoder.sample(inputs, generators(4, first=9)) - together).abs().max() > 0.1
        elsewhere = decoder.sample(DecoderInput(inputs.context.roll(1, 0)), generators(4))
        assert (elsewhere - together).abs().max() > 0.01


@pytest.mark.parametrize(("method", "calls"), [("euler", 5), ("heun", 9)])
def test_the_context_is_read_once_a_chunk(method, calls):
    decoder, (inputs, _, _) = small(FlowDecoder, method=method, steps=5), data(2)
    counted = {"context": 0, "network": 0}
    decoder.network.context.register_forward_hook(lambda *_: counted.update(context=counted["context"] + 1))
    decoder.network.register_forward_hook(lambda *_: counted.update(network=counted["network"] + 1))
    decoder.sample(inputs)
    assert counted == {"context": 1, "network": calls}


def test_in_bfloat16_losses_and_chunks_are_float32():
    decoder, (inputs, actions, mask) = small(FlowDecoder), data(4)
    exact = decoder.sample(inputs, generators(4)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = decoder.sample(inputs, generators(4)).detach()
    lowered = decoder.to(torch.bfloat16)
    half = replace(inputs, context=inputs.context.bfloat16())
    sampled = lowered.sample(half, generators(4)).detach()
    assert {mixed.dtype, sampled.dtype, lowered.loss(half, actions, mask).total.dtype} == {torch.float32}
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(sampled, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 must be even, and a multiple of heads 4"),
        ({"width": 15, "heads": 3}, "width 15 must be even"),
        ({"steps": 0}, "'steps': .*greater than or equal to 1.*given: 0"),
        ({"method": "rk4"}, "'method': .*'euler' or 'heun'.*given: 'rk4'"),
        ({"time": "normal"}, "'time': .*'beta' or 'uniform'"),
        ({"step": 4}, "unknown key 'step': did you mean 'steps'"),
    ],
)
def test_invalid_options_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(FlowDecoder.Config, keys)


def test_the_default_network_has_the_documented_size():
    decoder = small(FlowDecoder, width=256, layers=4, heads=4)
    inputs = sum(p.numel() for p in decoder.network.context.parameters())
    assert sum(p.numel() for p in decoder.parameters()) - inputs == pytest.approx(5.0e6, rel=0.02)
    assert SPACE.size == A
