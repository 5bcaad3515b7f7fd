from __future__ import annotations

import pytest

from anyvla.config import ConfigError
from anyvla.files.differences import ABSENT, check_same, find_differences, format_differences


def test_each_difference_is_named_by_its_key() -> None:
    old = {"a": {"b": [1, {"c": 2}], "d": 1}, "e": 1}
    new = {"a": {"b": [1, {"c": 3}], "d": 1}, "f": 2}
    assert find_differences(old, new) == [("a.b.1.c", 2, 3), ("e", 1, ABSENT), ("f", ABSENT, 2)]
    assert find_differences([1], [1, 2], "x") == [("x", [1], [1, 2])]
    assert find_differences(old, old) == []


def test_order_type_and_absence_are_differences() -> None:
    assert find_differences({"a": [1, 2]}, {"a": [2, 1]}) == [("a.0", 1, 2), ("a.1", 2, 1)]
    assert find_differences({"a": 1}, {"a": "1"}) == [("a", 1, "1")]
    assert find_differences({"a": None}, {}) == [("a", None, ABSENT)]
    assert find_differences({}, {"a": None}) == [("a", ABSENT, None)]
    assert find_differences({"a": 0}, {"a": None}) == [("a", 0, None)]
    assert find_differences({"a": {"b": 1}}, {"a": 1}) == [("a", {"b": 1}, 1)]
    assert find_differences((1, 2), [1, 2]) == []
    assert (
        format_differences(find_differences({"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 1}))
        == "lr: 0.1 then, 0.2 now; seed: 0 then, 1 now"
    )
    assert format_differences(find_differences({"a": 1}, {"a": 2}), "there", "here") == "a: 1 there, 2 here"


def test_values_are_shown_short_and_few() -> None:
    told = format_differences(find_differences({"a": "line\n" * 1000}, {"a": {str(i): i for i in range(1000)}}))
    assert told.startswith("a: 'line\\nline")
    assert told.count("...") == 2
    assert len(told) < 200
    many = format_differences(find_differences(dict.fromkeys("abcdefghij", 0), dict.fromkeys("abcdefghij", 1)))
    assert many.endswith("h: 0 then, 1 now; and 2 more")


def test_documents_that_differ_are_refused() -> None:
    old, new = {"a": 1, "path": "x"}, {"a": 2, "path": "y"}
    with pytest.raises(ConfigError, match=r"^run has other settings \(a: 1 there, 2 now\): remove it$"):
        check_same(
            old,
            new,
            "run has other settings ({}): remove it",
            may_differ=lambda found: found.key == "path",
            names=("there", "now"),
            error=ConfigError,
        )
    check_same(old, old | {"path": "y"}, "({})", may_differ=lambda found: found.key == "path")
    with pytest.raises(ValueError, match="path: 'x' then, 'y' now"):
        check_same(old, old | {"path": "y"}, "({})")
