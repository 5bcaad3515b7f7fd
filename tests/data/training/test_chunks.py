from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from anyvla.data.training.chunks import Chunks, action_normalizer, hold_out, read_chunks
from anyvla.data.training.mixture import Mixture
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Normalizer, Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, InMemory, demonstration

LENGTHS = [9, 1, 14, 5]
SCALE = 1000  # numbers are divided by this to become actions


def numbered(length: int, first: int = 0, robot: Embodiment = ROBOT) -> InMemory:
    """Return one episode; dim d of the action of step t is (first + t) / SCALE + d / 10."""
    steps = (first + np.arange(length, dtype=np.float32))[:, None] / SCALE
    actions = (steps + np.arange(robot.action.size) / 10).astype(np.float32)
    return InMemory([demonstration(length, embodiment=robot, actions=actions)], robot)


def joined(*parts: InMemory) -> InMemory:
    return InMemory([episode for part in parts for episode in part.episodes], parts[0].embodiment)


def scaling(mixture: Mixture, *reaches: float) -> Normalizer:
    """Return a normalizer that divides the actions of each robot by its reach, then clips."""
    robots = []
    for embodiment, reach in zip(robots_of(mixture), reaches or (1.0,), strict=True):
        dims = {"q01": [-reach] * embodiment.action.size, "q99": [reach] * embodiment.action.size}
        robots.append(Robot(embodiment, Statistics(dims, {}, "f")))
    return action_normalizer(mixture, robots, "quantile")


def robots_of(mixture: Mixture) -> list[Embodiment]:
    return list({d.embodiment.name: d.embodiment for d in mixture.datasets}.values())


FIRSTS = [0, 100, 200, 300]
DATA = Mixture([joined(*(numbered(n, f) for n, f in zip(LENGTHS, FIRSTS, strict=True)))], [1.0], [None])
NORMALIZER = scaling(DATA)


def numbers(chunks: Chunks) -> np.ndarray:
    """Return the numbers of the actions of each chunk: (K, N)."""
    return (chunks.actions[..., 0] * SCALE).round().int().numpy()


def by_hand(length: int, episodes: list[int]) -> tuple[list[list[int]], list[list[bool]]]:
    """Return the numbers and the masks of the chunks at each step; past the end the last action is repeated."""
    found, masks = [], []
    for episode in episodes:
        for step in range(LENGTHS[episode]):
            wanted = range(step, step + length)
            found.append([FIRSTS[episode] + min(t, LENGTHS[episode] - 1) for t in wanted])
            masks.append([t < LENGTHS[episode] for t in wanted])
    return found, masks


@pytest.mark.parametrize("length", [1, 2, 5, 20])
@pytest.mark.parametrize("episodes", [[0, 1, 2, 3], [3, 0]])
def test_a_chunk_begins_at_each_step_and_ends_with_its_episode(length: int, episodes: list[int]) -> None:
    chunks = read_chunks(DATA, NORMALIZER, length, [episodes])
    found, masks = by_hand(length, episodes)
    assert numbers(chunks).tolist() == found
    assert chunks.mask.tolist() == masks
    torch.testing.assert_close(chunks.actions - chunks.actions[..., :1], torch.arange(4).expand_as(chunks.actions) / 10)
    assert chunks.robots.tolist() == [0] * len(chunks)


@pytest.mark.parametrize(("most", "seed"), [(1, 0), (7, 0), (7, 3), (28, 1), (29, 0), (40, 0)])
def test_a_limit_keeps_one_chunk_of_each_equal_stretch(most: int, seed: int) -> None:
    data = Mixture([numbered(29)], [1.0], [None])
    left = numbers(read_chunks(data, NORMALIZER, 1, [[0]], most=most, seed=seed))[:, 0].tolist()
    if most >= 29:
        assert left == list(range(29))
        return
    assert len(left) == most
    for k, number in enumerate(left):
        assert 29 * k // most <= number < 29 * (k + 1) // most


def test_a_limit_samples_within_its_stretches_by_the_seed() -> None:
    data = Mixture([numbered(28)], [1.0], [None])
    left = [numbers(read_chunks(data, NORMALIZER, 1, [[0]], most=7, seed=s))[:, 0] for s in range(40)]
    again = numbers(read_chunks(data, NORMALIZER, 1, [[0]], most=7, seed=3))[:, 0]
    assert np.array_equal(left[3], again)
    assert set(np.concatenate(left)) == set(range(28))


