"""Replaying equals training: the chunks that a policy predicts along an episode are those of its training windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.sampler import WindowIndices
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.evaluation.open_loop.replay import replay
from anyvla.evaluation.open_loop.runner import measure_prediction
from anyvla.robot.action_errors import measure_action_errors
from anyvla.types import Batch
from tests import small

LENGTHS = (3, 9, 12)  # the first is shorter than a chunk


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, small.embodiment(), [small.episode(n, seed=n) for n in LENGTHS])
    return small.mixture(root)


def replayed(vla, mixture, **keys):
    episodes = [mixture.datasets[0][i] for i in range(len(LENGTHS))]
    return replay(vla, [(episode, "open the drawer", "small") for episode in episodes], **keys)


@pytest.mark.parametrize(
    ("history", "fuser"),
    [
        ("none", "identity"),
        ({"name": "policy_head", "window": 3}, {"name": "gpt", "width": 32, "layers": 1, "heads": 2}),
    ],
)
def test_errors_of_replaying_are_those_of_training_windows(mixture, history, fuser):
    vla = small.awake(small.policy(history, fuser))
    windows = WindowDataset(mixture, WindowConfig(window=vla.history.window, chunk=4, stride=2))
    for episode, (length, prediction) in enumerate(zip(LENGTHS, replayed(vla, mixture), strict=True)):
        steps = np.arange(0, length, 2)
        np.testing.assert_array_equal(prediction.starts, steps)
        zeros = np.zeros(len(steps), np.int64)
        numbers = np.array([windows.find_window(0, episode, step) for step in steps])
        read = windows.batch(WindowIndices(zeros, numbers, zeros.astype(np.uint64)))
        batch = Batch(**{k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in read.items()})
        rows, last = np.arange(len(steps)), read["step_mask"].sum(1) - 1
        chunks = small.windowed(vla, batch).numpy()[rows, last]
        np.testing.assert_allclose(prediction.chunks, chunks, atol=1e-5)
        policy, _, _ = measure_prediction(vla.robots[0], prediction)
        recorded, there = (read[name][rows, last] for name in ("actions", "action_mask"))
        trained = measure_action_errors(small.embodiment().action, chunks, recorded, there)
        for one, other in zip(policy, trained, strict=True):
            assert one.counts == other.counts
            assert one.sums == pytest.approx(other.sums, abs=1e-4)


def test_episodes_that_act_together_do_not_change_each_other(mixture):
    vla = small.awake(small.policy({"name": "interleaved", "window": 3}))
    together = replayed(vla, mixture)
    for index, one in enumerate(together):
        alone = replay(vla, [(mixture.datasets[0][index], "open the drawer", "small")])[0]
        np.testing.assert_allclose(alone.chunks, one.chunks, atol=1e-5)


def test_a_policy_that_predicts_the_recorded_actions_makes_no_error(mixture, monkeypatch):
    vla = small.policy()
    [prediction] = replay(vla, [(mixture.datasets[0][1], "open the drawer", "small")])
    recorded, there = prediction.recorded_chunks()
    perfect = dataclasses.replace(prediction, chunks=np.where(there[..., None], recorded, 99))
    policy, mean, still = measure_prediction(vla.robots[0], perfect)
    assert [e.value for e in policy] == [0, 100]
    assert policy[0].counts == (5, 4, 4, 3)  # of 9 steps, 2 executed at once
    actions = prediction.actions
    expected = [np.linalg.norm(actions[s, :3] - 0.5) for s in (0, 2, 4, 6, 8)]  # the mean of the statistics is 0.5
    assert mean[0].horizon[0] == pytest.approx(np.mean(expected), rel=1e-6)
    assert still[0].horizon[0] == pytest.approx(np.linalg.norm(actions[::2, :3], axis=-1).mean(), rel=1e-6)
    before = actions[[0, 1, 3, 5, 7], 3] == actions[::2, 3]
    assert still[1].horizon[0] == pytest.approx(100 * before.mean())


def test_the_stride_may_be_another_and_the_error_says_where(mixture):
    vla = small.policy()
    assert [len(p.starts) for p in replayed(vla, mixture, execute=4)] == [1, 3, 3]
    episode = mixture.datasets[0][2]
    proprio = episode.proprio.copy()
    proprio[6] = 1e6
    with pytest.raises(ValueError, match=r"step 6 of .*episode 2.*far outside of the training data"):
        replay(vla, [(dataclasses.replace(episode, proprio=proprio), "open the drawer", "small")])
