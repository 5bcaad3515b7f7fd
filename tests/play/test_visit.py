from __future__ import annotations

import contextlib
import json
import queue
import struct
import threading
import time

import pytest

from anyvla.play.messages import Command
from anyvla.play.visit import MOST_WAITING, Visit
from tests.play import fakes


class Page:
    """The messages of a page, and the visit behind it."""

    def __init__(self, *gains, policies=None):
        self.texts, self.pictures = queue.Queue(), []
        self.policies = policies or fakes.Policies(*gains)
        self.robots = [fakes.CartRobot() for _ in self.policies.gains]
        self.visit = Visit(
            self.robots,
            fakes.FACTS,
            self.policies,
            lambda text: self.texts.put(json.loads(text)),
            lambda robot, data: self.pictures.append(self.header(data)),
        )
        self.visit.start()
        self.wait(lambda m: m["is"] == "state")
        self.give("speed", speed=1.0)

    @staticmethod
    def header(data):
        (length,) = struct.unpack(">I", data[:4])
        return json.loads(data[4 : 4 + length])

    def give(self, do, **keys):
        self.visit.command(Command(do, **keys))

    def wait(self, wanted, seconds=10.0):
        end = time.monotonic() + seconds
        while True:
            message = self.texts.get(timeout=max(0.01, end - time.monotonic()))
            if wanted(message):
                return message

    def state(self, mode, **keys):
        return self.wait(lambda m: m["is"] == "state" and m["mode"] == mode and all(m[k] == keys[k] for k in keys))


@pytest.fixture
def page():
    opened = []

    def make(*gains, **keys):
        opened.append(Page(*gains, **keys))
        return opened[-1]

    yield make
    for one in opened:
        one.visit.end()


def test_it_obeys_until_the_goal_of_the_instruction_holds(page):
    page = page()
    page.give("instruct", text="Go right.")
    assert page.state("acting")["instructed"] == "cart-right"  # whatever its capitals
    done = page.state("idle", outcomes=["cart-right"])
    assert done["steps"] == [10]
    assert page.pictures[-1]["step"] == 10  # the picture of the goal is shown, even of a slow robot
    assert {"act", "simulate", "draw"} <= set(page.pictures[-1]["ms"])


def test_another_instruction_interrupts_it_with_a_new_session(page):
    page = page(0.2)
    page.give("instruct", text="go right")
    page.wait(lambda m: m["is"] == "chunk")
    page.give("instruct", text="drive to the left")
    assert page.state("acting", instruction="drive to the left")["steps"] == [0]
    page.state("idle", outcomes=["cart-left"])
    first, second = page.policies.sessions
    assert (first.instruction, second.instruction) == ("go right", "drive to the left")
    acted = first.acted
    assert acted < second.acted  # the first acts no more


def test_a_goal_that_held_before_does_not_end_the_next_instruction(page):
    page = page()
    page.give("instruct", text="go right")
    page.state("idle", outcomes=["cart-right"])
    page.give("instruct", text="go left")
    assert page.state("idle", outcomes=["cart-left"])["steps"][0] >= 19


def test_an_unknown_text_is_given_to_the_policy_and_any_goal_ends_it(page):
    page = page()
    page.give("instruct", text="the left one please")
    assert page.state("idle", outcomes=["cart-left"])["instructed"] is None


def test_a_slow_robot_leaves_out_pictures_but_not_that_of_its_goal(page):
    page = page()
    step = page.robots[0].step
    page.robots[0].step = lambda action: (time.sleep(0.03), step(action))[1]
    page.give("instruct", text="go right")
    page.state("idle", outcomes=["cart-right"])
    shown = [header["step"] for header in page.pictures]
    assert shown[-1] == 10
    assert len(shown) < 9


def test_two_policies_start_alike_and_the_faster_one_waits(page):
    page = page(1.0, 0.5)
    page.give("reset", seed=42)
    page.state("idle", seed=42)
    page.give("instruct", text="go right")
    done = page.state("idle", outcomes=["cart-right", "cart-right"])
    assert done["steps"] == [6, 11]
    assert [robot.calls[-1] for robot in page.robots] == [("reset", "cart-left", 42)] * 2
    assert [(s.number, s.seed) for s in page.policies.sessions] == [(0, 42), (1, 42)]


