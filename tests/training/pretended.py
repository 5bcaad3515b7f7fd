"""A process among others that exist only by what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyvla.training.launchers import Launch
from anyvla.training.processes import Message, Processes


class Pretended(Processes):
    """A process among `count`. The others say `says` and `numbers`, by rank, or the same as this process."""

    def __init__(
        self,
        rank: int,
        count: int,
        hosts: list[str] | None = None,
        says: Sequence[Any] | None = None,
        numbers: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(Launch("torchrun", rank, count, rank, "", 0), None)
        self.hosts, self.says, self.numbers = hosts or ["here"] * count, says, numbers

    def exchange(self, numbers: Sequence[float] = (), value: Any = None) -> list[Message]:
        said, counted = self.says or [value] * self.count, self.numbers or [numbers] * self.count
        own = Message([float(number) for number in numbers], value)
        others = [Message([float(number) for number in of], text) for of, text in zip(counted, said, strict=True)]
        return [own if rank == self.rank else other for rank, other in enumerate(others)]
