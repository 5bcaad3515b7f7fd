import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import pytest
import torch

from anyvla.config import ConfigError, build
from anyvla.decoders.base import DecoderInput, sample_noise
from anyvla.decoders.diffusion import DiffusionDecoder
from anyvla.robot.chunks import pad_with_last_action
from tests.decoders.denoising import A, C, N, data, fit, generators, small

pytest.importorskip("diffusers")
SAMPLERS = ["ddim", "dpm"]


def alpha_bar(levels=100):
    """Return the share of the actions' variance at each level: equation 17 of arXiv 2102.09672."""
    f = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
    bars = [1.0]
    for now, after in itertools.pairwise(f):
        bars.append(bars[-1] * (1 - min(1 - after / now, 0.999)))
    return torch.tensor(bars[1:])


def noise_and_level(count, seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, N, A, generator=g), torch.randint(100, (count,), generator=g)


def replace_network(decoder, answer):
    """Let the network return `answer(noisy, level)`."""
    levels = decoder.config.train_steps

    def forward(self, noisy, time, condition):
        return answer(noisy, (time * levels).round().long() - 1)

    decoder.network.forward = MethodType(forward, decoder.network)
    return decoder


# Noising and the samplers


def test_chunks_are_noised_by_the_closed_form_of_ddpm():
    _, actions, _ = data(100)
    seen = []
    decoder = replace_network(small(DiffusionDecoder), lambda noisy, level: seen.append((noisy, level)) or noisy)
    noise, level = noise_and_level(100)[0], torch.arange(100)
    decoder.loss_at(DecoderInput(torch.zeros(100, C)), actions, torch.ones(100, N, dtype=torch.bool), noise, level)
    (noisy, at), bar = seen[0], alpha_bar()[:, None, None]
    assert (at == level).all()
    torch.testing.assert_close(noisy, bar.sqrt() * actions + (1 - bar).sqrt() * noise, atol=2e-5, rtol=2e-4)
    assert bar[0] > 0.999  # nearly the actions
    assert bar[-1] < 1e-5  # pure noise


