from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anyvla.data.formats.lerobot.writer import write_dataset
from tests.small import embodiment, episode
from tests.training.launched import Launcher, launcher
from tests.training.shared_runs import Runs


@pytest.fixture(scope="session")
def launch() -> Iterator[Launcher]:
    """The process that has imported anyvla and forks, started once for all tests."""
    with launcher() as started:
        yield started


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two data sets, `one` and `two`, whose episodes have several lengths."""
    folder = tmp_path_factory.mktemp("data")
    for name, episodes in (("one", range(3)), ("two", range(3, 5))):
        write_dataset(folder / name, embodiment(), [episode(9 + seed, seed=seed) for seed in episodes])
    return folder


@pytest.fixture
def runs(launch: Launcher, two_sources: Path, tmp_path: Path) -> Runs:
    return Runs(launch, two_sources, tmp_path)
