"""Opens a data set of any format: recognized by what lies in its folder, or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from anyvla.config import FormatPart, Part, build
from anyvla.data.episode import EpisodeDataset
from anyvla.registry import formats, suggest
from anyvla.robot.embodiment import Embodiment


class Format(Protocol):
    """A reader. Its constructor opens the index, and raises ValueError with the way out for what cannot be read."""

    Config: type  # a config dataclass: the options of reading (split, keys, ...); all of them have defaults

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Whether a path looks like a data set of this format, by names of files only; no other format may say so."""

    def __call__(self, config: Any, root: Path, embodiment: Embodiment | None = None) -> EpisodeDataset:
        """Open it. `embodiment`: for data that does not say what its numbers mean, or to choose cameras; None: known
        from the data itself, else ValueError that says what to declare.
        """


def recognize(root: Path) -> str:
    """The name of the format of what lies at `root`. Raises ValueError if none knows it."""
    if not root.exists():
        raise ValueError(f"there is no data set at {root}: no such file or folder")
    found = [name for name in formats if formats[name].recognizes(root)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{root} looks like {' and like '.join(found)}: say which, as in format: {found[0]}")
    inside = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else []
    raise ValueError(
        f"{root} is of no format that is known ({', '.join(formats)})"
        + (f"; it holds {', '.join(inside) or 'nothing'}" if root.is_dir() else "")
        + (". Files of your own: format: folder, see docs/data_folder.md" if any(".npz" in n for n in inside) else "")
    )


def open_dataset(
    path: Path | str, format: FormatPart | str | None = None, embodiment: Embodiment | None = None
) -> EpisodeDataset:
    """Open a data set at a path, or a LeRobot data set of the hub by its id (`"lerobot/pusht"`).

    `format`: None recognizes it. Raises ValueError that says what is wrong with the data set and the way out.
    """
    root = Path(path)
    if not root.exists() and _is_hub_id(str(path)):
        from anyvla.data.formats.hub import download

        root = download(str(path))
    if format is None:
        format = recognize(root)
    if isinstance(format, str):
        if format not in formats:
            raise ValueError(f"there is no format {format!r}: {suggest(format, formats)}")
        target = formats[format]
        format = Part("formats", format, build(target.Config, {}, where=f"format {format}"))
    if not root.exists():
        raise ValueError(f"there is no data set at {root}: no such file or folder")
    return format.build(root, embodiment)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name.split("/")[0]).exists()
