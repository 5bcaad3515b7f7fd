"""Break a served path in each known way: the doctor names the fault."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyvla.doctor.clients import FunctionClient
from anyvla.doctor.diagnosis import Diagnosis, Doctor
from anyvla.doctor.difference import Comparison
from anyvla.doctor.faults.catalog import list_faults
from anyvla.doctor.played import Answers, Played
from anyvla.doctor.simulation import Calls
from anyvla.policy import VLA
from anyvla.types import Observation
from tests.doctor import recordings

EXECUTE = 2


class Clinic:
    """A policy, its episodes, and a doctor for clients of chunks and one for clients of actions, with shared work."""

    def __init__(self, folder: Path) -> None:
        self.mixture = recordings.write(folder)
        self.vla: VLA = recordings.policy(
            self.mixture, {"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1}
        )
        self.vla.implausible = "warn"
        self.episodes: list[Played] = recordings.played(self.vla, self.mixture)
        self.comparison = Comparison(self.vla, 0, 1e-5)

    @cache  # noqa: B019
    def doctor(self, whole_chunks: bool) -> tuple[Doctor, list[Any]]:
        faults = list_faults(self.vla, 0, self.episodes, execute=EXECUTE, whole_chunks=whole_chunks)
        calls = Calls(EXECUTE, whole_chunks, 4 if whole_chunks else 1)
        return Doctor(self.vla, self.episodes, calls, [1, 2, 3], self.comparison, 100), faults

    def diagnose(self, served: list[Answers]) -> Diagnosis:
        doctor, faults = self.doctor(served[0].actions.shape[1] > 1)
        return doctor.diagnose(np.concatenate([s.actions for s in served]), faults)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyvla.doctor.faults.images._USUAL_SIDES", (224,))  # fewer faults take less time
        yield Clinic(tmp_path_factory.mktemp("data"))


def names(diagnosis: Diagnosis) -> set[str]:
    assert diagnosis.best is not None
    return {diagnosis.best.fault.name, *(c.fault.name for c in diagnosis.same)}


def each_image(change: Callable[[np.ndarray], np.ndarray]) -> recordings.Change:
    return lambda seen: seen | {"images": {c: np.ascontiguousarray(change(i)) for c, i in seen["images"].items()}}


def resize(size: tuple[int, int], filter: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: np.asarray(Image.fromarray(image).resize(size[::-1], filter))


def jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file))


def proprio(change: Callable[[np.ndarray], Any]) -> recordings.Change:
    def changed(seen: dict[str, Any]) -> dict[str, Any]:
        values = seen["proprio"].copy()
        out = change(values)
        return seen | {"proprio": np.asarray(values if out is None else out, np.float32)}

    return changed


def in_degrees(values: np.ndarray) -> None:
    values[3:6] = np.rad2deg(values[3:6])


def in_millimeters(values: np.ndarray) -> None:
    values[:3] *= 1000


def opposite(values: np.ndarray) -> None:
    values[6] = 1 - values[6]


def swapped(seen: dict[str, Any]) -> dict[str, Any]:
    return seen | {"images": {"front": seen["images"]["wrist"], "wrist": seen["images"]["front"]}}


def black(seen: dict[str, Any]) -> dict[str, Any]:
    return seen | {"images": {**seen["images"], "wrist": np.zeros((40, 48, 3), np.uint8)}}


def repeated(seen: dict[str, Any]) -> dict[str, Any]:
    return seen | {"images": dict.fromkeys(seen["images"], seen["images"]["front"])}


OBSERVATIONS: dict[str, recordings.Change] = {
    "cameras front and wrist swapped": swapped,
    "camera wrist missing (black)": black,
    "camera wrist repeats front": repeated,
    "red and blue swapped (BGR)": each_image(lambda image: image[..., ::-1]),
    "images rotated by 180 degrees": each_image(lambda image: np.rot90(image, 2)),
    "images upside down (flipped)": each_image(np.flipud),
    "images mirrored left to right": each_image(np.fliplr),
    "images as [0, 1] floats cast to uint8 (almost black)": each_image(lambda i: (i / 255.0).astype(np.uint8)),
    "JPEG compression of quality 80": each_image(jpeg),
    "images resized to 32x32 (nearest, as Pillow)": each_image(resize((32, 32), Image.Resampling.NEAREST)),
    "images resized to 224x224 (nearest, as Pillow)": each_image(resize((224, 224), Image.Resampling.NEAREST)),
    "images resized to 32x32 (cropped to the aspect)": each_image(
        lambda image: resize((32, 32), Image.Resampling.BILINEAR)(image[:, 4:44])
    ),
    "proprio rotation sent in degrees instead of radians": proprio(in_degrees),
    "proprio position sent in millimeters instead of meters": proprio(in_millimeters),
    "proprio groups in the order gripper, position, rotation": proprio(lambda v: np.r_[v[6], v[:6]]),
    "proprio gripper with the opposite polarity": proprio(opposite),
    "proprio missing (zeros)": proprio(lambda v: v * 0),
    "the instruction is empty": lambda seen: seen | {"instruction": ""},
    "the instruction is always 'open the drawer'": lambda seen: seen | {"instruction": "open the drawer"},
    "the instruction is sent in lower case": lambda seen: seen | {"instruction": seen["instruction"].lower()},
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_a_fault_of_observations_is_named(clinic: Clinic, name: str) -> None:
    client = recordings.ask_in_process(clinic.vla, OBSERVATIONS[name])
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert name in names(found), (found.best, found.next)
    assert found.fit in ("exact", "close")


def normalized_twice(clinic: Clinic) -> recordings.Change:
    of = clinic.vla.robots[0].statistics.proprio
    space = clinic.vla.robots[0].embodiment.proprio.slices()

    def change(values: np.ndarray) -> np.ndarray:
        out = (values - np.array(of["mean"])) / np.array(of["std"])
        out[space["gripper"]] = 2 * values[space["gripper"]] - 1  # scaled by its declared range
        return out

    return proprio(change)


def test_proprio_that_is_normalized_twice_is_named(clinic: Clinic) -> None:
    client = recordings.ask_in_process(clinic.vla, normalized_twice(clinic))
    assert names(clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))) == {"proprio normalized twice"}


def flip_gripper(chunk: np.ndarray) -> np.ndarray:
    return chunk * np.array([1, 1, 1, -1], np.float32)


ACTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "actions: gripper with the opposite polarity": flip_gripper,
    "actions: position dim 1 with the opposite sign": lambda chunk: chunk * np.array([1, -1, 1, 1], np.float32),
    "actions: position sent in millimeters instead of meters": lambda c: (
        c * np.array([1000, 1000, 1000, 1], np.float32)
    ),
    "the first action of each chunk is dropped": lambda chunk: np.r_[chunk[1:], chunk[-1:]],
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_fault_of_actions_is_named(clinic: Clinic, name: str) -> None:
    client = recordings.ask_in_process(clinic.vla, after=ACTIONS[name])
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert (found.fit, name in names(found)) == ("exact", True), (found.best, found.next)


def test_actions_that_are_not_unnormalized_are_named(clinic: Clinic) -> None:
    of = clinic.vla.robots[0].statistics.action
    low, high = (np.array(of[end])[:3] for end in ("low", "high"))

    def normalize(chunk: np.ndarray) -> np.ndarray:
        return np.c_[(2 * (chunk[:, :3] - low) / (high - low) - 1), chunk[:, 3:]].astype(np.float32)

    client = recordings.ask_in_process(clinic.vla, after=normalize)
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert "actions not un-normalized" in names(found), (found.best, found.next)


class Robot:
    """The code of a robot with faults of time: it keeps its session and frames itself."""

    def __init__(self, vla: VLA, **faults: Any) -> None:
        self.vla, self.faults, self.number = vla, faults, 0
        self.frames: list[Observation] = []
        self.left: list[np.ndarray] = []
        self.session: Any = None
        self.text = ""

    def ask(self, seen: dict[str, Any]) -> np.ndarray:
        now = Observation(seen["images"], seen["proprio"])
        if seen["step"] == 0:
            self.frames = []
            if not (self.faults.get("stale") and self.session is not None and self.text == seen["instruction"]):
                self.session, self.left = self.vla.start(seen["instruction"]), []
            self.text = seen["instruction"]
        self.frames.append(now)
        if self.faults.get("lost"):
            self.session = self.vla.start(seen["instruction"])
        late = self.faults.get("late", 0)
        shown = self.frames[max(0, len(self.frames) - 1 - late)]
        if self.faults.get("camera_late"):
            shown = Observation(self.frames[max(0, len(self.frames) - 2)].images, now.proprio)
        if not self.left:
            for _ in range(self.faults.get("calls", 1)):
                chunk = self.vla.act([shown], [self.session])[0].actions
            self.left = list(chunk[: self.faults.get("execute", EXECUTE)])
        elif self.faults.get("every_step"):
            self.vla.act([shown], [self.session])
        return self.left.pop(0)


TIMINGS: dict[str, dict[str, Any]] = {
    "the history is lost: a session begins at every call": {"lost": True},
    "the history is lost: a session, and with it a chunk, begins at every control step": {"lost": True, "execute": 1},
    "the history is stale: it is not reset between episodes": {"stale": True},
    "observations are 1 control step late": {"late": 1},
    "images are 1 control step late, proprio is not": {"camera_late": True},
    "1 actions of each chunk are executed instead of 2": {"execute": 1},
    "3 actions of each chunk are executed instead of 2": {"execute": 3},
    "the policy is called twice for each answer": {"calls": 2},
    "the policy is called at every control step": {"every_step": True},
}


@pytest.mark.parametrize("name", TIMINGS)
def test_a_fault_of_time_is_named(clinic: Clinic, name: str) -> None:
    client = FunctionClient(Robot(clinic.vla, **TIMINGS[name]).ask, "ask")
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert (found.fit, name in names(found)) == ("exact", True), (found.best, found.next)


def test_two_faults_at_once_are_named(clinic: Clinic) -> None:
    client = recordings.ask_in_process(clinic.vla, OBSERVATIONS["red and blue swapped (BGR)"], flip_gripper)
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert found.fit == "exact"
    assert found.best is not None
    parts = {"red and blue swapped (BGR)", "actions: gripper with the opposite polarity"}
    assert parts in [set(c.fault.parts) for c in (found.best, *found.same)]


def test_two_faults_of_the_actions_are_named(clinic: Clinic) -> None:
    """As of a base frame that is turned by 180 degrees."""
    turned = np.array([-1, -1, 1, 1], np.float32)
    client = recordings.ask_in_process(clinic.vla, after=lambda chunk: chunk * turned)
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert found.fit == "exact"
    assert found.best is not None
    assert set(found.best.fault.parts) == {f"actions: position dim {dim} with the opposite sign" for dim in (0, 1)}
    assert found.best.fault.fix.count("Correct") == 1


def test_an_unknown_fault_is_not_given_a_name(clinic: Clinic) -> None:
    rng = np.random.default_rng(0)
    client = recordings.ask_in_process(clinic.vla, after=lambda chunk: rng.normal(size=chunk.shape).astype(np.float32))
    found = clinic.diagnose(recordings.serve(clinic.vla, clinic.episodes, client))
    assert found.fit == "none"