def test_levels_are_uniform_and_noise_is_normal():
    seen = []
    decoder = replace_network(
        small(DiffusionDecoder, samples=1), lambda noisy, level: seen.append((noisy, level)) or noisy
    )
    steps = 20_000
    nothing = torch.zeros(steps, N, A), torch.ones(steps, N, dtype=torch.bool)
    decoder.loss(DecoderInput(torch.zeros(steps, C)), *nothing, generators(1) * steps)
    noisy, level = seen[0]
    counts = torch.bincount(level, minlength=100)
    assert len(counts) == 100
    assert ((counts - 200).square() / 200).sum() < 149  # chi-squared of 99 degrees, p = 0.001
    noise = noisy / (1 - alpha_bar()[level]).sqrt()[:, None, None]
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 5, 10, 100])
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_a_perfect_prediction_leads_to_the_actions(sampler, steps, prediction):
    inputs, actions, _ = data(3)
    bar, called = alpha_bar(), []

    def answer(noisy, level):
        called.append(int(level[0]))
        if prediction == "sample":
            return actions
        left = bar[level][:, None, None]
        return (noisy - left.sqrt() * actions) / (1 - left).sqrt()

    decoder = replace_network(small(DiffusionDecoder, sampler=sampler, steps=steps, prediction=prediction), answer)
    # One step divides by sqrt(bar), which makes rounding errors of float32 2000 times as large.
    tolerance = 2e-3 if prediction == "epsilon" and steps == 1 else 2e-5
    torch.testing.assert_close(decoder.sample(inputs, generators(3)), actions, atol=tolerance, rtol=0)
    assert called == list(range(99, -1, -100 // steps))  # from pure noise, in equal steps


def test_samplers_approach_the_exact_flow_of_a_gaussian():
    """The optimal prediction for normally distributed actions is known; the probability flow only scales the noise."""
    spread, bar, inputs = 0.25, alpha_bar(), DecoderInput(torch.zeros(9, C))

    def answer(noisy, level):
        left = bar[level][:, None, None]
        return left.sqrt() * spread**2 / (left * spread**2 + 1 - left) * noisy

    def error(sampler, steps):
        decoder = replace_network(small(DiffusionDecoder, sampler=sampler, steps=steps), answer)
        exact = spread * sample_noise((N, A), generators(9), inputs.context)
        return float((decoder.sample(inputs, generators(9)) - exact).norm() / exact.norm())

    assert error("ddim", 5) > error("ddim", 10) > error("ddim", 20) > error("ddim", 100)
    assert error("ddim", 100) == pytest.approx(error("ddim", 50) / 2, rel=0.1)  # first order
    assert all(error("dpm", steps) < error("ddim", steps) for steps in (5, 10, 20, 50))
    assert error("dpm", 50) < 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_predicted_actions_are_clipped(sampler, prediction):
    wild = replace_network(
        small(DiffusionDecoder, sampler=sampler, prediction=prediction), lambda noisy, level: 9 - 20 * noisy
    )
    sampled = wild.sample(data(3)[0], generators(3))
    assert sampled.abs().max() <= 1


# The decoder


@pytest.mark.parametrize(
    ("prediction", "sampler", "steps", "error"),
    [("sample", "dpm", 5, 0.03), ("epsilon", "ddim", 20, 0.1)],
)
def test_one_batch_is_learned_and_sampled_back(prediction, sampler, steps, error):
    keys = {"prediction": prediction, "sampler": sampler, "steps": steps}
    decoder = small(DiffusionDecoder, trained=False, layers=2, samples=4, **keys)
    inputs, actions, mask = data(4)
    assert fit(decoder, inputs, actions, mask, 400) < 0.05
    with torch.no_grad():
        sampled = decoder.sample(inputs, generators(4))
    assert (sampled - actions)[mask].square().mean().sqrt() < error


def test_two_modes_are_both_sampled_and_their_mean_is_not():
    decoder = small(DiffusionDecoder, trained=False, samples=32, steps=20)
    inputs, actions, mask = DecoderInput(torch.zeros(1, C)), torch.zeros(1, N, A), torch.ones(1, N, dtype=torch.bool)
    fit(decoder, inputs, actions, mask, 500, modes=torch.full((N, A), 0.5))
    with torch.no_grad():
        sampled = decoder.sample(DecoderInput(torch.zeros(100, C)), generators(100))
    side = sampled.mean((1, 2)).sign()
    assert 25 < (side > 0).sum() < 75
    assert (sampled - 0.5 * side[:, None, None]).abs().median() < 0.15


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_the_loss_is_the_mean_over_valid_elements_of_padded_chunks(prediction):
    decoder, (inputs, actions, mask) = small(DiffusionDecoder, prediction=prediction), data(5)
    noise, level = noise_and_level(10)
    loss = decoder.loss_at(inputs, actions, mask, noise, level)
    errors, clean = [], pad_with_last_action(actions, mask)
    for rows in (slice(0, 5), slice(5, 10)):
        left = alpha_bar()[level[rows]][:, None, None]
        noisy = left.sqrt() * clean + (1 - left).sqrt() * noise[rows]
        condition = decoder.network.condition(inputs.context)
        predicted = decoder.network(noisy, (level[rows] + 1) / 100, condition)
        errors.append((predicted - (clean if prediction == "sample" else noise[rows])).square()[mask])
    both = torch.stack(errors)
    torch.testing.assert_close(loss.value, both.mean(), atol=1e-4, rtol=1e-4)
    assert loss.count == mask.sum() * A
    torch.testing.assert_close(loss.parts["gripper"], both[..., 2].mean().detach(), atol=1e-4, rtol=1e-4)


def test_splitting_a_batch_changes_no_loss():
    decoder, (inputs, actions, mask) = small(DiffusionDecoder), data(5)
    noise, level = noise_and_level(5)
    whole = decoder.loss_at(inputs, actions, mask, noise, level)
    parts = [
        decoder.loss_at(DecoderInput(inputs.context[s]), actions[s], mask[s], noise[s], level[s])
        for s in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)
    assert sum(p.count for p in parts) == whole.count


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_padding_changes_neither_loss_nor_gradients(prediction):
    decoder, (inputs, actions, mask) = small(DiffusionDecoder, samples=2, prediction=prediction), data(5)
    results = []
    for padding in (0.0, 7.0):
        decoder.zero_grad()
        loss = decoder.loss(inputs, actions.masked_fill(~mask[..., None], padding), mask, generators(5))
        loss.value.backward()
        results.append([loss.value.detach(), *(p.grad.clone() for p in decoder.parameters())])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_a_sample_depends_on_its_context_and_generator_only(sampler, prediction):
    decoder, (inputs, _, _) = small(DiffusionDecoder, sampler=sampler, prediction=prediction), data(4)
    with torch.no_grad():
        together = decoder.sample(inputs, generators(4))
        torch.testing.assert_close(decoder.sample(inputs, generators(4)), together)
        for row in range(4):
            alone = decoder.sample(DecoderInput(inputs.context[row : row + 1]), generators(1, first=row))
            torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)
        assert (decoder.sample(inputs, generators(4, first=9)) - together).abs().max() > 0.01
        elsewhere = decoder.sample(DecoderInput(inputs.context.roll(1, 0)), generators(4))
        assert (elsewhere - together).abs().max() > 0.01


def test_threads_may_sample_at_the_same_time():
    decoder, (inputs, _, _) = small(DiffusionDecoder, sampler="dpm"), data(2)

    def sample(seed):
        with torch.no_grad():
            return decoder.sample(inputs, generators(2, first=seed))

    alone = [sample(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(sample, range(8))), alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_context_is_read_once_a_chunk(sampler):
    decoder, (inputs, _, _) = small(DiffusionDecoder, sampler=sampler, steps=5), data(2)
    counted = {"context": 0, "network": 0}
    decoder.network.context.register_forward_hook(lambda *_: counted.update(context=counted["context"] + 1))
    decoder.network.register_forward_hook(lambda *_: counted.update(network=counted["network"] + 1))
    decoder.sample(inputs)
    assert counted == {"context": 1, "network": 5}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_bfloat16_losses_and_chunks_are_float32(sampler):
    decoder, (inputs, actions, mask) = small(DiffusionDecoder, sampler=sampler), data(4)
    exact = decoder.sample(inputs, generators(4)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = decoder.sample(inputs, generators(4)).detach()
    lowered, half = decoder.to(torch.bfloat16), DecoderInput(inputs.context.bfloat16())
    sampled = lowered.sample(half, generators(4)).detach()
    assert {mixed.dtype, sampled.dtype, lowered.loss(half, actions, mask).total.dtype} == {torch.float32}
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(sampled, exact, atol=0.1, rtol=0.1)


def test_steps_that_do_not_divide_the_levels_are_refused():
    with pytest.raises(ConfigError, match="steps 7 must divide train_steps 100: use one of 1, 2, 4, 5, 10, 20, 25, 50"):
        build(DiffusionDecoder.Config, {"steps": 7})
    with pytest.raises(ConfigError, match="steps 20 must divide train_steps 10: use one of 1, 2, 5, 10"):
        build(DiffusionDecoder.Config, {"steps": 20, "train_steps": 10})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 must be even, and a multiple of heads 4"),
        ({"sampler": "euler"}, "'sampler': .*'dpm' or 'ddim'.*given: 'euler'"),
        ({"prediction": "velocity"}, "'prediction': .*'sample' or 'epsilon'"),
        ({"sampeler": "dpm"}, "unknown key 'sampeler': did you mean 'sampler'"),
    ],
)
def test_invalid_options_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(DiffusionDecoder.Config, keys)


def test_without_diffusers_the_error_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"decoder: diffusion needs diffusers: pip install 'anyvla\[diffusion\]'"):
        small(DiffusionDecoder)
