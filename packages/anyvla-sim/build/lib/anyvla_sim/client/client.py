"""Let a policy server act: `Client(url).start(instruction).act(observation)`."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping

import numpy as np

from anyvla_sim.client.connection import Connection
from anyvla_sim.client.errors import ClientError
from anyvla_sim.client.images import FORMS, read_array, write_array, write_image
from anyvla_sim.client.robot import Robot


@dataclass(frozen=True)
class Chunk:
    """The next N actions of the robot."""

    actions: np.ndarray  # float32 (N, A), in the robot's units
    execute: tuple[int, int]  # the actions to execute before the next prediction: the first, and one after the last


class Client:
    """A connection to `anyvla serve --protocol anyvla`, opened at once, and again whenever it is lost."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 5,
        images: str = "auto",
        ca_file: str | Path | None = None,
    ) -> None:
        """Connect to ws://HOST:PORT, or wss:// with TLS. Raises ClientError, and ValueError for a wrong argument.

        `key`: the server's API key; None: that of ANYVLA_API_KEY, if set. A request that is not answered within
        `timeout_s` or loses its connection is repeated `retries` times on new connections, after pauses of 0.1 s to
        5 s. `images`: raw, png (no detail is lost), jpeg (needs Pillow), or auto: raw to this machine, png to others.
        `ca_file`: the certificates to trust instead of the system's.
        """
        if images not in ("auto", *FORMS):
            raise ValueError(f"images={images!r}: known are auto, {', '.join(FORMS)}")
        if not timeout_s > 0 or retries < 0:
            raise ValueError(f"timeout_s must be above 0 and retries not below, got {timeout_s} and {retries}")
        key = key if key is not None else os.environ.get("ANYVLA_API_KEY")
        self._connection = Connection(url, key and key.strip(), timeout_s, retries, ca_file)
        self._images = images if images != "auto" else "raw" if self._connection.is_local else "png"
        self._connection.open()
        self.robot = Robot.read(self._connection.description)

    def start(self, instruction: str, seed: int = 0) -> Session:
        """Begin a rollout. `seed`: of the noise of policies that sample. Raises ClientError."""
        answer = self._connection.ask("start", instruction=str(instruction), seed=int(seed))
        return Session(self._connection, self.robot, self._images, str(answer.get("session")))

    def close(self) -> None:
        """Close the connection. The server forgets sessions that were not ended after a while."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Session:
    """A rollout: the policy's history of it is on the server, and outlasts a lost connection. Make it with a Client."""

    def __init__(self, connection: Connection, robot: Robot, images: str, name: str) -> None:
        self._connection, self._robot, self._images, self.name = connection, robot, images, name
        self._number = 0  # of its last request: the server executes each number once
        self._left: deque[np.ndarray] = deque()  # actions of the last chunk that `act` has not returned

    def act(self, observation: Any) -> np.ndarray:
        """Return the next action, float32 (A,): of the last chunk, or of a new one after `robot.execute` actions.

        `observation`: see `Robot.read_observation`. Raises WrongObservation, ClientError; `act` may be called again.
        """
        if self._left:
            self._robot.read_observation(observation)  # its faults appear at once, not a few actions later
        else:
            chunk = self.predict(observation)
            self._left.extend(chunk.actions[slice(*chunk.execute)])
        return self._left.popleft()

    def predict(self, observation: Any, committed: np.ndarray | None = None, delay: int = 0) -> Chunk:
        """Return a new chunk, whose first action belongs to this observation.

        A robot that moves on while it waits gives `delay`, the actions that it will execute meanwhile, and `committed`,
        (K, A), which these are: `Chunk.execute` begins after the delay. Raises like `act`.
        """
        seen = self._robot.read_observation(observation)
        keys: dict[str, Any] = {} if committed is None else {"committed": self._write_committed(committed)}
        if delay:
            keys["delay"] = int(delay)
        images = {camera: write_image(image, self._images) for camera, image in seen.images.items()}
        self._left.clear()
        answer = self._ask("predict", observation={"images": images, "proprio": write_array(seen.proprio)}, **keys)
        return _read_chunk(answer, self._robot.action_size)

    def reset(self, instruction: str | None = None, seed: int | None = None) -> None:
        """Begin another rollout with an empty history. None: the same instruction or seed. Raises ClientError."""
        given = {"instruction": instruction, "seed": None if seed is None else int(seed)}
        self._left.clear()
        self._ask("reset", **{key: value for key, value in given.items() if value is not None})

    def end(self) -> None:
        """Let the server forget the session. Raises ClientError."""
        self._left.clear()
        self._connection.ask("end", session=self.name)

    def _ask(self, kind: str, **keys: Any) -> dict[str, Any]:
        self._number += 1
        return self._connection.ask(kind, session=self.name, number=self._number, **keys)

    def _write_committed(self, committed: Any) -> dict[str, Any]:
        actions, size = np.asarray(committed, np.float32), self._robot.action_size
        if actions.ndim != 2 or actions.shape[1] != size or not np.isfinite(actions).all():
            raise ValueError(f"committed must be finite actions (K, {size}), got {actions.shape}")
        return write_array(actions)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.end()


def _read_chunk(answer: Mapping[str, Any], size: int) -> Chunk:
    """Return the chunk of an answer. Raises ClientError for one that a robot cannot execute."""
    try:
        actions, (first, end) = read_array(answer.get("actions")), map(int, answer["execute"])
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the server sent a chunk that cannot be read: {error!r}") from None
    if actions.ndim != 2 or actions.shape[1] != size or not 0 <= first < end <= len(actions):
        raise ClientError(f"the server sent a chunk {actions.shape} with the actions {first} to {end} to execute")
    if not np.isfinite(actions).all():
        raise ClientError("the server sent a chunk that is not finite")
    return Chunk(actions, (first, end))
