"""Keep the sessions that clients name themselves, until nobody has used them for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from anyvla.serving.naming import quote

S = TypeVar("S")
_NAME = 200  # characters


class SessionStore(Generic[S]):
    """Sessions by name. A name is made at its first use and forgotten when it was idle for `seconds`."""

    def __init__(
        self, make: Callable[[], S], most: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make, self._most, self._seconds, self._clock = make, most, seconds, clock
        self._sessions: dict[str, S] = {}  # in the order of their last use
        self._used: dict[str, float] = {}

    def find(self, name: str) -> S:
        """Return the session of a name. Raises ValueError for an unsuitable name, and if there are too many."""
        if not 1 <= len(name) <= _NAME:
            raise ValueError(f"a session's name has 1 to {_NAME} characters; this one has {len(name)}")
        self.expire()
        if name not in self._sessions and len(self._sessions) >= self._most:
            raise ValueError(
                f"the server has its {self._most} sessions (--limits.sessions), so it opens no {quote(name)}; "
                f"one ends when it was not used for {self._seconds:g} s"
            )
        session = self._sessions.pop(name, None)
        self._sessions[name] = session = self._make() if session is None else session
        self._used[name] = self._clock()
        return session

    def get(self, name: str) -> S | None:
        """Return the session of a name, or None if it was never made or is forgotten."""
        self.expire()
        return self.find(name) if name in self._sessions else None

    def drop(self, name: str) -> None:
        """Forget a session."""
        self._sessions.pop(name, None)
        self._used.pop(name, None)

    def expire(self) -> None:
        """Forget the sessions that were idle for too long."""
        now = self._clock()
        for name in list(self._sessions):
            if now - self._used[name] < self._seconds:
                break
            del self._sessions[name], self._used[name]

    def __len__(self) -> int:
        return len(self._sessions)
