"""A small run of the toy benchmark for tests of whole commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anyvla.cli.main import main
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.small import SMALLEST


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with demonstrations and a policy of the toy benchmark."""
    folder = tmp_path_factory.mktemp("toy")
    document = {
        "name": "toy",
        "benchmark": "toy/line",
        "collect": {"demonstrations": 2, "processes": 2},
        "model": SMALLEST,
        "training": {"steps": 2, "batch_size": 4, "log_every": 1, "checkpoint_every": 100000},
        "evaluation": {"episodes": 2, "processes": 2, "failure_videos": 0},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(document))
    for arguments in (["data", "collect"], ["train"]):
        assert main([*arguments, str(folder / "toy.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"
