from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anyvla_sim.base import BenchmarkUnusable, NotInstalled
from anyvla_sim.calvin import installation
from anyvla_sim.calvin.sequences import UTILS
from anyvla_sim.checkouts import read_git_commit
from tests.sim.calvin import calvin_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return calvin_root.write(tmp_path / "calvin")


def test_without_a_root_the_error_gives_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    with pytest.raises(
        NotInstalled, match=r"git clone https://github.com/mees/calvin.*CALVIN_ROOT.*Python 3\.8.*pybullet"
    ):
        installation.find_checkout(None)


def test_the_root_setting_comes_before_the_environment_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALVIN_ROOT", str(root))
    assert installation.find_checkout(None) == root
    monkeypatch.setenv("CALVIN_ROOT", "/elsewhere")
    assert installation.find_checkout(str(root / ".." / "calvin")) == root


def test_another_folder_is_refused(root: Path) -> None:
    (root / UTILS).unlink()
    with pytest.raises(
        ValueError, match=rf"{root} is no checkout of CALVIN: it has no {UTILS}\. To get one: git clone"
    ):
        installation.find_checkout(str(root))


def test_an_empty_submodule_is_refused(root: Path) -> None:
    (root / installation.SIMULATOR).unlink()
    with pytest.raises(ValueError, match=r"its submodule is empty; git -C .* submodule update --init calvin_env"):
        installation.find_checkout(str(root))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "PACKAGES", {"numpy": "numpy", "no_such_module": "no-such-package"})
    with pytest.raises(
        NotInstalled, match=rf"lacks no-such-package\. .*{sys.executable} -m pip install no-such-package$"
    ):
        installation.check_packages()


def test_phrases_of_the_official_evaluation(root: Path) -> None:
    assert installation.read_phrases(root) == {"turn_on_led": ["press the button"], "open_drawer": ["pull the handle"]}


def test_a_folder_outside_of_git_has_an_unknown_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert read_git_commit(root) == "unknown"


@pytest.mark.parametrize(
    ("probe", "why"), [("raise SystemExit('no display')", "no display"), ("import os; os.abort()", "it ended with -6")]
)
def test_egl_that_fails_or_crashes_is_reported(monkeypatch: pytest.MonkeyPatch, probe: str, why: str) -> None:
    monkeypatch.setattr(installation, "_PROBE", probe)
    with pytest.raises(
        BenchmarkUnusable, match=rf"EGL renderer does not work here \({why}\).*--environment.render tiny"
    ):
        installation.find_egl_driver.__wrapped__()


def test_the_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_PROBE", "print('GL_VENDOR=x\\nGL_RENDERER=softpipe (y=1)')")
    assert installation.find_egl_driver.__wrapped__() == "softpipe (y=1)"


@pytest.mark.simulator("calvin")
def test_the_official_phrases() -> None:
    phrases = installation.read_phrases(installation.find_checkout(None))
    assert len(phrases) == 34
    assert phrases["open_drawer"] == ["pull the handle to open the drawer"]
    assert {len(texts) for texts in phrases.values()} == {1}
