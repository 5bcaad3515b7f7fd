"""Sessions: the state of a policy in one running rollout, and the checks of the calls that use it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyvla.histories.base import History, HistoryState
from anyvla.types import Observation

if TYPE_CHECKING:
    from anyvla.backbones.base import Backbone
    from anyvla.fusers import RecurrentFuser


@dataclass
class Session:
    """The state of a policy in one running rollout. Opaque: make it with `VLA.start`."""

    policy: weakref.ref[nn.Module] = field(repr=False)  # the policy that started it
    instruction: str
    robot: int  # the index of the robot that acts
    generator: torch.Generator  # for the noise of its chunks, on the CPU
    history_state: HistoryState
    proprio: deque[Tensor]  # normalized, of at most a window of steps
    past: Float[Tensor, "K D"] | None  # embeddings of its last chunk, zeros at first; None: steps do not see it
    fuser_state: Float[Tensor, "S H"] | None = None  # replaced at each step, never changed; None: it is not carried
    warned: set[tuple[str, int]] = field(default_factory=set)  # the kind and dim of values that a warning has named

    def take(self, other: Session) -> None:
        """Take over the state of `other`, which must not be used afterwards."""
        vars(self).update(vars(other))


def copy_sessions(sessions: Sequence[Session], history: History) -> list[Session]:
    """Return copies of sessions that can act without a change to the originals."""
    return [
        replace(
            session,
            generator=torch.Generator().set_state(session.generator.get_state()),
            history_state=state,
            proprio=session.proprio.copy(),
            warned=set(session.warned),
        )
        for session, state in zip(sessions, history.copy_states([s.history_state for s in sessions]), strict=True)
    ]


def separate(session: Session, history: History) -> None:
    """Release the memory that a session shares with those of its last call, which costs time if they act again."""
    session.history_state = history.separate(session.history_state)


def remember_proprio(
    sessions: Sequence[Session], proprio: Float[Tensor, "B P"], lengths: Sequence[int]
) -> Float[Tensor, "B T P"]:
    """Add the proprio of a new step to sessions. Return their last `lengths` proprio vectors, followed by zeros."""
    windows = proprio.new_zeros(len(sessions), max(lengths), proprio.shape[-1])
    for row, (session, now, length) in enumerate(zip(sessions, proprio, lengths, strict=True)):
        session.proprio.append(now.clone())  # a view would keep the proprio of the whole batch
        windows[row, :length] = torch.stack(tuple(session.proprio)[-length:])
    return windows


def carry_states(
    fuser: RecurrentFuser, features: Float[Tensor, "B F"], sessions: Sequence[Session]
) -> Float[Tensor, "B C"]:
    """Return the contexts of a new step of sessions, which keep the states of the fuser after it."""
    before = [session.fuser_state for session in sessions if session.fuser_state is not None]
    context, states = fuser.step(features, torch.stack(before))
    for session, state in zip(sessions, states, strict=True):
        session.fuser_state = state.clone()  # a view would keep the states of the whole batch
    return context


def check_call(observations: Sequence[Observation], sessions: Sequence[Session], policy: nn.Module) -> None:
    """Raise ValueError unless there is one observation for each session, and all sessions are of `policy`."""
    for name, given in (("observations", observations), ("sessions", sessions)):
        if not isinstance(given, Sequence):
            raise ValueError(f"{name} must be a list, one for each session, got {type(given).__name__}")
    if len(observations) != len(sessions) or not sessions:
        raise ValueError(f"one observation per session: got {len(observations)} and {len(sessions)}")
    for row, observation in enumerate(observations):
        wrong: Any = observation if not isinstance(observation, Observation) else observation.images
        if not isinstance(observation, Observation) or not isinstance(wrong, Mapping):
            got = type(wrong).__name__
            raise ValueError(f"observation {row}: give Observation(images={{camera: image}}, proprio=...), got {got}")
    first: dict[int, int] = {}
    for row, session in enumerate(sessions):
        if not isinstance(session, Session):
            raise ValueError(f"session {row}: give a session that start() returned, got {type(session).__name__}")
        if session.policy() is not policy:
            raise ValueError(
                f"session {row} was started by another policy (or by this one before it was loaded again), so its "
                "state does not fit: use start() of the policy that acts"
            )
        if first.setdefault(id(session), row) != row:
            raise ValueError(
                f"sessions {first[id(session)]} and {row} of the call are the same session: a session is one rollout "
                "and takes one observation a call; start() a session for each robot"
            )


def check_seed(seed: Any) -> int:
    """Return the seed as an int. Raises ValueError unless it is an integer of 63 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r:.40}")
    return int(seed)


def check_length(
    instruction: str, backbone: Backbone, history: History, cameras: int, written: int, suffix: int
) -> None:
    """Raise ValueError if a session with this instruction would exceed the context of the backbone at some step.

    `written` is the number of embeddings that a step has besides its tokens, `suffix` the number that a decoder adds.
    """
    block = backbone.tokenize(torch.zeros(1, cameras, 1, 1, 3, dtype=torch.uint8), [instruction])
    context = getattr(backbone, "context", None)
    steps = history.window if history.in_backbone else 1
    tokens = len(block.prefix) + steps * (len(block.tokens[0]) + written) + suffix
    if context is not None and tokens > context:
        raise ValueError(
            f"the instruction {instruction[:40]!r} is too long: with it, {steps} steps of {cameras} cameras take "
            f"{tokens} tokens, and the model's context is {context}: use a shorter instruction, fewer cameras or a "
            "shorter window"
        )
