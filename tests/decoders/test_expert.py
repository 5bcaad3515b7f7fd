"""The expert after steps that share rows of a nano backbone's KV cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3TextConfig, LlamaConfig

from anyvla.config import ConfigError, build
from anyvla.decoders.base import DecoderInput
from anyvla.decoders.expert import ExpertDecoder
from anyvla.decoders.expert_layers import Transformer, append_caches, choose_layers, read_rope_thetas
from anyvla.decoders.lm_tokens import LMTokensDecoder
from tests.decoders.token_parts import SPACE, C, Levels, N, actions, after, backbone, make_spec

M, A = 4, SPACE.size
SMALL = {"width": 32, "mlp": 48, "steps": 3}
COUNTS = (2, 1, 1)  # steps in each row


def expert(model, codec=None, **keys):
    torch.manual_seed(0)
    return ExpertDecoder(build(ExpertDecoder.Config, SMALL | keys), make_spec(model, codec)).eval()


def noises(samples=1):
    g = torch.Generator().manual_seed(5)
    return torch.randn(samples * M, N, A, generator=g), torch.rand(samples * M, generator=g)


def generators():
    return [torch.Generator().manual_seed(i) for i in range(M)]


def alone(inputs, step):
    """Return one step alone in its row, without the positions that it does not see."""
    only = inputs.continuation.select([step])
    return DecoderInput(inputs.context[step : step + 1], only)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_steps_that_share_a_row_are_sampled_as_if_each_were_alone(method):
    model = backbone(layers=3)
    decoder, inputs = expert(model, method=method), after(model, COUNTS)
    with torch.no_grad():
        together = decoder.sample(inputs, generators())
        for step, generator in enumerate(generators()):
            torch.testing.assert_close(decoder.sample(alone(inputs, step), [generator])[0], together[step])


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("counts", [COUNTS, (1, 1, 1, 1)])
def test_the_loss_of_steps_that_share_a_row_is_that_of_each_alone(counts, samples):
    model = backbone()
    decoder, inputs = expert(model), after(model, counts)
    noise, time = noises(samples)
    mask = torch.tensor([[True, True], [True, False], [True, True], [False, False]])
    together = decoder.loss_at(inputs, actions(), mask, noise, time)
    total = 0.0
    for step in range(M):
        for row in range(step, samples * M, M):
            of_one = slice(step, step + 1), slice(row, row + 1)
            part = decoder.loss_at(
                alone(inputs, step), *(x[of_one[0]] for x in (actions(), mask)), noise[of_one[1]], time[of_one[1]]
            )
            total += part.total / samples
    torch.testing.assert_close(together.total, total)
    assert together.count == 5 * A


def test_hidden_positions_change_nothing_and_visible_ones_do():
    model = backbone()
    decoder, inputs = expert(model), after(model, (1,) * M)
    steps = inputs.continuation
    last = steps.visible.sum(1) - 1  # the last position that each step sees
    fewer = steps.visible.scatter(1, last[:, None], False)
    hidden = dataclasses.replace(inputs, continuation=dataclasses.replace(steps, visible=fewer))
    other = steps.cache.fork()
    for layer in other.model_cache.layers:
        place = last[:, None, None, None].expand(-1, layer.keys.shape[1], 1, layer.keys.shape[3])
        layer.keys, layer.values = (
            x.scatter_add(2, place, torch.ones(place.shape)) for x in (layer.keys, layer.values)
        )

    def sample(inputs, cache):
        new = dataclasses.replace(inputs.continuation, cache=cache)
        return decoder.sample(dataclasses.replace(inputs, continuation=new), generators())

    with torch.no_grad():
        torch.testing.assert_close(sample(hidden, steps.cache), sample(hidden, other))
        assert (sample(inputs, steps.cache) - sample(inputs, other)).abs().amax((1, 2)).min() > 1e-6
        assert (sample(inputs, steps.cache) - sample(hidden, steps.cache)).abs().amax((1, 2)).min() > 1e-6


def test_missing_actions_change_nothing():
    model = backbone()
    decoder, inputs = expert(model), after(model, COUNTS)
    mask = torch.tensor([[True, False]] * M)
    other = actions() + 3 * ~mask[..., None]
    same = [decoder.loss_at(inputs, a, mask, *noises()) for a in (actions(), other)]
    torch.testing.assert_close(same[0].value, same[1].value)
    assert set(same[0].parts) == {"position", "gripper"}
    weighted = 3 * same[0].parts["position"] + same[0].parts["gripper"]
    torch.testing.assert_close(weighted / 4, same[0].value.detach())


def test_the_observation_and_the_context_are_read_once_a_chunk():
    model = backbone()
    decoder, inputs = expert(model), after(model, COUNTS)
    calls, tokens = [], []
    model.register_forward_hook(lambda *_: calls.append(1))
    decoder.transformer.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[1]))
    with torch.no_grad():
        decoder.sample(inputs, generators())
    assert not calls
    assert tokens == [2, 2 * N, 2 * N, 2 * N]  # of the two steps of the longest row: contexts once, then actions


class Transfers(TorchDispatchMode):
    """Records the operations that wait for a GPU or send it data, which a CUDA graph cannot do."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "_to_copy", "lift_fresh"}:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


