"""Registries find parts by name, and no part is replaced silently."""

from importlib import metadata

import pytest

from anyvla.registry import Registry


class Mine:
    pass


def registry(monkeypatch, *points):
    found = [metadata.EntryPoint(name, value, "anyvla.parts") for name, value in points]
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group == "anyvla.parts" else [])
    return Registry("parts", {"path": "pathlib:Path", "count": "itertools:count"})


def test_a_third_party_adds_parts_and_replaces_none(monkeypatch):
    parts = registry(monkeypatch, ("path", "os:PathLike"), ("more", "collections:deque"))
    assert list(parts) == ["count", "more", "path"]
    assert parts.target("path") == "pathlib:Path"
    assert parts["more"].__name__ == "deque"
    assert parts.target("more") == "collections:deque"


def test_a_part_needs_a_free_name(monkeypatch):
    parts = registry(monkeypatch, ("more", "collections:deque"))
    parts.register("mine", Mine)
    assert parts["mine"] is Mine
    for name in ("mine", "path", "more"):
        with pytest.raises(ValueError, match=f"parts: the name '{name}' is taken already"):
            parts.register(name, Mine)
    assert len(parts) == 4
