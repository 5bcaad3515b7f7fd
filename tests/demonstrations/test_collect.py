from __future__ import annotations

import dataclasses
import errno
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyvla.config import ConfigError, build
from anyvla.data.formats.lerobot import writer as lerobot_writer
from anyvla.data.open import open_dataset
from anyvla.demonstrations.collect import CollectConfig, collect, demonstrate
from anyvla.evaluation.suites import FIRST_DEMONSTRATION_SEED, open_suite
from anyvla.evaluation.workers import EnvironmentFailed
from anyvla.interrupted import Interrupted
from anyvla_sim.spec import Spec
from anyvla_sim.workers.remote import connect
from tests.evaluation import toy_world
from tests.evaluation.toy_opened import EMBODIMENT, opened
from tests.evaluation.toy_world import GIVES_UP, SUITE, Toy

CONFIG = CollectConfig(demonstrations=3, noise=(0.0, 0.3), processes=2, keep_after_success=2)
FAILING = opened(fails=(FIRST_DEMONSTRATION_SEED + 1, FIRST_DEMONSTRATION_SEED + 3))


def stop_after(count: int) -> tuple[Callable[[int, int], None], Callable[[], bool]]:
    """Return a `progress` and a `stop` that stops once `count` demonstrations are done."""
    seen = [0]

    def progress(done: int, total: int) -> None:
        seen[0] = done

    return progress, lambda: seen[0] >= count