def test_the_integration_never_synchronizes_with_the_device():
    model = backbone()
    decoder, inputs = expert(model), after(model, COUNTS)
    noise, _ = noises()
    with torch.no_grad():
        prefix = decoder.prefill(inputs)
        with Transfers() as transfers:
            decoder.flow(prefix, noise)
        assert not transfers.found
        with Transfers() as transfers:
            decoder.prefill(inputs)
        assert transfers.found  # allowed here, once a chunk


def test_without_a_codec_the_flow_trains_the_backbone():
    model = backbone()
    decoder = expert(model)
    inputs = after(model, COUNTS)
    decoder.loss(inputs, actions(), torch.ones(M, N, dtype=torch.bool), generators()).value.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in decoder.parameters())
    assert model.model.model.language_model.layers[0].self_attn.k_proj.weight.grad.any()


def test_with_a_codec_the_backbone_learns_from_tokens_only():
    model = backbone()
    decoder = expert(model, Levels(), token_weight=0.5)
    assert decoder.needs_with("tokens") == {"cache", "keys_values"} | LMTokensDecoder.needs
    assert decoder.needs_with("continuous") == {"cache", "keys_values"}
    mask = torch.ones(M, N, dtype=torch.bool)
    mask[0, 1] = False
    language = list(model.model.model.language_model.parameters())

    def gradients(loss_of):
        inputs = after(model, COUNTS)
        vector = inputs.context.requires_grad_()
        loss = loss_of(inputs)
        return loss, torch.autograd.grad(loss.value, [vector, *language], allow_unused=True)

    joint, of_joint = gradients(lambda c: decoder.loss(c, actions(), mask, generators()))
    tokens, of_tokens = gradients(lambda c: decoder.tokens.loss(c, actions(), mask))
    for mine, wanted in zip(of_joint, of_tokens, strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None:
            torch.testing.assert_close(mine, 0.5 * wanted)
    torch.testing.assert_close(joint.value, joint.parts["flow"] + 0.5 * tokens.value)
    assert joint.count == tokens.count == 7 * A
    assert set(joint.parts) == {"flow", "position", "gripper", *(f"tokens/{name}" for name in tokens.parts)}
    own = torch.autograd.grad(joint_flow(decoder, mask).value, decoder.transformer.parameters())
    assert all(gradient.any() for gradient in own)


def joint_flow(decoder, mask):
    return decoder.loss_at(after(backbone(), COUNTS), actions(), mask, *noises())


def test_it_overfits_one_batch():
    model = backbone().requires_grad_(False)
    decoder = expert(model, steps=10, samples=4, width=64, time="uniform")
    inputs, mask = after(model, COUNTS), torch.ones(M, N, dtype=torch.bool)
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    g = torch.Generator().manual_seed(0)
    assert error(decoder, inputs) > 0.3
    for _ in range(400):
        optimizer.zero_grad()
        decoder.loss(inputs, actions(), mask, [g] * M).value.backward()
        optimizer.step()
    assert error(decoder, inputs) < 0.1


def error(decoder, inputs):
    with torch.no_grad():
        return (decoder.sample(inputs, generators()) - actions()).abs().mean()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_near_float32(autocast):
    model = backbone()
    decoder, inputs = expert(model), after(model, COUNTS)
    with torch.no_grad():
        exact = decoder.sample(inputs, generators())
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                near = decoder.sample(inputs, generators())
        else:
            decoder, model = decoder.bfloat16(), model.bfloat16()
            near = decoder.sample(after(model, COUNTS), generators())
    assert near.dtype == torch.float32  # the state of the integration
    assert 0 < (near - exact).abs().max() < 0.1


def test_fewer_layers_attend_to_some_of_the_backbone_the_last_included():
    assert choose_layers(None, 4) == [0, 1, 2, 3]
    assert choose_layers(2, 4) == [1, 3]
    assert choose_layers(3, 4) == [0, 1, 3]
    assert choose_layers(1, 5) == [4]
    model = backbone(layers=4)
    decoder, inputs = expert(model, layers=2), after(model, COUNTS)
    whole = inputs.continuation.get_keys_values()
    used = decoder.make_prefix(inputs).caches
    length = inputs.continuation.visible.any(0).sum()
    for number, (keys, values) in zip([1, 3], used, strict=True):
        torch.testing.assert_close(keys[:, :, :length], whole[number][0][:, :, :length])
        torch.testing.assert_close(values[:, :, :length], whole[number][1][:, :, :length])


def test_options_that_do_not_fit_are_refused():
    model = backbone(layers=2)
    with pytest.raises(ValueError, match=r"layers 3 exceeds the 2 layers of the backbone .* use layers: 2 or fewer"):
        expert(model, layers=3)
    with pytest.raises(
        ConfigError, match=r"heads 3 of the expert must be a multiple of 2, .* use heads: 4, or leave it"
    ):
        expert(model, heads=3)
    with pytest.raises(ConfigError, match="width 31 must be even"):
        expert(model, width=31)
    assert expert(model, heads=4).transformer.layers[0].groups == 2


def test_each_layer_has_the_rope_base_of_its_layer_of_the_backbone():
    assert read_rope_thetas(None, 2) == [10_000, 10_000]
    assert read_rope_thetas(LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}), 2) == [5e5, 5e5]
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    rope = {kind: values | {"rope_type": "default"} for kind, values in rope.items()}
    kinds = ["sliding_attention", "full_attention"]
    gemma = Gemma3TextConfig(num_hidden_layers=2, layer_types=kinds, rope_parameters=rope)
    assert read_rope_thetas(gemma, 2) == [1e4, 1e6]


