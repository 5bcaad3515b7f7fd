from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla_sim.calvin import sequences as calvin_sequences
from anyvla_sim.calvin.sequences import (
    SEQUENCES,
    UTILS,
    hash_as_pyhash,
    load_chains,
    load_start_states,
    sample_chains,
)
from tests.sim.calvin import calvin_root

installed = pytest.mark.simulator("calvin")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    return calvin_root.write(tmp_path / "calvin")


def test_start_states_are_seeded_by_the_hash_and_need_neither_torch_nor_pyhash(root: Path) -> None:
    robot, scene = load_start_states(root)({"led": 1, "slider": "left"})
    seed = hash_as_pyhash("dict_values([1, 'left'])")
    assert np.array_equal(scene, np.random.RandomState(seed).uniform(size=24))
    assert robot.tolist() == [np.pi] * 15


def test_strings_are_hashed_as_pyhash_does() -> None:
    """pyhash 0.9.3's own tests (tests/test_fnv1.py) have the first number; its C++ gave the second for chain 0."""
    assert hash_as_pyhash("test") == 3910690890
    start = {"led": 1, "lightbulb": 1, "slider": "left", "drawer": "open", "red_block": "slider_left"}
    start.update(blue_block="table", pink_block="slider_right", grasped=0)
    assert hash_as_pyhash(str(start.values())) == 2138410836


def test_sampling_in_this_process_equals_sampling_in_workers(root: Path) -> None:
    """A worker process has its own generator, and the list is shuffled with one that no worker has changed."""
    sampled = sample_chains(root, 7)
    expected: Any = []
    for number in range(7):
        worker = np.random.RandomState(number)
        expected.append(({"led": number}, tuple(str(worker.randint(100)) for _ in range(5))))
    np.random.RandomState(0).shuffle(expected)
    assert list(sampled) == expected


def test_sampling_does_not_change_the_global_generator(root: Path) -> None:
    np.random.seed(5)
    sample_chains(root, 3)
    assert np.random.randint(1 << 30) == np.random.RandomState(5).randint(1 << 30)


def test_chains_are_sampled_once_per_source(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_chains(root)
    assert len(first) == 1000
    assert set(first[0].start) == {"led"}
    with monkeypatch.context() as patched:
        patched.setattr(calvin_sequences, "sample_chains", lambda root: pytest.fail("sampled again"))
        assert load_chains(root) == first
    source = root / SEQUENCES
    source.write_text(source.read_text().replace('{"led": i}', '{"led": 1000 + i}'))
    assert {chain.start["led"] for chain in load_chains(root)} == set(range(1000, 2000))


def test_a_damaged_cache_is_replaced(root: Path, tmp_path: Path) -> None:
    first = load_chains(root)
    (kept,) = (tmp_path / "cache" / "calvin").glob("*.json")
    kept.write_text(kept.read_text()[:100])
    assert load_chains(root) == first


def test_without_a_cache_the_chains_are_sampled_each_time(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    first = load_chains(root)
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "file"))
    assert load_chains(root) == first
    assert "the chains cannot be cached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"),
    [(UTILS, "get_env_state_for_initial_condition"), (UTILS, "temp_seed"), (SEQUENCES, "get_sequences")],
)
def test_other_code_is_refused(root: Path, file: str, name: str) -> None:
    path = root / file
    path.write_text(path.read_text().replace(f"def {name}(", "def other("))
    with pytest.raises(ValueError, match=rf"{path.name} defines no {name}\(\): not the CALVIN of"):
        _ = load_start_states(root) if name.startswith("get_env") else sample_chains(root, 1)


@installed
def test_poses_equal_those_with_pyhash() -> None:
    """CALVIN gives these angles of the red, blue and pink block with pyhash 0.9.3, built for this test."""
    poses = load_start_states(Path(os.environ["CALVIN_ROOT"]))
    angles = [
        (1.8859410064104645, 1.488143437705632, 1.4683986863194542),
        (1.8268336264859704, 1.507641694779252, 1.6461964143959458),
        (1.4912139041697137, 1.610703281474808, 1.5452273400945669),
    ]
    for chain, expected in zip(calvin_root.OFFICIAL, angles):  # noqa: B905  (Python 3.8)
        robot, scene = poses(chain.start)
        assert robot.shape == (15,)
        assert scene[[11, 17, 23]].tolist() == pytest.approx(expected, abs=1e-12)


@installed
@pytest.mark.slow
def test_the_official_list() -> None:
    sampled = sample_chains(Path(os.environ["CALVIN_ROOT"]))
    assert len(sampled) == 1000
    assert [(dict(start), list(tasks)) for start, tasks in sampled[:3]] == [
        (dict(chain.start), list(chain.tasks)) for chain in calvin_root.OFFICIAL
    ]
