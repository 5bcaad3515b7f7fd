"""The numbers that pass between a robot and the parts of a policy, calculated by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from anyvla.decoders.base import DecoderInput, Loss
from anyvla.policy import VLA
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.types import Observation
from tests.small import HISTORIES, batch, embodiment, generators, model, observation, policy, statistics

# The statistics of the small robot: quantiles and extremes -2 and 2, mean 0.5, standard deviation 2.
MEAN, STD, REACH = 0.5, 2.0, 2.0


def record_losses(vla: VLA) -> list[tuple[torch.Tensor, torch.Tensor, Any]]:
    """Record the actions, masks and generators that reach the loss of the decoder."""
    seen: list[tuple[torch.Tensor, torch.Tensor, Any]] = []

    def loss(context: DecoderInput, actions: torch.Tensor, mask: torch.Tensor, generators: Any = None) -> Loss:
        seen.append((actions, mask, generators))
        return Loss(actions.sum(), mask.sum().float())

    vla.decoder.loss = loss
    return seen


def test_the_decoder_learns_actions_scaled_by_their_quantiles_and_clipped() -> None:
    vla, data = policy(), batch(1, 1)
    data.actions[0, 0, 0] = torch.tensor([1.0, -0.5, 5.0, 0.25])
    seen = record_losses(vla)
    vla.loss(data)
    actions, mask, given = seen[0]
    # The gripper is scaled by its declared range, -1 to 1.
    torch.testing.assert_close(actions[0, 0], torch.tensor([0.5, -0.25, 1.0, 0.25]))
    assert mask.all()
    assert given is None


def test_the_decoder_learns_only_valid_actions() -> None:
    vla, data = policy(HISTORIES[1], {"name": "lstm", "hidden": 8, "layers": 1}), batch(2, 3)
    data.action_mask[0, 1, 2:] = False
    data.step_mask[1, 1:] = False
    data.action_mask[1, 1:] = False
    seen, of_windows = record_losses(vla), generators(2)
    vla.loss(data, of_windows)
    _, mask, of_steps = seen[0]
    assert mask.sum(1).tolist() == [4, 2, 4, 4]
    assert all(g is of_windows[row] for g, row in zip(of_steps, [0, 0, 0, 1], strict=True))
    assert vla.count_elements(data) == 14 * 4


def test_the_fuser_reads_proprio_in_standard_deviations_that_are_not_clipped() -> None:
    vla, data = policy(), batch(1, 1)
    data.proprio[0, 0] = torch.tensor([0.5, 2.5, -7.5])
    seen: list[torch.Tensor] = []
    vla.fuser.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    vla.read(data)
    vla.act([observation(data, 0, 0)], [vla.start(data.instructions[0])])
    for features in seen:
        torch.testing.assert_close(features[0, 0, -3:], (torch.tensor([0.5, 2.5, -7.5]) - MEAN) / STD)
    assert len(seen) == 2


def test_the_options_of_scaling_reach_actions_and_proprio() -> None:
    """`meanstd` for actions, `minmax` for proprio; extremes here are -4 and 4, and quantiles -2 and 2."""
    of = statistics()
    action, proprio = (
        {**group, "min": [-4.0] * len(group["min"]), "max": [4.0] * len(group["max"])}
        for group in (of.action, of.proprio)
    )
    config = model(normalization={"action": "meanstd", "proprio": "minmax"})
    vla = VLA(config, [Robot(embodiment(), Statistics(action, proprio, of.fingerprint))]).eval()
    data = batch(1, 1)
    data.actions[0, 0, 0], data.proprio[0, 0] = torch.tensor([1.5, 0.5, -1.5, 1.0]), torch.tensor([2.0, -4.0, 6.0])
    seen, features = record_losses(vla), []
    vla.fuser.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    vla.loss(data)
    torch.testing.assert_close(seen[0][0][0, 0, :3], torch.tensor([0.5, 0.0, -1.0]))
    torch.testing.assert_close(features[0][0, 0, -3:], torch.tensor([0.5, -1.0, 1.5]))


def test_the_backbone_reads_the_instruction_letter_by_letter() -> None:
    vla, data = policy(HISTORIES[1], {"name": "lstm", "hidden": 8, "layers": 1}), batch(2, 2)
    data = dataclasses.replace(data, instructions=["Open the LEFT drawer!", "press It."])
    data.step_mask[0, 1] = False
    read: list[Sequence[str]] = []
    tokenize = vla.backbone.tokenize
    vla.backbone.tokenize = lambda images, texts: read.append(list(texts)) or tokenize(images, texts)
    vla.read(data)
    sessions = [vla.start(text) for text in data.instructions]
    read[1:] = []
    vla.act([observation(data, row, 0) for row in range(2)], sessions)
    assert read == [["Open the LEFT drawer!", "press It.", "press It."], ["Open the LEFT drawer!", "press It."]]


def test_a_chunk_is_in_robot_units_and_inside_the_range() -> None:
    vla, data = policy(), batch(1, 1)
    vla.decoder.sample = lambda *_: torch.tensor([0.5, -0.25, 3.0, -0.5]).expand(1, 4, 4)
    [chunk] = vla.act([observation(data, 0, 0)], [vla.start("go")])
    assert chunk.actions.dtype == np.float32
    np.testing.assert_allclose(chunk.actions, np.tile([0.5 * REACH, -0.25 * REACH, REACH, -0.5], (4, 1)), atol=1e-6)


def record_generators(vla: VLA) -> list[list[float]]:
    """Record the next random number of each generator that reaches the sampler."""
    seen: list[list[float]] = []
    sample = vla.decoder.sample

    def record(context: DecoderInput, generators: Any = None) -> torch.Tensor:
        assert generators is not None
        copies = [torch.Generator().set_state(g.get_state()) for g in generators]
        seen.append([float(torch.rand(1, generator=g)) for g in copies])
        return sample(context, generators)

    vla.decoder.sample = record
    return seen


@pytest.mark.parametrize(("history", "fuser"), [("none", "identity"), (HISTORIES[2], "identity")])
def test_the_noise_of_a_session_follows_from_its_seed_step_by_step(history: Any, fuser: str) -> None:
    vla, data = policy(history, fuser, decoder="flow"), batch(1, 3)
    seen = record_generators(vla)
    sessions = [vla.start("go", seed=seed) for seed in (7, 7 + 2**17, 7)]
    chunks = [vla.act([observation(data, 0, step)] * 3, sessions) for step in range(3)]
    for one, other, same in chunks:
        np.testing.assert_allclose(one.actions, same.actions, atol=1e-5)
        assert np.abs(one.actions - other.actions).max() > 1e-3
    for row, seed in enumerate((7, 7 + 2**17, 7)):
        generator = torch.Generator().manual_seed(seed)
        for step in range(3):
            expected = float(torch.rand(1, generator=torch.Generator().set_state(generator.get_state())))
            assert seen[step][row] == expected
            torch.randn(4, 4, generator=generator)  # the noise of one chunk


def test_the_noise_of_a_session_does_not_depend_on_its_neighbors() -> None:
    vla, data = policy(decoder="flow"), batch(1, 2)
    together, alone = [vla.start("go", seed=s) for s in (1, 2)], vla.start("go", seed=2)
    for step in range(2):
        both = vla.act([observation(data, 0, step)] * 2, together)
        [one] = vla.act([observation(data, 0, step)], [alone])
        np.testing.assert_allclose(both[1].actions, one.actions, atol=1e-5)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("keys", [{}, {"proprio": "token"}], ids=["fuser", "token"])
def test_the_readouts_are_the_last_hidden_states_at_the_queries(history: Any, keys: dict[str, Any]) -> None:
    """A readout sees the queries before its own, so a change of query 1 leaves readout 0 as it is."""
    fuser: Any = {"name": "gpt", "width": 8, "layers": 1, "heads": 1} if history == HISTORIES[1] else "identity"
    fuser = {"name": "lstm", "hidden": 8, "layers": 1} if history == HISTORIES[3] else fuser
    vla, data = policy(history, fuser, readouts=2, **keys), batch(1, 1)
    seen: list[torch.Tensor] = []
    inner = vla.fuser.lstm if history == HISTORIES[3] else vla.fuser  # which runs a row and a step
    inner.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, 0]))
    width = vla.backbone.width
    with torch.no_grad():
        vla.read(data)
        vla.act([observation(data, 0, 0)], [vla.start(data.instructions[0])])
        vla.queries[1] += 1
        vla.read(data)
        vla.act([observation(data, 0, 0)], [vla.start(data.instructions[0])])
        if vla.proprio_embedding is not None:
            vla.proprio_embedding.bias += 1
            vla.read(data)
    trained, acted, trained_other, acted_other = seen[:4]
    for one, other in ((trained, trained_other), (acted, acted_other)):
        torch.testing.assert_close(one[:width], other[:width], atol=1e-6, rtol=0)
        assert (one - other)[width : 2 * width].abs().max() > 1e-3
    if vla.proprio_embedding is not None:  # the token of proprio comes before the queries
        assert (seen[4] - trained_other)[:width].abs().max() > 1e-3


def test_a_policy_that_was_saved_while_it_trained_acts_in_evaluation_mode(tmp_path: Any) -> None:
    vla = policy().train()
    vla.save(tmp_path / "checkpoint")
    loaded = VLA.load(tmp_path / "checkpoint")
    assert not any(module.training for module in loaded.modules())
    for name, weight in vla.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_checkpoint_holds_the_recipe_and_the_configuration_that_was_built(tmp_path: Any) -> None:
    vla = policy(execute=3)
    vla.save(tmp_path / "checkpoint", {"model": {"execute": 1}, "training": {"steps": 5}})
    document = yaml.safe_load((tmp_path / "checkpoint" / "config.yaml").read_text(encoding="utf-8"))
    assert document["model"]["execute"] == 3
    assert document["training"] == {"steps": 5}
    assert VLA.load(tmp_path / "checkpoint").config == vla.config


def test_proprio_that_is_not_read_changes_nothing() -> None:
    vla, data = policy(proprio="none"), batch(1, 1)
    shown = observation(data, 0, 0)
    other = Observation(shown.images, shown.proprio + 1)
    one, two = (vla.act([o], [vla.start("go")])[0].actions for o in (shown, other))
    assert np.array_equal(one, two)
    read = policy()
    one, two = (read.act([o], [read.start("go")])[0].actions for o in (shown, other))
    assert not np.array_equal(one, two)


def test_later_steps_do_not_see_missing_actions() -> None:
    """Where `past: visible` shows earlier chunks, a chunk that ends early is padded with its last action."""
    vla = policy({"name": "interleaved", "window": 3, "past": "visible"}, decoder="lm_tokens", representation="bins")
    data = batch(1, 3)
    data.action_mask[0, 0, 2:] = False
    garbage, padded = data.actions.clone(), data.actions.clone()
    garbage[0, 0, 2:] = 0.9
    padded[0, 0, 2:] = data.actions[0, 0, 1]
    with torch.no_grad():
        one, two, three = (
            vla.read(dataclasses.replace(data, actions=a)).context for a in (data.actions, garbage, padded)
        )
        whole = vla.read(
            dataclasses.replace(data, actions=garbage, action_mask=torch.ones_like(data.action_mask))
        ).context
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert not torch.allclose(one[1], whole[1], atol=1e-5)
