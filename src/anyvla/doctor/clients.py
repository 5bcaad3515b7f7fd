"""Correct clients of policy servers, which the doctor replays episodes through, and the user's own one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from anyvla.config import ConfigError
from anyvla.doctor.played import Answers, Played
from anyvla.types import Observation


class RefusedError(ValueError):
    """The served path answered an observation with an error. `episode` and `step` are those of the replay."""

    def __init__(self, text: str, episode: int = 0, step: int = 0) -> None:
        super().__init__(text)
        self.episode, self.step = episode, step


class PolicyClient(Protocol):
    """One side of a connection to a policy: episodes one after the other."""

    whole_chunks: bool | None  # whether a call gets a chunk; None: known after the first call

    def start(self, instruction: str) -> None:
        """Begin an episode."""

    def ask(self, observation: Observation, step: int) -> Float32[np.ndarray, "n A"]:
        """Return the next chunk, or one action (n = 1). Raises RefusedError if the policy refuses the observation."""

    def close(self) -> None:
        """End the connection."""


class FunctionClient:
    """The user's own robot-side code: `function(observation)` returns a chunk (N, A) or one action (A,).

    The observation is a dict of `images` (by camera, uint8 RGB), `proprio`, `instruction`, and the number `step` of the
    control step, which is 0 at the beginning of an episode.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Any], name: str) -> None:
        self._function, self._name = function, name
        self._instruction = ""
        self.whole_chunks: bool | None = None

    def start(self, instruction: str) -> None:
        self._instruction = instruction

    def ask(self, observation: Observation, step: int) -> Float32[np.ndarray, "n A"]:
        seen = {
            "images": {camera: image.copy() for camera, image in observation.images.items()},
            "proprio": observation.proprio.copy(),
            "instruction": self._instruction,
            "step": step,
        }
        try:
            got = self._function(seen)
        except Exception as error:  # the user's code may raise anything
            raise RefusedError(f"{self._name} failed: {type(error).__name__}: {error}") from error
        try:
            actions = np.asarray(got, np.float32)
        except (TypeError, ValueError) as error:
            keys = f" of {', '.join(map(str, got))}" if isinstance(got, Mapping) else ""
            raise RefusedError(
                f"{self._name} returned a {type(got).__name__}{keys}: return a chunk (N, A) or an action (A,) ({error})"
            ) from error
        if actions.ndim not in (1, 2) or not actions.size:
            raise RefusedError(
                f"{self._name} returned {type(got).__name__} {actions.shape}: return a chunk (N, A) or one action (A,)"
            )
        if self.whole_chunks is None:
            self.whole_chunks = actions.ndim == 2
        return np.atleast_2d(actions)

    def close(self) -> None:
        pass


def load_function(name: str) -> FunctionClient:
    """Return the client of `module:function`; modules of the current folder are found too. Raises ConfigError."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"--client {name}: give module:function, as in my_robot:ask")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(
            f"--client {name}: {module} cannot be imported ({error}); run the doctor in its folder"
        ) from None
    except AttributeError:
        raise ConfigError(f"--client {name}: the module {module} has no {attribute!r}") from None
    if not callable(function):
        raise ConfigError(f"--client {name} is of type {type(function).__name__}; it must be a function")
    return FunctionClient(function, name)


def replay_through(
    client: PolicyClient,
    episodes: Sequence[Played],
    execute: int,
    dims: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answers]:
    """Send the recorded observations of each episode as a client should, and return the answers.

    A client that gets chunks is asked every `execute` steps, one that gets single actions at every step. Raises
    RefusedError, with the episode and the step, where the policy refuses an observation.
    """
    out: list[Answers] = []
    for number, episode in enumerate(episodes):
        where = f"episode {episode.recording.number}"
        try:
            client.start(episode.instruction)
        except RefusedError as error:
            raise RefusedError(f"{where}: {error}") from error
        steps: list[int] = []
        actions: list[np.ndarray] = []
        step = 0
        while step < len(episode):
            try:
                answer = client.ask(episode.observe(step), step)
            except RefusedError as error:
                raise RefusedError(f"{where}, step {step}: {error}", number, step) from error
            if answer.shape[1] != dims:
                raise RefusedError(
                    f"{where}, step {step}: an action has {answer.shape[1]} numbers, the robot's has {dims}"
                )
            if client.whole_chunks and len(answer) < execute:
                raise RefusedError(f"{where}, step {step}: a chunk has {len(answer)} actions, {execute} are executed")
            steps.append(step)
            actions.append(answer)
            step += execute if client.whole_chunks else 1
        shortest = min(map(len, actions))
        out.append(Answers(np.array(steps), np.stack([a[:shortest] for a in actions])))
        progress(number + 1, len(episodes))
    return out
