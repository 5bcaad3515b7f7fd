from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.transforms.subset import CameraSubset, Subset, choose
from tests.data.demonstrations import Counted, InMemory, demonstration, scene


class Tasks(InMemory):
    """A data set of these tasks whose episodes must not be read."""

    def __init__(self, tasks):
        super().__init__([])
        self.tasks = list(tasks)

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, index):
        raise AssertionError("choosing needs the index only")

    def task(self, index):
        return self.tasks[index]


MANY = Tasks(["open"] * 40 + ["close", "lift"] * 20)


def names(data, indices):
    return [data.task(i) for i in indices]


def test_k_of_each_task():
    chosen = choose(MANY, per_task=3)
    assert sorted(names(MANY, chosen)) == ["close"] * 3 + ["lift"] * 3 + ["open"] * 3
    assert chosen == sorted(chosen)
    assert len(choose(MANY, per_task=3, scale=5)) == 45
    assert len(choose(MANY, per_task=4, scale=0.1)) == 3  # at least one of each


def test_a_share_of_each_task():
    chosen = choose(MANY, scale=0.1)
    assert sorted(names(MANY, chosen)) == ["close"] * 2 + ["lift"] * 2 + ["open"] * 4
    assert choose(MANY) == list(range(80))
    assert len(choose(MANY, scale=0.001)) == 3


@given(seed=st.integers(0, 99), small=st.floats(0.01, 1), large=st.floats(0.01, 1), k=st.integers(1, 20))
def test_the_smaller_choice_is_a_part_of_the_larger_one(seed, small, large, k):
    small, large = sorted([small, large])
    assert set(choose(MANY, scale=small, seed=seed)) <= set(choose(MANY, scale=large, seed=seed))
    assert set(choose(MANY, k, small, seed)) <= set(choose(MANY, k, large, seed))
    assert set(choose(MANY, 1, seed=seed)) <= set(choose(MANY, k, seed=seed))
    assert choose(MANY, k, seed=seed) == choose(MANY, k, seed=seed)


@pytest.mark.parametrize(
    ("count", "scale", "chosen"),
    [(5, 0.5, 3), (5, 0.49, 2), (7, 0.5, 4), (4, 0.125, 1), (9, 0.05, 1), (9, 1.0, 9), (4, 0.625, 3), (4, 0.6, 2)],
)
def test_counts_are_rounded_with_halves_up(count, scale, chosen):
    assert len(choose(Tasks(["a"] * count), scale=scale)) == chosen
    assert len(choose(Tasks(["a"] * 2 * count), per_task=count, scale=scale)) == chosen


