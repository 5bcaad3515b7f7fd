"""Resolve the file names in a data set or a checkpoint, and refuse names that lead out of its folder.

Whoever wrote the folder chose the names, and the files behind them are read with the rights of the user. The folder
itself may be a symbolic link, because the user chose it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

_OUT = "a data set or a checkpoint may name files of its own folder only"


def resolve_inside(root: Path, name: str) -> Path:
    """Return `root / name`. The file need not exist.

    Raise ValueError with the name if it is absolute, holds `..`, a backslash or a drive of Windows, leads out of `root`
    through a symbolic link, or belongs to something that is neither a regular file nor a folder.
    """
    check_name(name, root)
    path = root / name
    try:
        real, base = path.resolve(), root.resolve()
        folder = real.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that is too long
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{root} names the file {name[:200]!r}, which cannot be looked up ({reason})") from None
    if not real.is_relative_to(base) and real.parent != _blobs(base):
        raise ValueError(f"{root} names the file {name!r}, a symbolic link to {real}: {_OUT}; copy the file into it")
    return path if folder else check_regular(path)


def check_name(name: str, by: Path | str) -> None:
    """Raise ValueError for a name that leads out of any folder; no file is looked at. `by`: who gives the name."""
    fault = _fault(name)
    if fault:
        raise ValueError(f"{by} names the file {str(name)[:200]!r}, which {fault}: {_OUT}")


def regular_files(root: Path, paths: Iterable[Path]) -> list[Path]:
    """Return, in order, files that were found by listing `root`. Raise ValueError for one that leads out of it."""
    found = sorted(paths)
    for folder in {path.parent for path in found} - {root}:
        resolve_inside(root, folder.relative_to(root).as_posix())
    for path in found:
        if path.is_symlink():
            resolve_inside(root, path.relative_to(root).as_posix())
        check_regular(path)
    return found


def check_regular(path: Path) -> Path:
    """Return `path`, which may be missing. Raise ValueError if it is a pipe, a device, a socket or a folder."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return path
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")
    return path


def _fault(name: object) -> str:
    """Return the fault of a name, "" if there is none."""
    if not isinstance(name, str) or not name:
        return "is no text" if not isinstance(name, str) else "is empty"
    if any(c in name for c in "\0\r\n"):
        return "holds a NUL or a line break"
    if "\\" in name:
        return "holds a backslash"
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or PurePosixPath(name).is_absolute():
        return "is absolute"
    return "holds '..'" if ".." in PurePosixPath(name).parts else ""


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def _blobs(base: Path) -> Path | None:
    """Return the folder of file contents of a repository in the cache of huggingface_hub, if `base` belongs to one.

    The cache keeps `datasets--org--name/snapshots/COMMIT/FILE` as a link to `datasets--org--name/blobs/HASH`. Only a
    link straight into this one folder counts as inside, so no link leads to another repository or another place.
    """
    for folder in (base, *base.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and repository.name.startswith(("datasets--", "models--", "spaces--")):
            return repository / "blobs"
    return None
