from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.tools import convert as conversion
from anyvla.data.tools.convert import REPORT, convert
from anyvla.interrupted import Interrupted
from tests.data.demonstrations import ROBOT, InMemory, demonstration

EPISODES = [demonstration(5 + i, seed=i) for i in range(4)]
BLACK = np.zeros((1, 32, 32, 3), np.uint8)
RLDS = Path(__file__).parents[1] / "formats/rlds/fixtures/bridge_orig"


def clean() -> InMemory:
    return InMemory(EPISODES, fingerprint="2-" + "m" * 64)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Convert `EPISODES` once; tests copy the result."""
    root = tmp_path_factory.mktemp("converted") / "out"
    return root, convert(clean(), root, processes=1)


@pytest.fixture
def finished(made_once, tmp_path):
    """Put a finished conversion of `EPISODES` at `tmp_path / "out"` and return its report."""
    root, report = made_once
    shutil.copytree(root, tmp_path / "out")
    return report


class Damaged(InMemory):
    """A data set whose episode 2 cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise ValueError("demo.h5, demo_2: the file is cut")
        return super().__getitem__(index)


def test_a_copy_of_another_format_is_equal_number_by_number(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    source = open_dataset(RLDS)
    seen = []
    report = convert(source, tmp_path / "out", processes=2, progress=lambda *p: seen.append(p))
    written = open_dataset(tmp_path / "out")
    assert written.embodiment == source.embodiment
    assert written.lengths.tolist() == source.lengths.tolist()
    for i in range(4):
        for name in ("actions", "proprio", "timestamps"):
            assert np.array_equal(getattr(written[i], name), getattr(source[i], name))
        assert written[i].instructions == source[i].instructions
    assert (report.episodes, report.steps, report.skipped) == (4, int(source.lengths.sum()), {})
    assert report.psnr_db["primary"]["worst"] > 30
    assert report.source["provenance"]["format"] == "rlds"
    assert report.fingerprint == written.fingerprint
    assert ("write", 4, 4) in seen
    assert seen[-1] == ("verify", 4, 4)


def test_the_codec_is_measured_on_four_frames_of_each_episode(finished, tmp_path):
    """The report has the worst and the mean of 10 log10(255^2 / mean squared difference) over these frames."""
    written = open_dataset(tmp_path / "out")
    compared = {5: [0, 1, 3, 4], 6: [0, 2, 3, 5], 7: [0, 2, 4, 6], 8: [0, 2, 5, 7]}
    for camera in ROBOT.cameras:
        noise = []
        for i, episode in enumerate(EPISODES):
            for step in compared[len(episode)]:
                one, other = (e.images[camera][step].astype(np.float64) for e in (episode, written[i]))
                noise.append(10 * np.log10(255**2 / ((one - other) ** 2).mean()))
        assert finished.psnr_db[camera] == pytest.approx({"worst": min(noise), "mean": np.mean(noise)}, abs=0.01)
        assert finished.psnr_db[camera]["worst"] < finished.psnr_db[camera]["mean"]
    assert (finished.episodes, finished.steps) == (4, 5 + 6 + 7 + 8)


def test_an_interrupted_conversion_resumes(tmp_path):
    source = clean()
    calls = []
    with pytest.raises(Interrupted, match=r"stopped after 2 of 4 episodes; run the same command to resume"):
        convert(source, tmp_path / "out", processes=1, stop=lambda: len(calls) >= 1 or calls.append(1))
    assert not (tmp_path / "out").exists()
    staged = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out.partial").glob("episode-*")}
    assert len(staged) == 2
    seen = []
    convert(source, tmp_path / "out", processes=1, progress=lambda *p: seen.append(p))
    assert seen[0] == ("write", 2, 4)  # the staged episodes are kept
    assert open_dataset(tmp_path / "out").lengths.tolist() == [5, 6, 7, 8]


def test_an_unverified_conversion_is_verified_by_the_next_run(tmp_path, finished):
    source = clean()
    (tmp_path / "out" / REPORT).unlink()  # stopped in the middle of reading back
    seen = []
    assert convert(source, tmp_path / "out", progress=lambda *p: seen.append(p)) == finished
    assert {stage for stage, _, _ in seen} == {"verify"}
    seen.clear()
    assert convert(source, tmp_path / "out", progress=lambda *p: seen.append(p)) == finished
    assert not seen  # nothing is left to do


def test_leftovers_of_a_killed_conversion_are_removed(tmp_path, finished):
    for name in ("out.partial", ".out.building"):
        (tmp_path / name / "episode-000000").mkdir(parents=True)
    assert convert(clean(), tmp_path / "out", processes=1) == finished
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]


@pytest.mark.parametrize("text", ['{"x": 1}', "[]", "{", '{"episodes": NaN}'])
def test_a_damaged_report_is_named(tmp_path, text, finished):
    (tmp_path / "out" / REPORT).write_text(text)
    with pytest.raises(ValueError, match=Path(REPORT).name):
        convert(clean(), tmp_path / "out", processes=1)


