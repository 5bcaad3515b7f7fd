"""Reads vision-language data for pre-training and co-training: pictures with questions and answers.

Three layouts are read in place: LLaVA's JSON (arXiv 2304.08485), captions (one text file beside each picture, or
COCO's `captions_*.json`, arXiv 1504.00325), and a plain `questions.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from anyvla.data import fingerprints
from anyvla.data.formats.images import decode_image
from anyvla.data.formats.json_records import read_json_text, read_records
from anyvla.files.inside import check_name, regular_files, resolve_inside

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGE = "<image>"  # the position of a picture in LLaVA's conversations
CAPTION = "Describe the image."  # the question that a caption answers
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")
Turns = tuple[tuple[str, str], ...]  # (question, answer), in order


@dataclass(frozen=True, kw_only=True)
class VQAExample:
    """A conversation about pictures. Reading the text opens no picture."""

    turns: Turns  # without `<image>` marks
    paths: tuple[Path, ...]  # empty for text only
    where: str  # "data.json, entry 3": for messages

    @property
    def images(self) -> tuple[UInt8[np.ndarray, "H W 3"], ...]:
        """The pictures, RGB and upright (EXIF turns are applied), decoded at each call.

        Raises ValueError for a file that is missing or cannot be decoded.
        """
        return tuple(decode_image(path, f"{self.where}, {path}", upright=True) for path in self.paths)


class _Entry(NamedTuple):
    """One record of an index, small enough for millions."""

    turns: Turns
    images: tuple[str, ...]  # relative to the folder of the pictures
    where: str


class VQADataset:
    """Examples by number. Keeps text but no open files, so it can be pickled and shared between threads."""

    def __init__(self, layout: str, root: Path, pictures: Path, files: Sequence[Path], entries: list[_Entry]) -> None:
        self.layout, self.root, self.pictures = layout, root, pictures
        self._entries = entries
        self._texts = fingerprints.hash_files(root, files, f"vqa {layout}")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the texts and of the pictures that exist."""
        names = sorted({name for entry in self._entries for name in entry.images})
        there = [path for name in names if (path := resolve_inside(self.pictures, name)).is_file()]
        return fingerprints.combine(self._texts, fingerprints.hash_many_files(self.pictures, there, "pictures"))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> VQAExample:
        """Return example `index`. Raises IndexError."""
        entry = self._entries[index]
        try:
            paths = tuple(resolve_inside(self.pictures, name) for name in entry.images)
        except ValueError as error:
            raise ValueError(f"{entry.where}: {error}") from None
        return VQAExample(turns=entry.turns, paths=paths, where=entry.where)

    def __iter__(self) -> Iterator[VQAExample]:
        return (self[i] for i in range(len(self)))

    def missing(self) -> list[str]:
        """Return every named picture that does not exist, with the entry that names it."""
        return [f"{e.where}: {n}" for e in self._entries for n in e.images if not (self.pictures / n).is_file()]


def open_vqa(path: Path | str, pictures: Path | str | None = None) -> VQADataset:
    """Open a folder or a file of vision-language data; its layout is recognized by names and first keys.

    docs/data_vqa.md describes the layouts. Names of images are relative to `pictures`; None is the folder of the text
    (for COCO, its `images` folder if there is one). Raises ValueError for an unreadable entry, with its number.
    """
    root = Path(path)
    if not root.exists():
        raise ValueError(f"there is no vision-language data at {root}: no such file or folder")
    if root.is_file():
        return _open_file(root, pictures)
    named = [root / "questions.jsonl", *sorted(root.glob("captions*.json"))]
    texts = [p for p in named if p.is_file()]
    texts = texts or [p for p in sorted(root.glob("*.json")) if _first_character(p) == "["]
    if len(texts) > 1:
        raise ValueError(
            f"{root} holds {', '.join(p.name for p in texts)}: open one of the files instead of the folder"
        )
    if texts:
        return _open_file(texts[0], pictures)
    return _captions_beside(root)


