from __future__ import annotations

import pytest

from anyvla.serving.sessions import SessionStore


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SessionStore[list]:
    """Return a store of up to three sessions, which are forgotten after 10 seconds."""
    return SessionStore(list, 3, 10, clock)


def test_a_name_has_one_session_and_another_name_another(store: SessionStore[list]) -> None:
    first = store.find("a")
    assert store.find("a") is first
    assert store.find("b") is not first


def test_a_session_expires_after_its_last_use_not_after_its_first(store: SessionStore[list], clock: Clock) -> None:
    kept, idle = store.find("kept"), store.find("idle")
    clock.now += 9
    assert store.find("kept") is kept
    clock.now += 1  # idle was used 10 s ago, kept 1 s ago
    assert store.find("kept") is kept
    assert len(store) == 1
    assert store.find("idle") is not idle


def test_a_full_store_refuses_new_names_until_one_expires(store: SessionStore[list], clock: Clock) -> None:
    for name in "abc":
        store.find(name)
        clock.now += 1
    with pytest.raises(ValueError, match=r"the server has its 3 sessions \(--limits.sessions\), so it opens no 'd'"):
        store.find("d")
    assert store.find("c") is store.find("c")
    clock.now += 7  # a was used 10 s ago
    store.find("d")
    with pytest.raises(ValueError, match="3 sessions"):
        store.find("e")


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_names_have_1_to_200_characters(store: SessionStore[list], name: str) -> None:
    with pytest.raises(ValueError, match="a session's name has 1 to 200 characters"):
        store.find(name)
    assert len(store) == 0
