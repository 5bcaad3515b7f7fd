"""A visit: the robots of one open page, and the thread that moves them as the visitor commands."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from anyvla.play.messages import Command, write_message
from anyvla.play.player import Player, round_position
from anyvla.play.policies import Policies
from anyvla.play.scenes import find_task, horizon
from anyvla.play.simulated_robot import SimulatedRobot, SuiteFacts
from anyvla_sim.base import BenchmarkUnusable

log = logging.getLogger(__name__)

Mode = Literal["idle", "loading", "acting", "paused"]  # loading: an instruction waits for the policies
MOST_WAITING = 64  # commands
_LATE_S = 0.5  # the robots then give up to catch up with their control rate
_MOST_SKIPPED = 3  # pictures in a row, of robots that are slower than their control rate


class Visit:
    """The robots of a page: one, or two with the same scene, start state and instruction."""

    def __init__(
        self,
        robots: Sequence[SimulatedRobot],
        facts: SuiteFacts,
        policies: Policies,
        post_text: Callable[[str], None],
        post_picture: Callable[[int, bytes], None],
    ) -> None:
        self.failed = False  # whether the robots can no longer be used
        self._facts, self._policies = facts, policies
        self._post_text, self._post_picture = post_text, post_picture
        self._players = [Player(number, robot, policies) for number, robot in enumerate(robots)]
        self._commands: queue.Queue[Command | None] = queue.Queue(MOST_WAITING)
        self._threads = ThreadPoolExecutor(len(robots), "player")
        self._mode: Mode = "idle"
        self._task, self._seed, self._instruction = facts.suite.tasks[0], 0, ""
        self._speed = 0.5  # in real time, a drawer is open within a second
        self._gave_up = False  # whether the robots stopped without a goal
        self._due, self._skipped = 0.0, 0  # when the next action is due; pictures that were skipped
        self._acted: deque[float] = deque(maxlen=40)  # when the last actions were executed
        self._handlers: Mapping[str, Callable[[Command], None]] = {
            "instruct": self._instruct,
            "reset": self._reset,
            "scene": self._reset,
            "move": self._move,
            "disturb": self._disturb,
            "speed": self._set_speed,
            "pause": self._pause,
            "resume": self._resume,
            "step": self._step_once,
            "stop": self._stop,
        }
        self._thread = threading.Thread(target=self._run, name="visit", daemon=True)

    def start(self) -> None:
        """Show the first scene, and obey commands until `end`."""
        self._thread.start()

    def command(self, command: Command) -> None:
        """Obey a command soon. Raises queue.Full if too many wait."""
        self._commands.put_nowait(command)

    def end(self) -> None:
        """Wait for the command in progress, and end the thread."""
        while True:  # commands that wait are not obeyed
            try:
                self._commands.put_nowait(None)
                break
            except queue.Full:
                self._commands.get_nowait()
        self._thread.join()
        self._threads.shutdown()

    def _run(self) -> None:
        try:
            self._reset(Command("reset", seed=0))
            while True:
                try:
                    command = self._commands.get(timeout=self._wait_s())
                except queue.Empty:
                    self._go_on()
                    continue
                if command is None:
                    return
                self._obey(command)
        except Exception as error:  # of a simulator, of any kind
            self.failed = True
            log.exception("the simulator of a visit failed")
            self._post_text(write_message("failed", text=" ".join(str(error).split())[-400:]))

    def _wait_s(self) -> float | None:
        """Return how long to wait for a command before the robots go on."""
        if self._mode == "acting":
            return max(0.0, self._due - time.monotonic())
        return 0.1 if self._mode == "loading" else None

    @property
    def _period_s(self) -> float:
        """The time between two actions."""
        return 1 / (self._facts.embodiment.control_hz * self._speed)

    def _obey(self, command: Command) -> None:
        try:
            self._handlers[command.do](command)
        except (ValueError, BenchmarkUnusable) as error:  # of an instruction, an unknown name, a seed without a start
            self._post_text(write_message("error", text=str(error)))

    def _go_on(self) -> None:
        """Let the robots act, or begin once the policies are loaded."""
        if self._mode == "loading" and self._policies.are_ready:
            self._mode = "idle"  # if the policy refuses the instruction
            self._obey(Command("instruct", text=self._instruction))
        elif self._mode == "acting":
            late = time.monotonic() - self._due > self._period_s
            self._skipped = self._skipped + 1 if late and self._skipped < _MOST_SKIPPED else 0
            self._advance(draw=not self._skipped)

    def _advance(self, draw: bool = True) -> None:
        """Let each robot that has not reached a goal execute one action."""
        begin = time.monotonic()
        acting = [player for player in self._players if player.outcome is None]
        try:
            list(self._threads.map(Player.advance, acting))
        except ValueError as error:  # an observation that the policy refuses
            self._mode = "idle"
            self._post_state()
            self._post_text(write_message("error", text=str(error)))
            return
        self._acted.append(begin)
        self._due = max(self._due + self._period_s, begin - _LATE_S)
        ended = all(player.outcome is not None for player in self._players)
        self._gave_up = not ended and max(p.steps for p in self._players) >= horizon(self._facts.suite, self._task)
        for player in acting:
            if player.news is not None:
                self._post_text(write_message("chunk", robot=player.number, **player.news))
        self._show([p for p in acting if draw or p.outcome is not None])
        if ended or self._gave_up:
            self._mode = "idle"
            self._post_state()
        elif any(p.outcome is not None for p in acting):
            self._post_state()

    def _show(self, players: Sequence[Player]) -> None:
        for player, picture in zip(players, self._threads.map(Player.draw, players), strict=True):
            self._post_picture(player.number, picture(self._rate()))

    def _rate(self) -> float | None:
        """Return the actions per second of the last second or so; None while it is unknown."""
        if len(self._acted) < 5 or self._acted[-1] == self._acted[0]:
            return None
        return (len(self._acted) - 1) / (self._acted[-1] - self._acted[0])

    def _post_state(self) -> None:
        instructed = find_task(self._facts.suite, self._task.scene, self._instruction)
        self._post_text(
            write_message(
                "state",
                mode=self._mode,
                scene=self._task.scene,
                task=self._task.name,
                seed=self._seed,
                speed=self._speed,
                instruction=self._instruction,
                instructed=instructed,
                outcomes=[player.outcome for player in self._players],
                steps=[player.steps for player in self._players],
                gave_up=self._gave_up,
                object=round_position(self._players[0].robot.locate()),
            )
        )

    def _instruct(self, command: Command) -> None:
        """Give all robots an instruction, in whatever they are doing. Each begins a new session."""
        if self._policies.are_ready:
            instructed = find_task(self._facts.suite, self._task.scene, command.text)
            for player in self._players:
                player.begin(command.text, self._seed, instructed)
            self._mode, self._due = "acting", time.monotonic()
            self._acted.clear()
        else:
            self._mode = "loading"
        self._instruction, self._gave_up = command.text, False
        self._post_state()

    def _reset(self, command: Command) -> None:
        task = self._facts.suite.task(command.task) if command.task else self._task
        self._task, self._seed, self._instruction, self._mode = task, command.seed, "", "idle"
        self._gave_up = False
        list(self._threads.map(lambda player: player.reset(task.name, command.seed), self._players))
        self._show(self._players)
        self._post_state()

    def _move(self, command: Command) -> None:
        moved = [player.robot.move(command.shift) for player in self._players]
        if any(moved) and self._mode != "acting":
            self._show(self._players)
        self._post_state()

    def _disturb(self, command: Command) -> None:
        if command.kind not in self._facts.disturbances:
            raise ValueError(f"there is no disturbance {command.kind!r}")
        done = [player.robot.disturb(command.kind, self._seed) for player in self._players]
        self._post_text(write_message("disturbed", disturbance=command.kind, done=any(done)))
        if self._mode != "acting":
            self._show(self._players)
        self._post_state()

    def _set_speed(self, command: Command) -> None:
        self._speed = command.speed
        self._acted.clear()
        self._post_state()

    def _pause(self, _: Command) -> None:
        self._mode = "paused" if self._mode == "acting" else self._mode
        self._post_state()

    def _resume(self, _: Command) -> None:
        if self._mode == "paused":
            self._mode, self._due = "acting", time.monotonic()
            self._acted.clear()
        self._post_state()

    def _step_once(self, command: Command) -> None:
        """Execute one action, then pause."""
        if self._mode in ("acting", "paused"):
            self._mode = "paused"
            self._advance()
            self._post_state()

    def _stop(self, _: Command) -> None:
        self._mode = "idle"
        self._post_state()


def describe_visit(facts: SuiteFacts, suite: str, names: Sequence[str], scenes: Any) -> dict[str, Any]:
    """Return the facts that a page needs before it shows anything."""
    action = facts.embodiment.action.groups
    return {
        "suite": suite,
        "robot": facts.embodiment.name,
        "hz": facts.embodiment.control_hz,
        "disturbances": list(facts.disturbances),
        "policies": list(names),
        "groups": [{"name": g.name, "dims": list(g.names) or _dims(g), "unit": g.unit} for g in action],
        "scenes": scenes,
    }


def _dims(group: Any) -> list[str]:
    if group.size == 1:
        return [group.name]
    return list("xyz") if group.kind == "position" else [str(i) for i in range(group.size)]
