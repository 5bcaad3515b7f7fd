"""A chunk begins with the actions that the robot has committed to, and the rest of it follows from them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.decoders.base import Committed, DecoderInput
from anyvla.decoders.flow_matching import integrate
from anyvla.policy import VLA
from anyvla.types import Observation
from tests import small

CONTINUING = {
    "flow": {"name": "flow", "width": 64, "layers": 2, "heads": 2, "samples": 1},
    "heun": {"name": "flow", "width": 64, "layers": 2, "heads": 2, "samples": 1, "method": "heun", "steps": 4},
    "dpm": {"name": "diffusion", "width": 64, "layers": 2, "heads": 2, "samples": 1},
    "ddim of noise": {
        "name": "diffusion",
        "width": 64,
        "layers": 2,
        "heads": 2,
        "samples": 1,
        "sampler": "ddim",
        "prediction": "epsilon",
    },
    "expert": small.DECODERS["expert"],
}
HELD = np.array([[1.5, -0.5, 0.25, 1.0], [-1.25, 0.75, 1.0, -1.0]], np.float32)
DATA = small.batch(3, 1)


def policy_of(decoder: Any, **keys: Any) -> VLA:
    return small.awake(small.policy(decoder=decoder, **keys))


def act(vla: VLA, rows: list[int], committed: Any = None) -> list[np.ndarray]:
    sessions = [vla.start(DATA.instructions[row], seed=row) for row in rows]
    chunks = vla.act([small.observation(DATA, row, 0) for row in rows], sessions, committed)
    return [chunk.actions for chunk in chunks]


@pytest.mark.parametrize("name", CONTINUING)
def test_the_rest_of_a_chunk_follows_from_its_committed_actions(name: str) -> None:
    vla = policy_of(CONTINUING[name])
    assert vla.decoder.continues
    (free,) = act(vla, [0])
    (held,) = act(vla, [0], [HELD])
    (other,) = act(vla, [0], [-HELD])
    np.testing.assert_array_equal(held[:2], HELD)
    np.testing.assert_array_equal(other[:2], -HELD)
    for rest in (free[2:], other[2:]):
        assert np.abs(held[2:] - rest).max() > 1e-3


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_diffusion_sees_committed_actions_with_the_noise_of_each_step(prediction: str, sampler: str) -> None:
    """Eq. 4 of DDPM (arXiv 2006.11239), from the noise that the chunk begins with."""
    keys = {"prediction": prediction, "sampler": sampler, "train_steps": 100, "steps": 5}
    decoder: Any = policy_of(small.DECODERS["diffusion"] | keys).decoder
    inputs = DecoderInput(torch.randn(1, decoder.network.context[0].in_features))
    known = torch.full((1, 4, 4), 0.5)
    seen: list[tuple[float, torch.Tensor]] = []
    decoder.network.register_forward_pre_hook(lambda _, args: seen.append((float(args[1]), args[0].clone())))
    mask = torch.tensor([[True, True, False, False]])
    with torch.no_grad():
        decoder.sample(inputs, [torch.Generator().manual_seed(3)], Committed(known, mask))
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    cosine = [math.cos((step / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(101)]
    kept = np.cumprod([1 - min(1 - b / a, 0.999) for a, b in pairwise(cosine)])
    assert [round(time * 100) for time, _ in seen] == [100, 80, 60, 40, 20]
    for time, x in seen:
        share = kept[round(time * 100) - 1]
        torch.testing.assert_close(
            x[0, :2], share**0.5 * known[0, :2] + (1 - share) ** 0.5 * noise[:2], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", ["flow", "dpm", "expert"])
def test_committed_actions_of_one_session_do_not_reach_another(name: str) -> None:
    vla = policy_of(CONTINUING[name])
    together = act(vla, [0, 1, 2], [None, HELD, HELD[:1]])
    for row, committed in enumerate([None, HELD, HELD[:1]]):
        (alone,) = act(vla, [row], [committed])
        np.testing.assert_allclose(together[row], alone, atol=1e-5)


@pytest.mark.parametrize(("decoder", "representation"), [("regression", "continuous"), ("tokens", "bins")])
def test_other_decoders_only_replace_the_first_actions(decoder: str, representation: str, tmp_path: Any) -> None:
    codec = small.fit_codec(representation, tmp_path)
    vla = policy_of(decoder, representation=representation, codec=codec)
    assert not vla.decoder.continues
    (free,) = act(vla, [0])
    (held,) = act(vla, [0], [HELD])
    np.testing.assert_array_equal(held, np.concatenate([HELD, free[2:]]))


def test_none_and_no_actions_are_a_free_chunk() -> None:
    vla = policy_of("flow")
    (free,) = act(vla, [0])
    for nothing in ([None], [HELD[:0]]):
        np.testing.assert_array_equal(act(vla, [0], nothing)[0], free)


def test_the_network_sees_committed_actions_on_their_path_from_the_noise() -> None:
    """The path is x_t = t * noise + (1 - t) * actions, from t = 1; its velocity is noise - actions."""
    noise, actions = torch.full((1, 3, 2), 4.0), torch.full((1, 3, 2), 8.0)
    seen = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((float(t), x[0, :, 0].tolist()))
        return torch.full_like(x, -1.0)

    out = integrate(velocity, noise, 4, "euler", Committed(actions, torch.tensor([[True, False, False]])))
    assert seen == [(1.0, [4, 4, 4]), (0.75, [5, 4.25, 4.25]), (0.5, [6, 4.5, 4.5]), (0.25, [7, 4.75, 4.75])]
    assert out[0, :, 0].tolist() == [8, 5, 5]


def test_a_chunk_of_equal_actions_moves_to_its_committed_one() -> None:
    """Chunks are one number, N(0, 1), repeated: given the first action, the others should be near it."""
    torch.manual_seed(0)
    noise = torch.randn(200, 4, 1)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = t[:, None, None]
        mean = x.mean(1, keepdim=True)
        clean = (1 - time) * mean / ((1 - time) ** 2 + time**2 / 4)  # E[actions | x_t]
        return (x - clean) / time

    free = integrate(velocity, noise, 20)
    held = integrate(
        velocity, noise, 20, "euler", Committed(torch.full((200, 4, 1), 1.5), torch.arange(4).expand(200, -1) < 1)
    )
    assert abs(float(free[:, 1:].mean())) < 0.2
    assert float(held[:, 1:].mean()) > 0.5


def test_the_decoder_gets_committed_actions_as_training_normalizes_them() -> None:
    vla = small.policy(decoder="flow")
    seen = []
    real = vla.decoder.sample
    vla.decoder.sample = lambda i, g, c=None: (seen.append(c), real(i, g, c))[1]  # type: ignore[method-assign]
    act(vla, [0], [HELD])
    data = small.batch(1, 1)
    data.actions[0, 0, :2] = torch.from_numpy(HELD)
    expected = vla.action_normalizer.normalize(data.actions, data.robots)[0, 0, :2]
    torch.testing.assert_close(seen[0].actions[0, :2], expected)
    assert seen[0].mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("committed", "message"),
    [
        (np.zeros((5, 4), np.float32), r"shape \(5, 4\); \(K, 4\) is needed, with at most the 4 actions"),
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\).*position 3, gripper 1"),
        pytest.param(np.zeros(4, np.float32), r"shape \(4,\)", marks=pytest.mark.wrong_types),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), "not finite: group 'position', dim 1"),
        (
            np.array([[0, 0, 0, 0], [900, 0, 0, 0]], np.float32),
            "far outside of the training data: group 'position', dim 0 is 900",
        ),
        pytest.param([[0.0] * 4], "array of float32, got list", marks=pytest.mark.wrong_types),
    ],
)
def test_a_wrong_commitment_is_refused_and_changes_nothing(committed: Any, message: str) -> None:
    vla = policy_of("flow")
    session = vla.start("open the drawer")
    observation: Observation = small.observation(DATA, 0, 0)
    with pytest.raises(ValueError, match=message):
        vla.act([observation], [session], [committed])
    np.testing.assert_array_equal(vla.act([observation], [session])[0].actions, act(vla, [0])[0])


def test_there_is_one_commitment_for_each_session() -> None:
    vla = policy_of("flow")
    with pytest.raises(ValueError, match="got 2 and 1"):
        act(vla, [0], [HELD, None])
