"""Each connection plays one episode after another, and gets the actions of the policy acting alone.

The policy has a history and samples noise, so that its actions reveal a session that is kept, mixed or wrongly seeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from anyvla.policy import VLA
from anyvla.serving.batching import Batcher
from anyvla.types import Chunk, Observation
from tests import small
from tests.serving.clients import ROBOT, Running, answer, ask, dial, pack, payload, seen

CHUNK, EXECUTE = 5, 3
OPEN, CLOSE = "open the drawer", "close it"


@pytest.fixture(scope="module")
def policy() -> VLA:
    history, fuser = {"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1}
    return small.awake(small.policy(history, fuser, decoder="diffusion", chunk=CHUNK, execute=EXECUTE))


@pytest.fixture
def serving(policy: VLA, running: Callable[..., Running]) -> Running:
    return running(policy)


def chunks(vla: VLA, seed: int, instruction: str, numbers: Sequence[int]) -> list[np.ndarray]:
    """Return the chunks of a new session for the observations of these numbers."""
    session = vla.start(instruction, seed)
    return [vla.act([seen(number)], [session])[0].actions for number in numbers]


class Client:
    """A client that sends observations 0, 1, 2, ... and keeps the actions that it receives."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.sent, self.got = socket, 0, []

    def observe(self, times: int, instruction: str = OPEN) -> None:
        for _ in range(times):
            self.got.append(ask(self.socket, "observation", payload(seen(self.sent), instruction))["payload"])
            self.sent += 1

    def say(self, kind: str) -> None:
        self.socket.send(pack(kind, {}))