def test_tasks_sample_independently():
    """One of the 10 episodes of each of 40 tasks is chosen: each rank about equally often."""
    tasks = Tasks([f"task {i % 40}" for i in range(400)])
    ranks = np.bincount([i // 40 for i in choose(tasks, per_task=1)], minlength=10)
    assert ranks.sum() == 40
    assert ranks.max() < 12


def test_spellings_of_one_instruction_are_one_task():
    assert len(choose(Tasks(["open it", " open  it", "open it "]), per_task=2)) == 2


def test_later_versions_choose_the_same_episodes():
    """A recipe with a subset must give the same episodes as in the first version."""
    assert choose(MANY, per_task=3) == [1, 30, 36, 46, 50, 55, 70, 71, 79]
    assert choose(MANY, per_task=2, seed=7) == [3, 7, 46, 48, 53, 77]


def test_seeds_differ():
    assert len({tuple(choose(MANY, per_task=3, seed=seed)) for seed in range(20)}) == 20


@given(order=st.permutations(["a"] * 6 + ["b"] * 9 + ["c"] * 3), share=st.floats(0.05, 1))
def test_the_choice_within_a_task_does_not_depend_on_other_tasks(order, share):
    def ranks(tasks):
        data, seen, out = Tasks(tasks), {}, set()
        chosen = set(choose(data, scale=share, seed=1))
        for i, task in enumerate(tasks):
            seen[task] = seen.get(task, -1) + 1
            if i in chosen:
                out.add((task, seen[task]))
        return out

    assert ranks(order) == ranks(sorted(order))
    without = [task for task in order if task != "b"]
    assert ranks(without) == {(task, rank) for task, rank in ranks(order) if task != "b"}


def test_episodes_added_at_the_end_may_join_but_do_not_shuffle_the_rest():
    before, after = set(choose(Tasks(["a"] * 50), 10)), set(choose(Tasks(["a"] * 60), 10))
    assert {i for i in after if i < 50} <= before


def test_tasks_with_too_few_episodes_are_listed():
    data = Tasks(["open"] * 9 + ["close"] * 4 + ["lift"] * 2)
    with pytest.raises(
        ValueError, match=r"too few episodes of 2 of its 3 tasks: 'close' has 4 of 5, 'lift' has 2 of 5;"
    ):
        choose(data, per_task=1, scale=5)
    crowd = Tasks([str(i) for i in range(30)])
    with pytest.raises(ValueError, match=r"too few episodes of 30 of its 30 tasks: .*'19' has 1 of 2 and 10 more; ask"):
        choose(crowd, per_task=2)


def test_a_subset_is_these_episodes_in_this_order():
    data = InMemory([demonstration(5 + i, seed=i) for i in range(4)])
    subset = Subset(data, [3, 1])
    assert len(subset) == 2
    assert subset.lengths.tolist() == [8, 6]
    assert subset[0] is data.episodes[3]
    assert subset.task(1) == data.task(1)
    named = Subset(Tasks(["open", "close", "lift", "push"]), [3, 1])
    assert [named.task(i) for i in range(2)] == ["push", "close"]
    again = pickle.loads(pickle.dumps(subset))
    assert again.lengths.tolist() == [8, 6]
    assert again.fingerprint == subset.fingerprint
    assert len({d.fingerprint for d in (data, subset, Subset(data, [1, 3]), Subset(subset, [0]))}) == 4
    assert [c["episodes"] for c in Subset(subset, [0]).provenance["changes"]] == [2, 1]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "memory: the subset is empty"),
        ([0, 4], "memory has 4 episodes; there is no episode 4"),
        ([-1], "there is no episode -1"),
        ([2, 0, 2], "memory: episode 2 is chosen more than once"),
    ],
)
def test_indices_are_checked(indices, message):
    data = InMemory([demonstration(5, seed=i) for i in range(4)])
    with pytest.raises(ValueError, match=message):
        Subset(data, indices)


@pytest.mark.parametrize("index", [-1, 2])
def test_no_episode_outside_of_the_subset(index):
    subset = Subset(InMemory([demonstration(5, seed=i) for i in range(4)]), [3, 1])
    with pytest.raises(IndexError, match=f"the subset has 2 episodes; no episode {index}"):
        subset[index]


def test_cameras_are_renamed_in_the_given_order_and_others_never_decoded():
    corner, wrist = Counted(scene(6)), Counted(scene(6, seed=7))
    data = InMemory([demonstration(6, images={"corner": corner, "wrist": wrist})])
    seen = CameraSubset(data, {"hand": "wrist"})
    assert seen.embodiment.cameras == seen[0].embodiment.cameras == ("hand",)
    np.testing.assert_array_equal(seen[0].images["hand"][[4, 1]], scene(6, seed=7)[[4, 1]])
    assert list(seen[0].images) == ["hand"]
    assert (corner.decoded, wrist.decoded) == (0, 2)
    both = CameraSubset(data, {"hand": "wrist", "primary": "corner"})
    assert both.embodiment.cameras == ("hand", "primary")
    np.testing.assert_array_equal(both[0].images["hand"][:], scene(6, seed=7))
    np.testing.assert_array_equal(both[0].images["primary"][:], scene(6))
    assert both.lengths.tolist() == [6]
    assert (len(both), both.task(0)) == (1, data.task(0))


def test_cameras_are_part_of_the_fingerprint_and_survive_pickling():
    data = InMemory([demonstration(6)])
    one = CameraSubset(data, {"a": "wrist", "b": "corner"})
    other = CameraSubset(data, {"b": "corner", "a": "wrist"})
    assert len({data.fingerprint, one.fingerprint, other.fingerprint}) == 3  # the order of views counts
    assert one.provenance == {"format": "memory", "changes": [{"cameras": [["a", "wrist"], ["b", "corner"]]}]}
    again = pickle.loads(pickle.dumps(one))
    assert again.fingerprint == one.fingerprint
    np.testing.assert_array_equal(again[0].images["a"], one[0].images["a"])


def test_an_unknown_camera_is_refused():
    data = InMemory([demonstration(6)])
    with pytest.raises(ValueError, match=r"memory has no camera 'wirst' to be 'hand': did you mean 'wrist'\?"):
        CameraSubset(data, {"hand": "wirst"})
    with pytest.raises(ValueError, match="choose one camera of memory at least: corner, wrist"):
        CameraSubset(data, {})