def test_heads_and_rope_bases_follow_the_language_model():
    model = backbone(layers=3, heads=4)
    assert expert(model).transformer.layers[0].heads == 4
    language = model.model.config.get_text_config(decoder=True)
    language.num_key_value_heads = 2  # the shapes below win
    shapes = [(2, 8, 8)] * 3
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    language.rope_parameters = {kind: values | {"rope_type": "default"} for kind, values in rope.items()}
    language.layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    model.get_kv_shapes = lambda: shapes
    grouped = expert(model, layers=2).transformer  # reads layers 0 and 2 of the backbone
    assert grouped.kinds == [(2, 8, 1e4), (2, 8, 1e6)]


def test_layers_of_different_shapes_and_bases_run_in_one_pass():
    torch.manual_seed(0)
    transformer = Transformer(16, 24, 4, [(2, 8, 8), (1, 4, 6)], [1e4, 1e6])
    prepare = transformer.prepare_attention
    caches = [(torch.randn(3, h, 5, d), torch.randn(3, h, 5, v)) for h, d, v in [(2, 8, 8), (1, 4, 6)]]
    x, positions = torch.randn(3, 6, 16), torch.arange(5, 11).expand(3, -1)
    causal = torch.ones(6, 11, dtype=torch.bool).tril(5).expand(3, -1, -1)
    whole, _ = transformer(x, caches, prepare(positions, causal, torch.float32))
    first, added = transformer(x[:, :2], caches, prepare(positions[:, :2], causal[:, :2, :7], torch.float32))
    rest, _ = transformer(
        x[:, 2:],
        append_caches(caches, added),
        prepare(positions[:, 2:], causal[:, 2:], torch.float32),
    )
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    everything, _ = transformer(x, caches, prepare(positions, None, torch.float32))
    one_row, _ = transformer(x, caches, prepare(positions, torch.ones(3, 1, 11) > 0, torch.float32))
    torch.testing.assert_close(everything, one_row)


def test_attention_depends_only_on_distances_between_positions():
    torch.manual_seed(0)
    transformer = Transformer(16, 24, 2, [(2, 8, 8)], [1e4])
    x, nothing = torch.randn(1, 6, 16), [(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8))]

    def at(positions):
        return transformer(x, nothing, transformer.prepare_attention(positions[None], None, torch.float32))[0]

    positions = torch.arange(6)
    torch.testing.assert_close(at(positions), at(positions + 7))
    assert not torch.allclose(at(positions), at(positions * 2), atol=1e-4)


def test_no_module_of_the_backbone_is_in_the_decoder():
    model = backbone()
    assert not {id(m) for m in model.modules()} & {id(m) for m in expert(model, Levels()).modules()}
    assert isinstance(expert(model).context, nn.Linear)
    assert expert(model).context.in_features == C
