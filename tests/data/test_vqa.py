from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyvla.data.vqa import CAPTION, open_vqa


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


def llava(root: Path, *entries: Any) -> Path:
    (root / "data.json").write_text(json.dumps(list(entries)), encoding="utf-8")
    return root


def test_llava_conversations_of_one_several_and_no_pictures(tmp_path: Path):
    picture(tmp_path / "a.png", (255, 0, 0))
    picture(tmp_path / "sub/b.png", (0, 0, 255))
    data = open_vqa(
        llava(
            tmp_path,
            {"image": "a.png", "conversations": conversation("<image>\nWhat color?", "Red.", "Sure?", "Yes.")},
            {"image": ["a.png", "sub/b.png"], "conversations": conversation("<image><image> Same?", "No.")},
            {"conversations": conversation("One and one?", "Two.")},
        )
    )
    assert (data.layout, len(data)) == ("llava", 3)
    assert data[0].turns == (("What color?", "Red."), ("Sure?", "Yes."))
    assert data[0].images[0].shape == (4, 6, 3)
    assert [tuple(i[0, 0]) for i in data[1].images] == [(255, 0, 0), (0, 0, 255)]
    assert data[1].images[0].dtype == np.uint8
    assert data[2].images == ()


def test_the_folder_of_the_pictures_can_be_another(tmp_path: Path):
    texts, pictures = tmp_path / "texts", tmp_path / "pictures"
    for folder, color in ((texts, (1, 1, 1)), (texts / "images", (2, 2, 2)), (pictures, (3, 3, 3))):
        picture(folder / "a.png", color)
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (texts / "captions.json").write_text(json.dumps(coco))
    (texts / "questions.jsonl").write_text('{"image": "a.png", "question": "?", "answer": "x"}')
    llava(texts, {"image": "a.png", "conversations": conversation("<image>?", "x")})
    for name, usual in (("captions.json", 2), ("questions.jsonl", 1), ("data.json", 1)):
        for given, color in ((None, usual), (pictures, 3)):
            assert open_vqa(texts / name, given)[0].images[0][0, 0].tolist() == [color] * 3, name


def test_system_turns_are_skipped_and_pictures_keep_their_order(tmp_path: Path):
    turns = [{"from": "system", "value": "You are a robot."}, *conversation("<image>first, <image>second?", "Yes.")]
    data = open_vqa(llava(tmp_path, {"image": ["b.png", "a.png"], "conversations": turns}))
    assert data[0].turns == (("first, second?", "Yes."),)
    assert [path.name for path in data[0].paths] == ["b.png", "a.png"]


def test_text_can_be_read_without_its_pictures(tmp_path: Path):
    data = open_vqa(llava(tmp_path, {"image": "gone.png", "conversations": conversation("<image>?", "x")}))
    assert data[0].turns == (("?", "x"),)
    assert data.missing() == ["data.json, entry 0: gone.png"]
    with pytest.raises(ValueError, match=r"data.json, entry 0, .*: there is no image at .*gone.png"):
        _ = data[0].images
    (tmp_path / "gone.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"entry 0, .*: the image is damaged"):
        _ = data[0].images


def test_an_exif_turn_is_applied(tmp_path: Path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    data = open_vqa(llava(tmp_path, {"image": "a.jpg", "conversations": conversation("<image>?", "x")}))
    assert data[0].images[0].shape == (6, 4, 3)


def test_captions_beside_pictures(tmp_path: Path):
    picture(tmp_path / "x/a.JPG", (0, 0, 0))
    (tmp_path / "x/a.txt").write_text("a black card\n", encoding="utf-8")
    (tmp_path / "readme.txt").write_text("not a caption", encoding="utf-8")
    data = open_vqa(tmp_path)
    assert (data.layout, len(data), data[0].turns) == ("captions", 1, ((CAPTION, "a black card"),))
    assert data[0].images[0].shape == (4, 6, 3)


def test_coco_captions(tmp_path: Path):
    picture(tmp_path / "images/1.png", (9, 9, 9))
    picture(tmp_path / "images/2.png", (8, 8, 200))
    rows: list[dict[str, Any]] = [{"image_id": 7, "caption": "gray"}, {"image_id": 7, "caption": "dark gray"}]
    rows.append({"image_id": 3, "caption": "blue"})
    images = [{"id": 3, "file_name": "2.png"}, {"id": 7, "file_name": "1.png"}]
    coco = {"images": images, "annotations": rows}
    path = tmp_path / "captions_val.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    data = open_vqa(tmp_path)
    assert [e.turns for e in data] == [(("Describe the image.", text),) for text in ("gray", "dark gray", "blue")]
    assert [e.images[0][0, 0].tolist() for e in data] == [[9, 9, 9], [9, 9, 9], [8, 8, 200]]
    rows[1]["image_id"] = 8
    path.write_text(json.dumps(coco), encoding="utf-8")
    with pytest.raises(ValueError, match="annotation 1: 'image_id' is the id of no image"):
        open_vqa(tmp_path)


def test_questions_by_line(tmp_path: Path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"image": "a.png", "question": "how many?", "answer": "2"}\n\n', encoding="utf-8")
    assert open_vqa(tmp_path)[0].turns == (("how many?", "2"),)
    file.write_text('{"question": "how many?", "answer": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"questions.jsonl, entry 0: the key 'answer' must be a text, got 2"):
        open_vqa(file)
    file.write_text('{"question"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1, is damaged"):
        open_vqa(file)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "data.json, line 1: expected an object in braces, found '3'"),
        ({"image": "a.png"}, "'conversations' must hold at least one question"),
        ({"conversations": conversation("a")}, "entry 0: the last question has no answer"),
        ({"conversations": conversation("a", "b")[::-1]}, "turn 0 must be from 'human'"),
        (
            {"image": "a.png", "conversations": conversation("<image><image>", "b")},
            "2 times <image> in the text, but 1 images",
        ),
        ({"image": 5, "conversations": conversation("a", "b")}, "'image' must be a name or a list of names, got 5"),
        ({"image": "../a.png", "conversations": conversation("a", "b")}, "holds '..'"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, entry: Any, message: str):
    with pytest.raises(ValueError, match=message):
        open_vqa(llava(tmp_path, entry))


def test_unknown_layouts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file or folder"):
        open_vqa(tmp_path / "no")
    with pytest.raises(ValueError, match="is no vision-language data that is known: expected"):
        open_vqa(tmp_path)
    for text in ('{"images": []}', ""):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a.json is no vision-language data: expected a list"):
            open_vqa(tmp_path / "a.json")
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a.json, b.json: open one of the files"):
        open_vqa(tmp_path)


def test_pickled_and_fingerprinted(tmp_path: Path):
    data = open_vqa(llava(tmp_path, {"conversations": conversation("a", "b")}))
    again = pickle.loads(pickle.dumps(data))
    assert (again[0], again.fingerprint) == (data[0], data.fingerprint)
    assert open_vqa(llava(tmp_path, {"conversations": conversation("a", "c")})).fingerprint != data.fingerprint


def test_the_fingerprint_follows_the_pictures(tmp_path: Path):
    for color in ((255, 0, 0), (0, 0, 255)):
        picture(tmp_path / "a.png", color)
        root = llava(
            tmp_path, {"image": ["a.png", "missing.png"], "conversations": conversation("<image><image> Same?", "No.")}
        )
        data = open_vqa(root)
        assert data.fingerprint == open_vqa(root).fingerprint
        if color[0]:
            first = data.fingerprint
    assert data.fingerprint != first
