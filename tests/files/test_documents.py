from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyvla.config import ConfigError, override
from anyvla.files.documents import (
    DocumentError,
    parse_json,
    parse_yaml,
    read_json,
    read_object,
    read_text,
    read_yaml,
    to_yaml,
)

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2: the alias \\*a0 is not allowed"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is written twice"),
        ("[" * 100_000, "line 1: nested more than 64 deep"),
        ("- " * 100_000, "line 1: nested more than 64 deep"),
        ("a: !!python/object/apply:os.system [true]", "line 1: the tag .*os.system is not allowed"),
        ("a: !!int abc", "line 1: the tag .* is not allowed"),
        ("a: !!timestamp 2024-13-45", "line 1: the tag .* is not allowed"),
        ("a: .nan", "line 1: '.nan' is no finite number"),
        ("a: -.inf", "line 1: '-.inf' is no finite number"),
        ("a: 1.0e+999", "line 1: '1.0e\\+999' is no finite number"),
        ("a: " + "9" * 5000, "line 1: '9+... is no whole number"),
        ("a: " + "9" * 30, "line 1: a whole number does not fit into 64 bits"),
        ("a: 0x_", "line 1: '0x_' is no whole number"),
        ("a: 1\n2: b", "line 2: the key 2 is no text"),
        ("a: 1\n? [b]\n: c", "line 2: the key .* is no text"),
        ("a: [1,\nb", "line 2: not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ('a: "\\ud800"', "line 1: a text holds half a character"),
        ("a: " + "x" * 300_000, "characters, more than"),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused_at_once(text: str, message: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(DocumentError, match=f"^here.*{message}"):
        parse_yaml(text, "here")
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is written twice"),
        ('{"a": NaN}', "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "the number '1e999' is not finite"),
        ("9" * 5000, "a whole number does not fit into 64 bits"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 100 + "]" * 100, "nested more than 64 deep"),
        ('{\n"a": }', "line 2: not valid JSON"),
        ("", "line 1: not valid JSON"),
        ('["\\ud800"]', "a text holds half a character"),
    ],
)
def test_json_that_is_no_plain_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=f"^here.*{message}"):
        parse_json(text, "here")


def test_plain_data_comes_through(tmp_path: Path) -> None:
    text = "a: [1, -2, 0x10, 1_000, 2.5, true, null, 'x', 2024-13-45, \"\\u00e4\"]\nb: {c: &anchor ü}\n'1': no\n"
    wanted: Any = {"a": [1, -2, 16, 1000, 2.5, True, None, "x", "2024-13-45", "ä"], "b": {"c": "ü"}, "1": False}
    for prefix in ("", "\ufeff"):  # editors of Windows write a byte order mark
        (tmp_path / "a.yaml").write_text(prefix + text, encoding="utf-8")
        assert read_yaml(tmp_path / "a.yaml") == wanted
        (tmp_path / "a.json").write_text(prefix + '{"a": [1, 2.5, "\\ud83d\\ude00"]}', encoding="utf-8")
        assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "😀"]}
    assert parse_yaml("", "here") is None


@pytest.mark.parametrize("parse", [parse_yaml, parse_json])
def test_numbers_and_depth_may_reach_their_limits(parse: Callable[[str, str], Any]) -> None:
    """The extremes are signed and unsigned 64-bit numbers, and 64 nested lists."""
    for number in (-(2**63), 2**64 - 1, 2**63, -1, 0):
        assert parse(str(number), "here") == number
    for number in (-(2**63) - 1, 2**64):
        with pytest.raises(DocumentError, match="does not fit into 64 bits"):
            parse(str(number), "here")
    for number in (1e308, -2.5, 1e-7):
        assert parse(f"{number:.17e}", "here") == number
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    assert parse("[" * 64 + "1" + "]" * 64, "here") == deep
    with pytest.raises(DocumentError, match="nested more than 64 deep"):
        parse("[" * 65 + "1" + "]" * 65, "here")


def test_written_yaml_is_read_again() -> None:
    shared = [1, 2]
    document = {"a": shared, "b": shared, "c": "2024-01-01", "d": "yes", "e": {"f": "&x"}}
    assert parse_yaml(to_yaml(document), "here") == document
    assert list(parse_yaml(to_yaml({"b": 1, "a": 2, "c": 0}), "here")) == ["b", "a", "c"]


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    faults = {"is missing": lambda: None, "is a folder": path.mkdir, "is a pipe": lambda: os.mkfifo(path)}
    for fault, make in faults.items():
        make()
        with pytest.raises(DocumentError, match=f"a.json {fault}"):
            read_json(path)
        if path.is_dir():
            path.rmdir()
    path.unlink()
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DocumentError, match=r"a\.json is not UTF-8 text \(byte 7 is 0xff\)"):
        read_json(path)
    path.write_text("{}", encoding="utf-16")
    with pytest.raises(DocumentError, match=r"a\.json is not UTF-8 text"):
        read_json(path)
    path.write_text(" " * 100)
    with pytest.raises(DocumentError, match="has 100 bytes, more than the 99"):
        read_text(path, 99)
    path.write_text("[1]")
    with pytest.raises(DocumentError, match=r"a\.json: expected keys and values at the top, found a list"):
        read_object(path)


def test_options_of_a_command_line_are_plain_data_too() -> None:
    assert override({}, ["--a.b", "[1, 2]"]) == {"a": {"b": [1, 2]}}
    with pytest.raises(ConfigError, match=r"--a.*the tag .*binary is not allowed"):
        override({}, ["--a", "!!binary aGk="])


def test_the_length_of_a_tokenizer_without_a_limit_is_read() -> None:
    """transformers writes this number for most models."""
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}', "x") == {"model_max_length": int(1e30)}
