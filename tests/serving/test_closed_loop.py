"""The shipped policy moves a simulated robot over each protocol exactly as it does in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from websockets.sync.client import ClientConnection

from anyvla.play.checkpoints import SHIPPED
from anyvla.policy import VLA
from anyvla.types import Observation
from anyvla_sim.base import Environment
from anyvla_sim.metaworld.benchmark import MetaWorld
from tests.serving.clients import Running
from tests.serving.protocols.wires import WIRES, Wire

pytestmark = pytest.mark.simulator("metaworld")
TASK, INSTRUCTION, HORIZON = "drawer-close", "close the drawer", 40
STARTS = (1, 0)  # the second rollout has the instruction of the first, so that only the restart separates them
Act = Callable[[Observation, int], np.ndarray]  # the observation and the number of the step -> an action or a chunk


@pytest.fixture(scope="module")
def shipped() -> VLA:
    return VLA.load(SHIPPED)


@pytest.fixture(scope="module")
def drawer() -> Iterator[Environment]:
    benchmark = MetaWorld()
    yield benchmark.make("half-open")
    benchmark.close()


def play(drawer: Environment, start: int, act: Act) -> list[np.ndarray]:
    """Return the actions of an episode in which the drawer is closed."""
    drawer.reset(TASK, start, {})
    actions = []
    for step in range(HORIZON):
        seen = drawer.observe()
        actions.append(act(Observation(seen.images, seen.proprio), step))
        if drawer.step(actions[-1])[TASK]:
            return actions
    raise AssertionError(f"the drawer is not closed after {HORIZON} actions")


def in_process(policy: VLA) -> Act:
    session = policy.start(INSTRUCTION, 0)
    return in_chunks(lambda seen, step: policy.act([seen], [session])[0].actions, policy.config.execute)


def in_chunks(predict: Act, execute: int) -> Act:
    """Execute `execute` actions of each chunk that `predict` returns."""
    chunk = np.zeros(())

    def act(seen: Observation, step: int) -> np.ndarray:
        nonlocal chunk
        if step % execute == 0:
            chunk = predict(seen, step)
        return chunk[step % execute]  # type: ignore[no-any-return]

    return act


def over(wire: Wire, client: ClientConnection) -> Act:
    """Begin a rollout. Return a function that asks the server for a chunk or an action, as the protocol has it."""
    more = wire.restart(client)
    return lambda seen, step: wire.act(client, seen, INSTRUCTION, step, **({} if step else more))


@pytest.mark.parametrize("name", WIRES)
def test_the_robot_moves_as_in_process(
    name: str, shipped: VLA, drawer: Environment, running: Callable[..., Running]
) -> None:
    wire = WIRES[name]()
    server = running(shipped, protocol=wire.protocol, mapping=wire.mapping, robot=shipped.robots[0].embodiment)
    with wire.open(server) as client:
        for start in STARTS:
            asked = over(wire, client)
            served = play(drawer, start, in_chunks(asked, shipped.config.execute) if wire.whole_chunks else asked)
            assert np.array_equal(served, play(drawer, start, in_process(shipped)))