def _open_file(path: Path, pictures: Path | str | None) -> VQADataset:
    rows = list(read_records(path))
    layout, folder = "questions" if path.suffix == ".jsonl" else "llava", path.parent
    if layout == "llava" and len(rows) == 1 and {"images", "annotations"} <= rows[0].keys():
        layout, entries = "coco", _coco(rows[0], path.name)
        folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    elif layout == "llava" and _first_character(path) != "[":
        raise ValueError(
            f"{path} is no vision-language data: expected a list of entries (LLaVA), or an object with images and "
            "annotations (COCO)"
        )
    else:
        read = _question if layout == "questions" else _conversation
        entries = [read(f"{path.name}, entry {i}", row) for i, row in enumerate(rows)]
    return VQADataset(layout, path.parent, Path(pictures) if pictures else folder, [path], entries)


def _conversation(where: str, row: Mapping[str, Any]) -> _Entry:
    """Read LLaVA's `image` (a name, a list of names or none) and `conversations` (turns of `from` and `value`)."""
    images = _names(where, row.get("image"))
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: the key 'conversations' must hold at least one question and its answer")
    if isinstance(turns[0], dict) and turns[0].get("from") == "system":
        turns = turns[1:]
    texts = []
    for i, turn in enumerate(turns):
        expected = _ANSWERS if i % 2 else _ASKS
        if not isinstance(turn, dict) or turn.get("from") not in expected or not isinstance(turn.get("value"), str):
            raise ValueError(f"{where}: turn {i} must be from {expected[0]!r} with a text 'value', got {turn!r}")
        texts.append(turn["value"])
    if len(texts) % 2:
        raise ValueError(f"{where}: the last question has no answer")
    marks = sum(text.count(IMAGE) for text in texts)
    if marks not in (0, len(images)):
        raise ValueError(f"{where}: {marks} times {IMAGE} in the text, but {len(images)} images")
    plain = [text.replace(IMAGE, "").strip() for text in texts]
    return _Entry(tuple(zip(plain[::2], plain[1::2], strict=True)), images, where)


def _question(where: str, row: Mapping[str, Any]) -> _Entry:
    turn = _text(where, row, "question"), _text(where, row, "answer")
    return _Entry((turn,), _names(where, row.get("image")), where)


def _coco(data: Mapping[str, Any], file: str) -> list[_Entry]:
    """Return one entry per annotation of COCO, so that each caption of a picture is an example."""
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
    except (KeyError, TypeError):
        raise ValueError(f"{file}: expected 'images' to be a list of {{id, file_name}}") from None
    entries = []
    for i, row in enumerate(data["annotations"]):
        where = f"{file}, annotation {i}"
        if not isinstance(row, dict) or not isinstance(names.get(row.get("image_id")), str):
            raise ValueError(f"{where}: 'image_id' is the id of no image that has a 'file_name'")
        entries.append(_Entry(((CAPTION, _text(where, row, "caption")),), _names(where, names[row["image_id"]]), where))
    return entries


def _captions_beside(root: Path) -> VQADataset:
    """Open pictures with text files of the same name, in sub-folders too."""
    found = regular_files(root, (p for p in root.rglob("*") if p.suffix.lower() in PICTURES))
    by_stem = {p.with_suffix(""): p.relative_to(root).as_posix() for p in found}
    texts = [t for t in regular_files(root, root.rglob("*.txt")) if t.with_suffix("") in by_stem]
    if not texts:
        raise ValueError(
            f"{root} is no vision-language data that is known: expected a JSON list (LLaVA), questions.jsonl, "
            "captions*.json (COCO), or pictures with a .txt of the same name beside each"
        )
    entries = [
        _Entry(((CAPTION, read_json_text(t).strip()),), (by_stem[t.with_suffix("")],), t.relative_to(root).as_posix())
        for t in texts
    ]
    return VQADataset("captions", root, root, texts, entries)


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row.get(key), str):
        raise ValueError(f"{where}: the key {key!r} must be a text, got {row.get(key)!r}")
    return row[key].strip()


def _names(where: str, value: Any) -> tuple[str, ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: the key 'image' must be a name or a list of names, got {value!r}")
    for name in names:
        check_name(name, where)
    return tuple(names)


def _first_character(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(64).decode("utf-8", "replace").lstrip("\ufeff \r\n\t")[:1]