def test_it_pauses_and_executes_single_actions(page):
    page = page(0.01)
    page.give("instruct", text="go right")
    page.state("acting")
    page.give("pause")
    steps = page.state("paused")["steps"][0]
    page.give("step")
    page.give("step")
    assert page.state("paused", steps=[steps + 2])
    page.give("resume")
    assert page.state("acting")
    page.give("stop")
    assert page.state("idle")


def test_it_stops_a_robot_that_reaches_nothing(page):
    page = page(0.0)
    page.give("instruct", text="go right")
    state = page.state("idle", gave_up=True)
    assert state["steps"] == [60]  # three horizons
    assert state["outcomes"] == [None]
    page.give("speed", speed=0.5)
    assert page.state("idle", speed=0.5)["gave_up"]  # the page still shows it
    page.give("reset", seed=1)
    assert not page.state("idle", seed=1)["gave_up"]


def test_a_new_start_and_another_scene_forget_the_instruction(page):
    page = page(0.01)
    page.give("instruct", text="go right")
    page.state("acting")
    page.give("scene", task="box-up", seed=3)
    state = page.state("idle", scene="box")
    assert (state["seed"], state["instruction"], state["steps"]) == (3, "", [0])
    page.give("reset", seed=5)
    assert page.state("idle", seed=5)["scene"] == "box"
    assert page.robots[0].calls[-1] == ("reset", "box-up", 5)


def test_the_object_moves_and_the_robot_is_disturbed(page):
    page = page()
    page.give("move", shift=(0.3, 0.0))
    assert page.state("idle", object=[0.625, 0.5])
    page.give("disturb", kind="open")
    assert page.wait(lambda m: m["is"] == "disturbed") == {"is": "disturbed", "disturbance": "open", "done": False}


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (Command("instruct", text=" "), "empty"),
        (Command("scene", task="cart-rigth"), "cart-right"),
        (Command("disturb", kind="burn"), "burn"),
        (Command("reset", seed=101), "0 to 100"),
    ],
)
def test_a_command_that_cannot_be_obeyed_is_an_error_and_the_visit_goes_on(page, command, part):
    page = page()
    page.visit.command(command)
    assert part in page.wait(lambda m: m["is"] == "error")["text"]
    page.give("instruct", text="go right")
    page.state("idle", outcomes=["cart-right"])


def test_an_instruction_waits_for_the_policies(page):
    policies = fakes.Policies()
    policies.are_ready = False
    page = page(policies=policies)
    page.give("instruct", text="go right")
    page.state("loading")
    policies.are_ready = True
    page.state("idle", outcomes=["cart-right"])


def test_an_instruction_that_waited_is_refused_once(page):
    policies = fakes.Policies()
    policies.are_ready = False
    page = page(policies=policies)
    page.give("instruct", text=" ")
    page.state("loading")
    policies.are_ready = True
    assert "empty" in page.wait(lambda m: m["is"] == "error")["text"]
    page.give("reset", seed=9)
    assert page.wait(lambda m: m["is"] == "error" or m.get("seed") == 9)["is"] == "state"


def test_a_simulator_that_fails_ends_the_visit_with_its_error(page):
    page = page()
    page.robots[0].step = lambda action: 1 / 0
    page.give("instruct", text="go right")
    assert "division" in page.wait(lambda m: m["is"] == "failed")["text"]
    assert page.visit.failed


def test_too_many_commands_are_refused(page):
    page = page()
    released = threading.Event()
    page.robots[0].move = lambda shift: released.wait(10)
    for _ in range(MOST_WAITING + 1):  # one of them is in progress
        with contextlib.suppress(queue.Full):
            page.give("move", shift=(0.0, 0.1))
    with pytest.raises(queue.Full):
        page.give("move", shift=(0.0, 0.1))
    released.set()
