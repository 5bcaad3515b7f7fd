"""Reads vision-language data for pre-training and co-training: pictures with questions and answers.

Three layouts are read in place: LLaVA's JSON (arXiv 2304.08485), captions (one text file beside each picture, or
COCO's `captions_*.json`, arXiv 1504.00325), and a plain `questions.jsonl`. All of them give lazy `VQAExample`s;
`open_vqa` recognizes the layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from anyvla.data import fingerprints
from anyvla.data.formats.images import decode_image
from anyvla.files.inside import check_name, check_regular, regular_files, resolve_inside

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGE = "<image>"  # the position of a picture in LLaVA's conversations
CAPTION = "Describe the image."  # the question that a caption answers
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, kw_only=True)
class VQAExample:
    """A conversation about pictures. Reading the text opens no picture."""

    turns: tuple[tuple[str, str], ...]  # (question, answer), in order, without `<image>` marks
    paths: tuple[Path, ...]  # empty for text only
    where: str  # "data.json, entry 3": for messages

    @property
    def images(self) -> tuple[UInt8[np.ndarray, "H W 3"], ...]:
        """The pictures, RGB and upright (EXIF turns are applied), decoded at each call.

        Raises ValueError for a file that is missing or cannot be decoded.
        """
        return tuple(decode_image(path, f"{self.where}, {path}", upright=True) for path in self.paths)


@dataclass(frozen=True)
class _Entry:
    """One record of an index, small enough for millions."""

    turns: tuple[tuple[str, str], ...]
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

    - `*.json` that holds a list of `{"image": ..., "conversations": [...]}`: LLaVA
    - `questions.jsonl`: one `{"image", "question", "answer"}` a line
    - `captions*.json` with `images` and `annotations`: COCO
    - a folder of pictures with a `.txt` of the same name beside each: captions

    Names of images are relative to `pictures`; None is the folder of the text (for COCO, its `images` folder if there
    is one). Raises ValueError for an unreadable entry, with its number.
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
    if path.suffix == ".jsonl":
        layout, rows = "questions", _lines(path)
    else:
        data = _json(path)
        if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
            folder = path.parent / "images"
            at = Path(pictures) if pictures else folder if folder.is_dir() else path.parent
            return VQADataset("coco", path.parent, at, [path], _coco(data, path))
        if not isinstance(data, list):
            raise ValueError(
                f"{path} is no vision-language data: expected a list of entries (LLaVA) or images and annotations "
                f"(COCO), found {type(data).__name__}"
            )
        layout, rows = "llava", [(f"{path.name}, entry {i}", row) for i, row in enumerate(data)]
    read = _question if layout == "questions" else _conversation
    at = Path(pictures) if pictures else path.parent
    return VQADataset(layout, path.parent, at, [path], [_entry(read, where, row) for where, row in rows])


def _entry(
    read: Callable[[str, Mapping[str, Any]], tuple[tuple[tuple[str, str], ...], tuple[str, ...]]], where: str, row: Any
) -> _Entry:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with keys, found {type(row).__name__}")
    turns, images = read(where, row)
    for name in images:
        check_name(name, where)
    return _Entry(turns, images, where)


def _conversation(where: str, row: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Read LLaVA's `image` (a name, a list of names or none) and `conversations` (turns of `from` and `value`)."""
    images = _names(where, row.get("image"))
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: the key 'conversations' must hold at least one question and its answer")
    if isinstance(turns[0], dict) and turns[0].get("from") == "system":
        turns = turns[1:]
    speakers = [t.get("from") if isinstance(t, dict) else None for t in turns]
    texts = [t.get("value") if isinstance(t, dict) else None for t in turns]
    for i, (speaker, text) in enumerate(zip(speakers, texts, strict=True)):
        expected = _ANSWERS if i % 2 else _ASKS
        if speaker not in expected or not isinstance(text, str):
            raise ValueError(f"{where}: turn {i} must be from {expected[0]!r} with a text 'value', got {turns[i]!r}")
    if len(texts) % 2:
        raise ValueError(f"{where}: the last question has no answer")
    marks = sum(str(text).count(IMAGE) for text in texts)
    if marks not in (0, len(images)):
        raise ValueError(f"{where}: {marks} times {IMAGE} in the text, but {len(images)} images")
    plain = [str(text).replace(IMAGE, "").strip() for text in texts]
    return tuple(zip(plain[::2], plain[1::2], strict=True)), images


def _question(where: str, row: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{where}: the key {key!r} must be a text, got {row.get(key)!r}")
    return ((row["question"].strip(), row["answer"].strip()),), _names(where, row.get("image"))


def _coco(data: Mapping[str, Any], path: Path) -> list[_Entry]:
    """Return one entry per annotation of COCO, so that each caption of a picture is an example."""
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
    except (KeyError, TypeError):
        raise ValueError(f"{path.name}: expected 'images' to be a list of {{id, file_name}}") from None
    entries = []
    for i, row in enumerate(data["annotations"]):
        where = f"{path.name}, annotation {i}"
        if not isinstance(row, dict) or not isinstance(names.get(row.get("image_id")), str):
            raise ValueError(f"{where}: 'image_id' is the id of no image that has a 'file_name'")
        if not isinstance(row.get("caption"), str):
            raise ValueError(f"{where}: the key 'caption' must be a text, got {row.get('caption')!r}")
        entries.append(_entry(lambda _, r: (((CAPTION, r["caption"].strip()),), (names[r["image_id"]],)), where, row))
    return entries


def _captions_beside(root: Path) -> VQADataset:
    """Open pictures with text files of the same name, in sub-folders too."""
    texts = regular_files(root, root.rglob("*.txt"))
    by_stem = {
        p.with_suffix(""): p for p in regular_files(root, (p for p in root.rglob("*") if p.suffix.lower() in PICTURES))
    }
    texts = [t for t in texts if t.with_suffix("") in by_stem]
    if not texts:
        raise ValueError(
            f"{root} is no vision-language data that is known: expected a JSON list (LLaVA), questions.jsonl, "
            "captions*.json (COCO), or pictures with a .txt of the same name beside each"
        )
    entries = [
        _Entry(
            ((CAPTION, _text(t).strip()),),
            (by_stem[t.with_suffix("")].relative_to(root).as_posix(),),
            t.relative_to(root).as_posix(),
        )
        for t in texts
    ]
    return VQADataset("captions", root, root, texts, entries)


def _names(where: str, value: Any) -> tuple[str, ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: the key 'image' must be a name or a list of names, got {value!r}")
    return tuple(names)


def _lines(path: Path) -> list[tuple[str, Any]]:
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            try:
                rows.append((f"{path.name}, line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None
    return rows


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _text(path: Path) -> str:
    try:
        return check_regular(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _first_character(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(64).decode("utf-8", "replace").lstrip("\ufeff \r\n\t")[:1]