def test_each_data_set_gives_its_share() -> None:
    data = Mixture([DATA.datasets[0], numbered(400, 500)], [3.0, 1.0], [None, None])
    found = numbers(read_chunks(data, NORMALIZER, 4, [range(4), [0]], most=20))[:, 0]
    assert (found < 500).tolist() == [True] * 15 + [False] * 5


def test_each_robot_has_its_own_dims_and_scaling() -> None:
    """The layout: hand 3, gripper 1 of the arm; joints 2 of the pair, which has the same gripper."""
    pair = dataclasses.replace(
        ROBOT,
        name="pair",
        action=ActionSpace(groups=(Group(name="joints", size=2, kind="joints"), ROBOT.action.groups[1])),
    )
    data = Mixture([numbered(3), numbered(2, 400, pair)], [1.0, 1.0], [None, None])
    chunks = read_chunks(data, scaling(data, 2.0, 4.0), 1, [[0], [0]])
    assert chunks.robots.tolist() == [0, 0, 0, 1, 1]
    arm = [[t / 2000, (0.1 + t / 1000) / 2, (0.2 + t / 1000) / 2, 0.3 + t / 1000, 0, 0] for t in range(3)]
    two = [[0, 0, 0, 0.6 + t / 1000, (0.4 + t / 1000) / 4, (0.5 + t / 1000) / 4] for t in range(2)]
    torch.testing.assert_close(chunks.actions[:, 0], torch.tensor(arm + two))


def test_scaling_maps_percentiles_to_one_and_clips_the_rest() -> None:
    low, high = [-2.0, 0.0, 5.0, -9.0], [2.0, 1.0, 9.0, 9.0]
    normalizer = action_normalizer(DATA, [Robot(ROBOT, Statistics({"q01": low, "q99": high}, {}, "f"))], "quantile")
    given = torch.tensor([[-2.0, 0.0, 5.0, -1.0], [1.0, 0.25, 8.0, 0.5], [3.0, -1.0, 99.0, 2.0]])
    expected = [[-1.0, -1.0, -1.0, -1.0], [0.5, -0.5, 0.5, 0.5], [1.0, -1.0, 1.0, 1.0]]  # a gripper's range is declared
    assert normalizer.normalize(given, torch.zeros(3, dtype=torch.int64)).tolist() == expected


@pytest.mark.parametrize(("method", "expected"), [("quantile", 0.5), ("minmax", 0.25), ("meanstd", 0.125)])
def test_each_method_scales_by_its_own_statistics(method, expected: float) -> None:
    ends = {"q01": -2, "q99": 2, "min": -4, "max": 4, "mean": 0, "std": 8}
    robot = Robot(ROBOT, Statistics({key: [float(value)] * 4 for key, value in ends.items()}, {}, "f"))
    scaled = action_normalizer(DATA, [robot], method).normalize(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64))
    assert scaled[0].tolist() == [expected] * 3 + [1.0]


@pytest.mark.parametrize(("count", "aside"), [(0, 0), (1, 0), (2, 1), (10, 1), (14, 1), (16, 2), (200, 20)])
def test_a_tenth_of_the_episodes_is_held_out(count: int, aside: int) -> None:
    own, held = hold_out(count)
    assert len(held) == aside
    assert sorted(own + held) == list(range(count))
    assert (own, held) == (sorted(own), sorted(held))
    assert len(hold_out(count, share=0.5)[1]) == (count // 2 if count > 1 else 0)


def test_the_held_out_episodes_depend_on_the_seed() -> None:
    held = [tuple(hold_out(20, 0.2, seed)[1]) for seed in range(60)]
    assert hold_out(20, 0.2, 7)[1] == list(held[7])
    assert hold_out(20, 0.2)[1] == list(held[0])
    assert len(set(held)) > 50
    assert np.bincount(np.concatenate(held), minlength=20).min() > 3  # 12 times each, on average


def test_chunks_of_no_episode_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no episode to take chunks from"):
        read_chunks(DATA, NORMALIZER, 4, [[]])
