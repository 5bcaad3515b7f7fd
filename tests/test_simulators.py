from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulators


def test_tests_of_a_missing_simulator_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(simulators.NEEDED, raising=False)
    monkeypatch.setitem(simulators.SIMULATORS, "libero", lambda: "it was taken away")
    with pytest.raises(pytest.skip.Exception, match="not run: it was taken away"):
        simulators.require("libero")


def test_tests_of_a_missing_simulator_fail_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(simulators.NEEDED, "metaworld libero")
    monkeypatch.setitem(simulators.SIMULATORS, "libero", lambda: "it was taken away")
    with pytest.raises(pytest.fail.Exception, match="ANYVLA_TEST_SIMULATORS asks for libero, but it was taken away"):
        simulators.require("libero")


def test_tests_of_an_installed_simulator_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(simulators.NEEDED, "libero")
    monkeypatch.setitem(simulators.SIMULATORS, "libero", lambda: None)
    simulators.require("libero")


def test_a_misspelt_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(simulators.NEEDED, "libro")
    with pytest.raises(pytest.UsageError, match="names libro: known are calvin, gymnasium, libero"):
        simulators.needed()


@pytest.mark.parametrize(
    ("needed", "outcome", "reason"),
    [
        ("", "2 skipped", "not run: it was taken away"),
        ("libero", "2 errors", "ANYVLA_TEST_SIMULATORS asks for libero, but it was taken away"),
    ],
)
def test_every_marked_test_is_reported(tmp_path: Path, needed: str, outcome: str, reason: str) -> None:
    """Run pytest on two marked tests; both must be reported."""
    folder = Path(__file__).parents[1]
    (tmp_path / "conftest.py").write_text((folder / "tests/conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_two.py").write_text(
        "import pytest\n"
        "from tests import simulators\n"
        "simulators.SIMULATORS['libero'] = lambda: 'it was taken away'\n"
        "pytestmark = pytest.mark.simulator('libero')\n"
        "def test_one(): raise RuntimeError\n"
        "def test_two(): raise RuntimeError\n",
        encoding="utf-8",
    )
    run = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:randomly", str(tmp_path)]
    done = subprocess.run(
        [*run, "-c", "/dev/null", "-o", f"pythonpath={folder}", "-W", "ignore"],
        env=os.environ | {simulators.NEEDED: needed},
        capture_output=True,
        encoding="utf-8",
    )
    assert outcome in done.stdout, done.stdout
    assert reason in done.stdout
