import os
from pathlib import Path
from typing import Any

import pytest

from anyvla.files.inside import check_regular, resolve_inside


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside.txt").write_text("a secret")
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "images/0.png").write_bytes(b"0")
    return root


@pytest.mark.parametrize("name", ["images/0.png", "images", "images/./0.png", "not_there/0.png", "été/图 1.png"])
def test_names_inside_are_resolved(root: Path, name: str) -> None:
    assert resolve_inside(root, name) == root / name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../outside.txt", "'..'"),
        ("images/../../outside.txt", "'..'"),
        ("images/..", "'..'"),
        ("/etc/passwd", "absolute"),
        ("//server/share", "absolute"),
        ("C:/Windows/win.ini", "absolute"),
        ("c:secret", "absolute"),
        ("..\\outside.txt", "backslash"),
        ("\\\\server\\share", "backslash"),
        ("images/0.png\0.txt", "NUL"),
        ("images/0\n.png", "line break"),
        ("", "empty"),
        ("x" * 5000, "looked up"),
        ("\ud800.png", "looked up"),
    ],
)
def test_names_that_lead_out_are_refused(root: Path, name: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as refused:
        resolve_inside(root, name)
    assert repr(name[:200]) in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", [None, 7, ["a"]])
def test_values_that_are_no_name_are_refused(root: Path, name: Any) -> None:
    with pytest.raises(ValueError, match="is no text"):
        resolve_inside(root, name)


def test_links_that_lead_out_are_refused(root: Path) -> None:
    (root / "link.txt").symlink_to("../outside.txt")
    (root / "up").symlink_to("..")
    (root / "twice").symlink_to("link.txt")
    (root / "circle").symlink_to("circle")
    for name in ("link.txt", "up/outside.txt", "up", "twice", "circle"):
        with pytest.raises(ValueError, match=name):
            resolve_inside(root, name)


def test_links_inside_and_a_linked_root_are_read(root: Path) -> None:
    (root / "link.png").symlink_to("images/0.png")
    (root.parent / "elsewhere").symlink_to(root)
    assert resolve_inside(root, "link.png").read_bytes() == b"0"
    assert resolve_inside(root.parent / "elsewhere", "images/0.png").read_bytes() == b"0"


def test_a_pipe_and_a_device_are_refused(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(ValueError, match="a pipe"):
        resolve_inside(root, "pipe")
    with pytest.raises(ValueError, match="a device"):
        check_regular(Path("/dev/zero"))
    with pytest.raises(ValueError, match="a folder"):
        check_regular(root / "images")


def _hub(at: Path, name: str) -> Path:
    """Make a repository in the layout of the cache of huggingface_hub."""
    snapshot = at / name / "snapshots/0123abc"
    (snapshot / "meta").mkdir(parents=True)
    (at / name / "blobs").mkdir()
    (at / name / "blobs/f00").write_text("{}")
    (snapshot / "meta/info.json").symlink_to("../../../blobs/f00")
    return snapshot


def test_the_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    snapshot = _hub(tmp_path, "datasets--lerobot--pusht")
    assert resolve_inside(snapshot, "meta/info.json").read_text() == "{}"
    assert resolve_inside(snapshot / "meta", "info.json").read_text() == "{}"
    (tmp_path / "mine").symlink_to(snapshot)
    assert resolve_inside(tmp_path / "mine", "meta/info.json").read_text() == "{}"


def test_the_cache_of_the_hub_opens_no_other_place(tmp_path: Path) -> None:
    snapshot, other = _hub(tmp_path, "datasets--a--b"), _hub(tmp_path, "datasets--a--other")
    secret = tmp_path / "secret"
    secret.write_text("x")
    (tmp_path / "datasets--a--b/blobs/out").symlink_to(secret)
    (snapshot / "other").symlink_to(other.parent.parent / "blobs/f00")
    (snapshot / "chained").symlink_to("../../blobs/out")
    (snapshot / "refs").symlink_to("../../refs")
    plain = tmp_path / "plain/snapshots/1"
    plain.mkdir(parents=True)
    (plain / "out").symlink_to("../../../secret")
    for root, name in ((snapshot, "other"), (snapshot, "chained"), (snapshot, "refs"), (plain, "out")):
        with pytest.raises(ValueError, match=name):
            resolve_inside(root, name)
