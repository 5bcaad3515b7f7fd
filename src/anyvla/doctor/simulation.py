"""Compute the answers of a policy in process, as a faulty client or server would get them. Faults act in batches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64

from anyvla.doctor.faults.base import Fault, Images, apply_all
from anyvla.doctor.played import Played
from anyvla.policy import VLA
from anyvla.session import Session
from anyvla.types import Observation

_TOGETHER = 32  # sessions that act in one batch


@dataclass(frozen=True)
class Calls:
    """How a client calls the policy along each episode."""

    execute: int  # actions of a chunk before the next prediction
    whole_chunks: bool  # a call gets a chunk, every `execute` steps; else one action at every step
    actions: int  # that a call gets
    convert: Callable[[np.ndarray], np.ndarray] = lambda actions: actions  # (..., A) to the client's convention

    def steps(self, length: int) -> Int64[np.ndarray, "K"]:
        """Return the steps at which an episode of this length is observed."""
        return np.arange(0, length, self.execute if self.whole_chunks else 1)


@dataclass(frozen=True)
class Simulated:
    """The chunks that a policy predicted under a fault, and which actions of them each call got."""

    chunks: Float32[np.ndarray, "C N A"]
    chunk_of: Int64[np.ndarray, "K"]  # of each call of all episodes
    first: Int64[np.ndarray, "K"]  # action of the chunk
    episode_of: Int64[np.ndarray, "K"]

    def answers(self, fault: Fault, calls: Calls) -> Float32[np.ndarray, "K n A"]:
        """Return the actions of each call, changed as the fault changes chunks, in the client's convention."""
        chunks = calls.convert(apply_all(fault.chunks, self.chunks))
        return chunks[self.chunk_of[:, None], self.first[:, None] + np.arange(calls.actions)]


@dataclass
class _Client:
    """A client with a fault."""

    fault: Fault
    session: Session | None = None
    instruction: str = ""
    left: int = 0  # actions of the last chunk that were not used
    failed: bool = False
    chunks: list[np.ndarray] = field(default_factory=list)
    got: list[tuple[int, int, int]] = field(default_factory=list)  # chunk, first action, episode; one for each call


def simulate(
    vla: VLA,
    episodes: Sequence[Played],
    faults: Sequence[Fault],
    calls: Calls,
    seeds: Sequence[int],
    steps: int | None = None,
) -> list[Simulated | None]:
    """Return the chunks along the episodes, one after the other, under each fault; None if the policy refuses it.

    `seeds` are those of the sessions of each episode, `steps` the number of steps of each episode to simulate (None:
    all). Changes of chunks are not applied (`Simulated.answers` does).
    """
    clients = [_Client(fault) for fault in faults]
    with _tolerant(vla):
        for number, (episode, seed) in enumerate(zip(episodes, seeds, strict=True)):
            for client in clients:
                _begin(vla, client, episode, seed)
            for step in calls.steps(len(episode)).tolist():
                asked = steps is None or step < steps
                # A session that is never reset takes the end of an episode into the next one.
                acting = [c for c in clients if not c.failed and (asked or c.fault.timing.resets == "never")]
                due = [c for c in acting if calls.whole_chunks or c.left == 0]
                _predict(vla, due, episode, step, seed, calls)
                for client in acting:
                    taken = _take(client, vla.config.chunk, calls)
                    if asked and not client.failed:
                        client.got.append((len(client.chunks) - 1, taken, number))
    return [None if c.failed else _collect(c) for c in clients]


def _collect(client: _Client) -> Simulated:
    got = np.array(client.got, np.int64)
    return Simulated(np.stack(client.chunks), got[:, 0], got[:, 1], got[:, 2])


def _begin(vla: VLA, client: _Client, episode: Played, seed: int) -> None:
    """Begin an episode with a new session. A fault may keep the old one, unless the instruction is another one."""
    text = apply_all(client.fault.instruction, episode.instruction)
    if client.failed or (
        client.fault.timing.resets == "never" and client.session is not None and text == client.instruction
    ):
        return
    client.instruction, client.left = text, 0
    client.session = _start(vla, client, episode, seed)


def _start(vla: VLA, client: _Client, episode: Played, seed: int) -> Session | None:
    try:
        return vla.start(client.instruction, seed, episode.recording.robot, may_be_empty=True)
    except ValueError:
        client.failed = True
        return None


def _predict(vla: VLA, due: Sequence[_Client], episode: Played, step: int, seed: int, calls: Calls) -> None:
    """Add the next chunk to each client that is due."""
    for client in due:
        if client.fault.timing.resets == "call":
            client.session = _start(vla, client, episode, seed)
    between = range(max(0, step - calls.execute + 1), step)  # control steps since the last chunk
    for earlier in between:
        _act(vla, [c for c in due if c.fault.timing.every_step], episode, earlier, calls)
    for again in range(max((c.fault.timing.calls for c in due), default=1) - 1):
        _act(vla, [c for c in due if c.fault.timing.calls > again + 1], episode, step, calls)
    for client, chunk in _act(vla, due, episode, step, calls):
        client.chunks.append(chunk)
        client.left = client.fault.timing.execute or calls.execute


def _take(client: _Client, chunk: int, calls: Calls) -> int:
    """Return which action of its last chunk the client gets at this call."""
    first = 0 if calls.whole_chunks else (client.fault.timing.execute or calls.execute) - client.left
    client.left -= 1
    return min(first, chunk - 1)


def _act(
    vla: VLA, clients: Sequence[_Client], episode: Played, step: int, calls: Calls
) -> list[tuple[_Client, np.ndarray]]:
    """Return the next chunk of each client. A client that the policy refuses has failed."""
    groups: dict[object, list[tuple[_Client, Observation]]] = {}
    for client in clients:
        if not client.failed:
            seen = _observe(client.fault, episode, step, calls)
            groups.setdefault(tuple(i.shape for i in seen.images.values()), []).append((client, seen))
    out = []
    for group in groups.values():
        for begin in range(0, len(group), _TOGETHER):
            out += _act_together(vla, group[begin : begin + _TOGETHER])
    return out


def _act_together(vla: VLA, pairs: Sequence[tuple[_Client, Observation]]) -> list[tuple[_Client, np.ndarray]]:
    sessions = [c.session for c, _ in pairs if c.session is not None]
    try:
        chunks = vla.act([seen for _, seen in pairs], sessions)
    except ValueError:  # of one of them; sessions are unchanged
        if len(pairs) > 1:
            return [found for pair in pairs for found in _act_together(vla, [pair])]
        pairs[0][0].failed = True
        return []
    return [(client, chunk.actions) for (client, _), chunk in zip(pairs, chunks, strict=True)]


def _observe(fault: Fault, episode: Played, step: int, calls: Calls) -> Observation:
    """Return the observation that the policy gets at a step under a fault."""
    timing = fault.timing
    shown = step // calls.execute // timing.repeat * timing.repeat * calls.execute if timing.repeat > 1 else step
    images: Images = dict(episode.observe(max(0, shown - timing.image_delay)).images)
    proprio = episode.observe(max(0, shown - timing.proprio_delay)).proprio
    images = apply_all(fault.images, images)
    return Observation(images, apply_all(fault.proprio, proprio).astype(np.float32))


@contextlib.contextmanager
def _tolerant(vla: VLA) -> Iterator[None]:
    """Let the policy act on implausible proprio, without warnings, so that its chunk can be compared."""
    logger, before = logging.getLogger("anyvla.observing"), vla.implausible
    level = logger.level
    vla.implausible = "warn"
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        vla.implausible = before
        logger.setLevel(level)
