"""Tests of every entry of the Open X-Embodiment table: its facts, and a data set that is read by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.data.formats.rlds.oxe import ColumnGroup, OxeEntry, load_entries
from anyvla.data.open import open_dataset
from tests.data.formats.rlds.tf_records import png, write_rlds

LENGTH, MOST = 6, 28  # steps of an episode, columns of a key


def expected() -> dict[str, list[str]]:
    """Return the lines of each entry in `oxe_entries.txt`."""
    found: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "oxe_entries.txt").read_text().splitlines():
        if line.startswith("  "):
            found[list(found)[-1]].append(line.strip())
        elif not line.startswith("#"):
            found[line] = []
    return found


EXPECTED = expected()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))


def vector(piece: ColumnGroup) -> str:
    group = piece.group
    ends = "" if group.low is None else f"{group.low:g}..{group.high:g}"
    open_end = "" if group.open is None else f"open {group.open:g}"
    facts = " ".join(filter(None, [group.kind, group.mode, group.rotation, group.unit, group.frame, ends, open_end]))
    steps = f" -> {', '.join(piece.steps)}" if piece.steps else ""
    return f"{piece.key} {piece.first}+{piece.columns}{steps} = {group.name}: {facts}"


def facts(entry: OxeEntry) -> list[str]:
    """Return an entry in the notation of the fixture."""
    left = ["first step"] * entry.skip_first_step + ["last step"] * entry.drop_last_step
    left += [f"episodes without {entry.success}"] if entry.success else []
    coding = ", integers" if entry.instruction_coding == "integers" else ""
    return [
        f"{entry.robot}, {entry.control_hz:g} Hz",
        *(f"camera {name}: {key}{' BGR' * (name in entry.swapped)}" for name, key in entry.cameras.items()),
        *(f"action {vector(piece)}" for piece in entry.action),
        *(f"proprio {vector(piece)}" for piece in entry.proprio),
        f"instruction {', '.join(entry.instruction)}{coding}",
        *([f"left out: {', '.join(left)}"] if left else []),
        *([f"version {entry.version}"] if entry.version else []),
        *([f"also {', '.join(entry.aliases)}"] if entry.aliases else []),
    ]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_entry_equals_the_facts_of_its_sources(name: str) -> None:
    assert facts(load_entries()[name]) == EXPECTED[name]


def test_the_fixture_covers_every_entry() -> None:
    assert set(load_entries()) == set(EXPECTED)


def written(folder: Path, name: str) -> dict[str, Any]:
    """Write a data set of two episodes that fits the expected facts. Return the values of the first one."""
    numbers: dict[str, int] = {}  # key -> columns
    values: dict[str, Any] = {}
    for line in EXPECTED[name]:
        if found := re.match(r"(?:action|proprio) (\S+) (-?\d+)\+(\d+)", line):
            numbers[found[1]] = MOST
        elif found := re.match(r"camera \S+: (\S+)", line):
            values[found[1]] = [png((220, 30, 10 + t)) for t in range(LENGTH)]
        elif line.startswith("instruction"):
            for number, key in enumerate(line.removesuffix(", integers").removeprefix("instruction ").split(", ")):
                text = f"do it {number}".encode()
                coded = np.array([*text, 0, 0, 0], np.int64)
                values[key] = np.tile(coded, (LENGTH, 1)) if line.endswith("integers") else [text] * LENGTH
    rng = np.random.default_rng(0)
    values |= {key: rng.uniform(0, 1, (LENGTH, width)).astype(np.float32) for key, width in numbers.items()}
    flags = [{"success": np.array([0])}, {"success": np.array([1])}]
    write_rlds(folder / "1.0.0", name, {"train": [(values, flag) for flag in flags]})
    return values


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_data_set_is_read_by_its_entry(name: str, tmp_path: Path) -> None:
    values = written(tmp_path / name, name)
    data = open_dataset(tmp_path / name)
    lines = EXPECTED[name]
    left = next((line for line in lines if line.startswith("left out")), "")
    assert len(data) == (1 if "success" in left else 2)
    kept = np.arange("first step" in left, LENGTH - ("last step" in left))
    episode = data[0]
    assert data.lengths[0] == len(episode) == len(kept)
    rate = float(lines[0].split()[-2])
    np.testing.assert_allclose(episode.timestamps, np.arange(len(kept)) / rate)
    for line in lines:
        if line.startswith("camera"):
            camera = line.split()[1].rstrip(":")
            frames = np.asarray(episode.images[camera])
            colors = np.array([(220, 30, 10 + t) for t in kept])
            assert np.array_equal(frames[:, 0, 0], colors[:, ::-1] if line.endswith("BGR") else colors), line
    for part, array in (("action", episode.actions), ("proprio", episode.proprio)):
        place = 0
        for line in (line for line in lines if line.startswith(part)):
            _, key, columns = line.split()[:3]
            first, count = map(int, columns.split("+"))
            raw = values[key][:, first:][:, :count]
            if "->" not in line:
                assert np.array_equal(array[:, place : place + count], raw[kept]), line
            elif "-> difference" in line:
                np.testing.assert_allclose(array[:, place : place + count], np.diff(raw, axis=0)[kept], atol=1e-6)
            place += 3 if "-> euler" in line else count
        assert place == array.shape[1]
    instruction = next(line for line in lines if line.startswith("instruction")).removesuffix(", integers")
    assert episode.instructions == tuple(f"do it {i}" for i in range(instruction.count(",") + 1))
