"""Measure a policy server: how long each stage of its requests takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

Stage = Literal["parse", "decode", "queue", "policy", "encode"]


class Metrics:
    """The measurements of one server."""

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Measure how long a stage of a request takes."""
        yield
