"""The expert behind our PaliGemma agrees with the pi0 of transformers on the same weights, images and prompts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, PI0Config, PI0ForConditionalGeneration

from anyvla.backbones.auto import AutoBackbone
from anyvla.config import build
from anyvla.decoders.base import DecoderInput, DecoderSpec
from anyvla.decoders.expert import ExpertDecoder
from anyvla.decoders.expert_weights import load_pi0
from anyvla.histories.base import StepInputs
from anyvla.histories.policy_head import SingleStep
from anyvla.robot.space import ActionSpace
from anyvla.sequence.valid_steps import ValidSteps
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

M, N, A, P, R = 3, 5, 4, 6, 2  # steps, chunk, action dims, proprio dims, readouts
PROMPTS = ["open the drawer", "push", "close it, please"]
EXPERT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERT |= {"vocab_size": 8, "head_dim": 8, "num_key_value_heads": 1, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return our backbone and expert, and a pi0 with the same weights."""
    folder = write_family(FAMILIES["paligemma"], tmp_path_factory.mktemp("paligemma"))
    backbone = AutoBackbone(build(AutoBackbone.Config, {"path": str(folder)}))
    torch.manual_seed(0)
    space = build(ActionSpace, {"groups": [{"name": "joints", "size": A, "kind": "joints", "mode": "absolute"}]})
    setting = DecoderSpec(R * backbone.width + P, N, space, None, backbone)
    config = build(ExpertDecoder.Config, {"width": 24, "mlp": 48, "steps": 4})
    expert = ExpertDecoder(config, setting)
    pi0 = PI0ForConditionalGeneration(
        PI0Config(
            vlm_config=backbone.model.config,
            dit_config=GemmaConfig(**EXPERT),
            chunk_size=N,
            max_state_dim=P,
            max_action_dim=A,
            num_inference_steps=4,
            loss_reduction="none",
        )
    )
    with torch.no_grad():
        for weight in pi0.parameters():
            weight.normal_(0, 0.3)
    pi0.model.vlm.load_state_dict(backbone.model.model.state_dict())
    load_pi0(expert, pi0.state_dict(), P)
    return backbone.eval(), expert.eval(), pi0.eval()


def make_inputs(backbone, views=2):
    """Return a batch for our model and for pi0, where prompts of different lengths are padded."""
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (M, views, 28, 28, 3), dtype=torch.uint8, generator=g)
    state, actions = torch.randn(M, P, generator=g), torch.rand(M, N, A, generator=g) * 2 - 1
    rows = [torch.tensor(tokens) for tokens in backbone.tokenize(images, PROMPTS).tokens]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    attended = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    pixels = backbone._pixel_values(images).unflatten(0, (M, views))
    theirs = {
        "input_ids": ids,
        "attention_mask": attended,
        "pixel_values": pixels,
        "pixel_attention_mask": torch.ones(M, views, dtype=torch.bool),
        "state": state,
    }
    return images, state, actions, theirs


def read(backbone, images, state):
    written = torch.randn(M, R, backbone.width, generator=torch.Generator().manual_seed(2))
    steps = StepInputs(images, PROMPTS, written, R)
    reading = SingleStep(SingleStep.Config()).read_windows(
        backbone, steps, ValidSteps([1] * M, 1, images.device), keep_cache=True
    )
    return DecoderInput(torch.cat([reading.readouts[:, 0].flatten(1), state], 1), reading.continuation)


def test_pi0_gives_the_same_loss_and_gradient_for_the_same_noise_and_time(pair):
    backbone, expert, pi0 = pair
    images, state, actions, theirs = make_inputs(backbone)
    g = torch.Generator().manual_seed(3)
    noise, time = torch.randn(M, N, A, generator=g), torch.rand(M, generator=g)
    mask = torch.ones(M, N, dtype=torch.bool)
    ours = expert.loss_at(read(backbone, images, state), actions, mask, noise, time).value
    reference = pi0(**theirs, actions=actions, noise=noise, timestep=time).loss.mean()
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
    for model in (backbone, expert, pi0):
        model.zero_grad()
    ours.backward()
    reference.backward()
    seen = 0
    for name, weight in pi0.model.vlm.named_parameters():
        mine = backbone.model.model.get_parameter(name).grad
        if weight.grad is not None and weight.grad.abs().max() > 1e-6:
            torch.testing.assert_close(mine, weight.grad, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
            seen += 1
    assert seen > 20  # vision tower, projector and language model
    layer, their_layer = expert.transformer.layers[0], pi0.model.dit.layers[0]
    torch.testing.assert_close(layer.down.weight.grad, their_layer.mlp.down_proj.weight.grad, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(layer.norm_mlp.weight.grad, their_layer.post_attention_layernorm.weight.grad)


def test_pi0_samples_the_same_actions_from_the_same_noise(pair):
    backbone, expert, pi0 = pair
    images, state, _, theirs = make_inputs(backbone)
    noise = torch.randn(M, N, A, generator=torch.Generator().manual_seed(4))
    reference = pi0.sample_actions(**theirs, noise=noise)
    with torch.no_grad():
        inputs = read(backbone, images, state)
        torch.testing.assert_close(expert.flow(expert.prefill(inputs), noise), reference, atol=1e-4, rtol=1e-4)
    different = dataclasses.replace(inputs, context=inputs.context + 1)
    assert not torch.allclose(expert.flow(expert.prefill(different), noise), reference, atol=1e-2)


def test_the_defaults_agree_with_pi0():
    ours, theirs = ExpertDecoder.Config(), PI0Config()
    dit = theirs.dit_config
    assert (ours.width, ours.mlp, ours.steps) == (dit.hidden_size, dit.intermediate_size, theirs.num_inference_steps)


def test_weights_that_do_not_fit_are_refused(pair):
    _, expert, pi0 = pair
    state = pi0.state_dict()
    with pytest.raises(ValueError, match=r"they have no 'action_out_proj\.bias'"):
        load_pi0(expert, {k: v for k, v in state.items() if k != "action_out_proj.bias"}, P)
    with pytest.raises(ValueError, match=r"down of layer 0 of pi0 is \(24, 47\), of this expert \(24, 48\): give the"):
        load_pi0(expert, state | {"model.dit.layers.0.mlp.down_proj.weight": torch.zeros(24, 47)}, P)
    with pytest.raises(ValueError, match="pi0 has more layers than the 2 of this expert: leave its option layers out"):
        load_pi0(expert, state | {"model.dit.layers.2.mlp.down_proj.weight": torch.zeros(24, 48)}, P)