def same(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return np.allclose(got, expected, atol=1e-5)


def test_the_actions_of_a_chunk_are_sent_in_order_and_then_it_is_predicted_anew(serving: Running, policy: VLA) -> None:
    with dial(serving) as socket:
        client = Client(socket)
        client.observe(7)
    first, second, third = chunks(policy, 0, OPEN, [0, 3, 6])
    assert same(client.got, [*first[:3], *second[:3], third[0]])


@pytest.mark.parametrize("execute", [1, 2, CHUNK])
def test_as_many_actions_are_executed_as_the_server_is_asked_for(
    policy: VLA, running: Callable[..., Running], execute: int
) -> None:
    with dial(running(policy, execute=execute)) as socket:
        client = Client(socket)
        client.observe(execute + 1)
        described = ask(socket, "hello", {"protocol_version": 1})["payload"]["capabilities"]
        assert (described["chunk"], described["execute"]) == (5, execute)
    first, second = chunks(policy, 0, OPEN, [0, execute])
    assert same(client.got, [*first[:execute], second[0]])


def test_a_new_episode_needs_no_end_of_the_old_one(serving: Running, policy: VLA) -> None:
    """It begins with a new prediction, an empty history and different noise, although a chunk was not finished."""
    with dial(serving) as socket:
        client = Client(socket)
        for _ in range(3):
            client.say("episode_start")
            client.observe(4)
    expected = []
    for seed, begin in ((1, 0), (2, 4), (3, 8)):
        first, second = chunks(policy, seed, OPEN, [begin, begin + 3])
        expected += [*first[:3], second[0]]
    assert same(client.got, expected)


def test_noise_differs_per_episode(serving: Running) -> None:
    """The same observation is sent in three episodes, and in the first episode of another connection."""
    got = []
    for episodes in (3, 1):
        with dial(serving) as socket:
            for _ in range(episodes):
                client = Client(socket)
                client.say("episode_start")
                client.observe(1)
                client.say("episode_end")
                got += client.got
    one, two, three, again = got
    assert min(np.abs(one - two).max(), np.abs(one - three).max(), np.abs(two - three).max()) > 1e-3
    assert same([again], [one])


def test_the_end_of_an_episode_ends_its_history_too(serving: Running, policy: VLA) -> None:
    with dial(serving) as socket:
        client = Client(socket)
        client.observe(6)  # whole chunks: none of their actions is left
        client.say("episode_end")
        client.observe(4)
    before, after = chunks(policy, 0, OPEN, [0, 3]), chunks(policy, 0, OPEN, [6, 9])
    assert same(client.got, [*before[0][:3], *before[1][:3], *after[0][:3], after[1][0]])


def test_a_new_instruction_in_mid_chunk_begins_a_session_and_so_does_the_old_one_again(
    serving: Running, policy: VLA
) -> None:
    with dial(serving) as socket:
        client = Client(socket)
        client.say("episode_start")
        client.observe(4)
        client.observe(4, CLOSE)
        client.observe(2)
        client.observe(1, OPEN.upper())
    first, then = chunks(policy, 1, OPEN, [0, 3]), chunks(policy, 1, CLOSE, [4, 7])
    back, loud = chunks(policy, 1, OPEN, [8]), chunks(policy, 1, OPEN.upper(), [10])
    assert same(client.got, [*first[0][:3], first[1][0], *then[0][:3], then[1][0], *back[0][:2], loud[0][0]])


def test_connections_that_are_answered_together_have_sessions_of_their_own(serving: Running, policy: VLA) -> None:
    """Connection k is in episode k with its own instruction. All ask at once, for two chunks."""
    words = [OPEN, CLOSE, "press the button", OPEN]
    with ExitStack() as opened:
        sockets = [opened.enter_context(dial(serving)) for _ in words]
        got: list[list[np.ndarray]] = [[] for _ in words]
        for number, socket in enumerate(sockets):
            for _ in range(number):
                socket.send(pack("episode_start", {}))
        for step in range(4):
            for number, socket in enumerate(sockets):
                socket.send(pack("observation", payload(seen(10 * number + step), words[number]), step))
            for number, socket in enumerate(sockets):
                got[number].append(answer(socket, step)["payload"])
    assert max(serving.service.batcher.sizes) > 1
    for number, instruction in enumerate(words):
        first, second = chunks(policy, number, instruction, [10 * number, 10 * number + 3])
        assert same(got[number], [*first[:3], second[0]]), number


def batch(vla: Any, observations: Sequence[Observation], **options: Any) -> tuple[list[list[Chunk]], list[int]]:
    """Return two chunks of each session, where session k has seed k, and the sizes of the batches."""

    async def act() -> tuple[list[list[Chunk]], list[int]]:
        batcher = Batcher(vla, **options)
        sessions = [await batcher.start(f"do {k}", k, ROBOT.name) for k in range(len(observations))]
        found = [list(await asyncio.gather(*map(batcher.act, observations, sessions))) for _ in range(2)]
        assert batcher.close()
        return found, list(batcher.sizes)

    return asyncio.run(act())


@pytest.mark.parametrize(("largest", "sizes"), [(32, [5]), (2, [2, 2, 1])])
def test_a_batch_gives_each_session_its_own_chunk(policy: VLA, largest: int, sizes: list[int]) -> None:
    found, were = batch(policy, [seen(k) for k in range(5)], largest=largest)
    assert were == sizes * 2
    for number in range(5):
        expected = chunks(policy, number, f"do {number}", [number, number])
        assert same([each[number].actions for each in found], expected)


def test_images_of_different_sizes_are_no_batch(policy: VLA) -> None:
    found, sizes = batch(policy, [seen(0, 32), seen(1, 48), seen(2, 32)])
    assert sizes == [2, 1] * 2
    assert len({chunk.actions.tobytes() for each in found for chunk in each}) == 6


def test_a_copy_of_a_session_stays_as_it_is(policy: VLA) -> None:
    """A session acts; then a copy made before gives the same chunk."""
    session = policy.start(OPEN, 3)
    policy.act([seen(0)], [session])

    async def act() -> list[Chunk]:
        batcher = Batcher(policy)
        copy = batcher.copy(session)
        found = [await batcher.act(seen(1), session), await batcher.act(seen(1), copy)]
        batcher.close()
        return found

    one, other = asyncio.run(act())
    assert same([one.actions], [other.actions])


def test_the_instruction_the_seed_and_the_robot_reach_the_policy() -> None:
    class Policy:
        def start(self, *given: Any) -> Any:
            return given

    async def start() -> Any:
        batcher = Batcher(Policy())  # type: ignore[arg-type]
        given = await batcher.start(OPEN, 7, "second")
        batcher.close()
        return given

    assert asyncio.run(start()) == (OPEN, 7, "second")