def test_another_data_set_is_not_overwritten(tmp_path, finished):
    with pytest.raises(ValueError, match="holds a data set already, made of something else"):
        convert(InMemory(EPISODES, fingerprint="2-" + "o" * 64), tmp_path / "out", processes=1)
    with pytest.raises(ValueError, match="made of something else"):
        convert(clean(), tmp_path / "out", episodes=[0, 1], processes=1)


def test_a_damaged_episode_stops_the_conversion_or_is_skipped(tmp_path):
    source = Damaged(EPISODES)
    message = r"episode 2 of memory cannot be converted: demo\.h5, demo_2: the file is cut\n.*--skip-damaged"
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", processes=1)
    report = convert(source, tmp_path / "out", processes=1, skip_damaged=True)
    assert report.skipped == {"2": "demo.h5, demo_2: the file is cut"}
    assert open_dataset(tmp_path / "out").lengths.tolist() == [5, 6, 8]


def test_episodes_are_not_skipped_again_without_the_option(tmp_path):
    source = Damaged(EPISODES * 3)  # some are still to do at the damaged one
    asked = []

    def stop() -> bool:  # once the damaged one is noted
        notes = tmp_path / "out.partial/notes.json"
        asked.append(notes.exists() and "demo_2" in notes.read_text())
        return asked[-1]

    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", processes=1, skip_damaged=True, stop=stop)
    with pytest.raises(ValueError, match="episode 2 of memory cannot be converted"):
        convert(source, tmp_path / "out", processes=1)


def test_reading_back_can_be_stopped_too(tmp_path, finished):
    source, seen = clean(), []
    (tmp_path / "out" / REPORT).unlink()

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))

    with pytest.raises(Interrupted, match="written; stopped after reading back 2 of 4"):
        convert(source, tmp_path / "out", progress=progress, stop=lambda: ("verify", 2) in seen)
    assert not (tmp_path / "out" / REPORT).exists()
    assert convert(source, tmp_path / "out").episodes == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((5, 4), np.float32)}, "episode 0, made of episode 0: its actions differ from the source"),
        ({"proprio": EPISODES[0].proprio + np.float32(1e-6)}, "its proprio differ from the source"),
        ({"timestamps": EPISODES[0].timestamps * (1 + 1e-9)}, "its timestamps differ from the source"),
        ({"instructions": ("something else",)}, "its instructions are .*, in the source"),
        (
            {"images": {c: np.zeros((5, 32, 32, 3), np.uint8) for c in ROBOT.cameras}},
            "images of camera 'corner' differ from the source by .* dB",
        ),
        (
            {"images": EPISODES[0].images | {"wrist": np.concatenate([EPISODES[0].images["wrist"][:4], BLACK])}},
            "images of camera 'wrist' differ from the source by .* dB",
        ),
    ],
)
def test_a_copy_that_differs_is_moved_aside(tmp_path, monkeypatch, change, message):
    source = InMemory(EPISODES[:1])
    other = [dataclasses.replace(EPISODES[0], **change)]

    def write(source, root, *rest):
        provenance = rest[1]
        write_dataset(root, ROBOT, other, {"format": "lerobot", **provenance})

    monkeypatch.setattr(conversion, "_write", write)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.wrong").is_dir()


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    source = clean()
    original = conversion.LeRobotWriter.finalize

    def full(self):
        raise OSError(errno.ENOSPC, "the disk is full while writing")

    monkeypatch.setattr(conversion.LeRobotWriter, "finalize", full)
    with pytest.raises(OSError, match="the disk is full"):
        convert(source, tmp_path / "out", processes=1)
    monkeypatch.setattr(conversion.LeRobotWriter, "finalize", original)
    seen = []
    convert(source, tmp_path / "out", processes=1, progress=lambda *p: seen.append(p))
    assert seen[0] == ("write", 4, 4)
    assert json.loads((tmp_path / "out" / REPORT).read_text())["episodes"] == 4


def test_a_source_may_move_but_its_fingerprint_must_be_comparable(tmp_path, finished):
    source = clean()
    source.root = tmp_path / "moved"
    assert convert(source, tmp_path / "out", processes=1) == finished
    with pytest.raises(ValueError, match=r"an earlier version of anyvla converted, .* use it as it is, or choose"):
        convert(InMemory(EPISODES, fingerprint="3" * 64), tmp_path / "out", processes=1)


def test_an_edited_conversion_is_refused(tmp_path, finished):
    [path] = (tmp_path / "out").glob("data/**/*.parquet")
    table = pq.read_table(path)
    edited = [[value + 1 for value in row] for row in table["action"].to_pylist()]
    at = table.schema.get_field_index("action")
    pq.write_table(table.set_column(at, table.schema.field(at), [pa.array(edited, table.schema.field(at).type)]), path)
    with pytest.raises(ValueError, match="was changed after it was converted"):
        convert(clean(), tmp_path / "out", processes=1)