def test_collected_demonstrations_can_be_read(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = collect(opened(), CONFIG, tmp_path / "data", progress=lambda *p: seen.append(p))
    data = open_dataset(root)
    assert seen == [(n, 9) for n in range(10)]
    assert data.embodiment == EMBODIMENT
    assert Counter(e.extra["task"] for e in data) == {"left": 3, "right": 3, "up": 3}
    assert data.notes.get("failures", {}) == {}
    assert data.provenance["versions"] == {"toy": "1"}
    assert data.provenance["settings"] == {"render": "fast"}
    for number, episode in enumerate(data):
        task = SUITE.tasks[number % 3]
        assert episode.extra == {
            "task": task.name,
            "scene": task.scene,
            "seed": FIRST_DEMONSTRATION_SEED + number // 3,
            "noise": (0.0, 0.3)[number // 3 % 2],
            "factors": "original",
        }
        assert episode.instruction == task.instructions[number // 3 % 2]
        sign = {"left": [-1, 0, 0, -1], "right": [1, 0, 0, -1], "up": [0, 0, 1, -1]}[task.name]
        assert (episode.actions == sign).all()  # clean labels, under noise too
        moved = np.diff(episode.proprio, axis=0)
        assert np.allclose(moved, 0.2 * episode.actions[:-1, :3], atol=1e-6) == (episode.extra["noise"] == 0)
        axis, way = int(np.argmax(np.abs(sign[:3]))), sum(sign[:3])
        past = way * episode.proprio[:, axis] > 1
        assert past.sum() == 2  # the last action reaches the goal; two more are kept
        assert episode.images["corner"].shape == (len(episode), 32, 32, 3)


def test_an_interrupted_collection_resumes_to_the_same_data(tmp_path: Path) -> None:
    whole = open_dataset(collect(FAILING, CONFIG, tmp_path / "whole"))
    progress, stop = stop_after(6)  # after both failures
    one = dataclasses.replace(CONFIG, processes=1)  # the number of processes may differ
    with pytest.raises(Interrupted, match=r"stopped after \d of 9 demonstrations; run the same command to resume"):
        collect(FAILING, one, tmp_path / "parts", progress=progress, stop=stop)
    assert not (tmp_path / "parts").exists()
    kept = len(list((tmp_path / "parts.partial").glob("episode-*")))
    assert 6 <= kept < 9
    seen: list[int] = []
    parts = open_dataset(collect(FAILING, CONFIG, tmp_path / "parts", progress=lambda done, _: seen.append(done)))
    assert seen == list(range(kept, 10))  # no attempt is repeated
    assert parts.fingerprint == whole.fingerprint
    # Failures were dropped, counted, and replaced by the next attempts.
    for data in (whole, parts):
        assert data.notes["failures"]["right"] == [1, 3]
        seeds: dict[str, list[int]] = {task.name: [] for task in SUITE.tasks}
        for e in data:
            seeds[e.extra["task"]].append(e.extra["seed"] - FIRST_DEMONSTRATION_SEED)
        assert seeds == {"left": [0, 1, 2], "right": [0, 2, 4], "up": [0, 1, 2]}


def test_a_complete_collection_is_left_alone(tmp_path: Path) -> None:
    few = dataclasses.replace(CONFIG, demonstrations=1)
    root = collect(opened(), few, tmp_path / "data")
    stamp = (root / "meta/info.json").stat().st_mtime_ns
    assert collect(opened(), dataclasses.replace(few, processes=1), root) == root
    assert (root / "meta/info.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"made with other settings \(demonstrations: 1 then, 2 now\): remove it"):
        collect(opened(), dataclasses.replace(few, demonstrations=2), root)
    with pytest.raises(ValueError, match="render: 'fast' then, 'native' now"):
        collect(opened(render="native"), few, root)
    with pytest.raises(ValueError, match="benchmark: 'toy/line' then, 'toy/kept' now"):
        collect(opened("kept"), few, root)


def test_a_begun_collection_refuses_other_settings(tmp_path: Path) -> None:
    progress, stop = stop_after(1)
    with pytest.raises(Interrupted):
        collect(opened(), CONFIG, tmp_path / "data", progress=progress, stop=stop)
    with pytest.raises(ValueError, match="was begun with other settings"):
        collect(opened(), dataclasses.replace(CONFIG, seed=1), tmp_path / "data")


def test_an_expert_that_never_succeeds_is_named(tmp_path: Path) -> None:
    never = opened(fails=tuple(range(FIRST_DEMONSTRATION_SEED, FIRST_DEMONSTRATION_SEED + 100)))
    with pytest.raises(EnvironmentFailed, match=r"the expert of right failed 12 times: less noise may help"):
        collect(never, dataclasses.replace(CONFIG, demonstrations=1), tmp_path / "data")


def test_attempts_that_fail() -> None:
    cart = FAILING.benchmark.make("line")
    assert demonstrate(cart, EMBODIMENT, SUITE, CONFIG, "right", 1) is None  # ends at the other goal
    assert demonstrate(cart, EMBODIMENT, SUITE, CONFIG, "right", 0) is not None
    short = dataclasses.replace(SUITE, horizon=3)
    assert demonstrate(cart, EMBODIMENT, short, CONFIG, "right", 0) is None
    exact = dataclasses.replace(SUITE, horizon=6)
    episode = demonstrate(cart, EMBODIMENT, exact, CONFIG, "right", 0)
    assert episode is not None
    assert len(episode) <= 6  # reached with the last action or just before, so nothing is kept after it


def test_an_expert_that_gives_up_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment in this process or in a worker can still be used."""
    assert FIRST_DEMONSTRATION_SEED + 7 == GIVES_UP
    monkeypatch.setenv("PYTHONPATH", str(Path(toy_world.__file__).parents[2]))
    benchmark = connect(Spec("tests.evaluation.toy_world:Toy", {}, sys.executable))
    for cart in (Toy().make("line"), benchmark.make("line")):
        assert demonstrate(cart, EMBODIMENT, SUITE, CONFIG, "right", 7) is None
        assert demonstrate(cart, EMBODIMENT, SUITE, CONFIG, "right", 0) is not None
    benchmark.close()


def test_attempts_differ_and_repeat() -> None:
    cart = Toy().make("line")
    first, again, other = (demonstrate(cart, EMBODIMENT, SUITE, CONFIG, "up", n) for n in (1, 1, 3))
    assert first is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(first.proprio, again.proprio)
    assert not np.array_equal(first.proprio[:5], other.proprio[:5])
    reseeded = demonstrate(cart, EMBODIMENT, SUITE, dataclasses.replace(CONFIG, seed=1), "up", 1)
    assert reseeded is not None
    assert reseeded.extra["seed"] == 2 * FIRST_DEMONSTRATION_SEED + 1


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lerobot_writer, "merge", full)
    root = tmp_path / "data"
    few = dataclasses.replace(CONFIG, demonstrations=1)
    with pytest.raises(OSError, match=r"the disk is full while writing .*resumes after the episodes written so far"):
        collect(opened(), few, root)
    monkeypatch.undo()
    seen: list[int] = []
    collect(opened(), few, root, progress=lambda done, _: seen.append(done))
    assert seen == [3]  # nothing was lost


def test_a_full_disk_in_a_worker_is_reported(tmp_path: Path) -> None:
    full = dataclasses.replace(opened(), spec=Spec(f"{__name__}:FullDisk"))
    with pytest.raises(OSError, match="the disk is full while writing") as raised:
        collect(full, dataclasses.replace(CONFIG, demonstrations=1), tmp_path / "data")
    assert raised.value.errno == errno.ENOSPC


class FullDisk(Toy):
    """Fills the disk of the process that makes its environments."""

    def make(self, suite: str):  # type: ignore[no-untyped-def]
        def full(*args: object, **keys: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        lerobot_writer.video.encode = full
        return super().make(suite)


def test_some_tasks_of_another_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data equals that of this process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(toy_world.__file__).parents[2]))
    config = dataclasses.replace(CONFIG, demonstrations=1, tasks=("up", "left"))
    here = open_dataset(collect(opened(), config, tmp_path / "here"))
    elsewhere = dataclasses.replace(opened(), spec=Spec("tests.evaluation.toy_world:Toy", {}, sys.executable))
    there = open_dataset(collect(elsewhere, config, tmp_path / "there"))
    assert [e.extra["task"] for e in here] == ["up", "left"]
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(np.asarray(a.images["corner"]), np.asarray(b.images["corner"]))


def test_more_of_a_hard_task(tmp_path: Path) -> None:
    """`more` adds attempts and leaves the others as they are."""
    few = dataclasses.replace(CONFIG, demonstrations=1, tasks=("up", "left"))
    usual = open_dataset(collect(opened(), few, tmp_path / "usual"))
    data = open_dataset(collect(opened(), dataclasses.replace(few, more={"left": 2}), tmp_path / "more"))
    assert [e.extra["task"] for e in usual] == ["up", "left"]
    assert sorted(e.extra["task"] for e in data) == ["left", "left", "left", "up"]
    of_left = [e for e in data if e.extra["task"] == "left"]
    assert np.array_equal(of_left[0].actions, usual[1].actions)
    assert len({e.extra["seed"] for e in of_left}) == 3


def test_more_of_a_task_that_is_not_demonstrated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"collect.more: 'lefft' is no task to demonstrate: did you mean 'left'"):
        collect(opened(), dataclasses.replace(CONFIG, more={"lefft": 2}), tmp_path / "data")
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        build(CollectConfig, {"more": {"left": 0}})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("noise", [[], [0.1, -0.1]])
def test_bad_noise(noise: list[float]) -> None:
    with pytest.raises(ValueError, match="noise"):
        CollectConfig(noise=tuple(noise))


@pytest.mark.simulator("metaworld")
def test_meta_world(tmp_path: Path) -> None:
    config = CollectConfig(demonstrations=1, processes=2, tasks=("drawer-open", "drawer-close"))
    data = open_dataset(collect(open_suite("metaworld/half-open", {"render": "fast"}), config, tmp_path / "data"))
    opening, closing = data[0], data[1]
    assert (opening.instruction, closing.instruction) == ("open the drawer", "close the drawer")
    for camera in data.embodiment.cameras:  # one start state: only the instructions differ
        apart = np.abs(opening.images[camera][0].astype(int) - closing.images[camera][0])
        assert apart.mean() < 3  # lossy video
    assert np.array_equal(opening.proprio[0], closing.proprio[0])
    assert opening.proprio.shape == (len(opening), 4)


@pytest.mark.parametrize(
    ("scene", "match"),
    [
        ("load=huge", r"collect.scenes: load=huge: load has no level 'huge'; .*heavy"),
        ("wind=strong", r"collect.scenes: wind=strong: .* has no factor 'wind'; known: load: light, heavy"),
    ],
)
def test_a_scene_that_the_benchmark_does_not_have_is_refused(tmp_path: Path, scene: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        collect(opened(), dataclasses.replace(CONFIG, scenes=(scene,)), tmp_path / "data")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scenes", "match"),
    [
        ([], "scenes needs at least one"),
        (["load"], "'load' is none of FACTOR=LEVEL"),
        (["delay=2"], "must consist of FACTOR=LEVEL only"),
    ],
)
def test_a_scene_is_factors_with_levels(scenes: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(CollectConfig, {"scenes": scenes})


def test_older_data_without_a_newer_setting_has_its_default(tmp_path: Path) -> None:
    few = dataclasses.replace(CONFIG, demonstrations=1)
    root = collect(opened(), few, tmp_path / "data")
    info = root / "meta/info.json"
    kept = json.loads(info.read_text())
    assert kept["anyvla"]["provenance"]["collect"].pop("scenes") == ["original"]
    info.write_text(json.dumps(kept))
    assert collect(opened(), few, root) == root
    with pytest.raises(ValueError, match=r"scenes.0: 'original' then, 'load=heavy' now"):
        collect(opened(), dataclasses.replace(few, scenes=("load=heavy",)), root)
