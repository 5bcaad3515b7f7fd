"""A policy whose actions prove the observations of its session, their order, the instruction and the seed.

The first three numbers of an action are the digest of all that, the fourth is its place in the chunk. So an action that
belongs to another request, misses an observation or has one twice can't pass for the expected one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from anyvla.policy import VLA
from anyvla.session import Session
from anyvla.types import Chunk, Observation
from tests import small


def extend(digest: int, instruction: str, observation: Observation) -> int:
    """Return the digest of a session after one more observation. The first one is the seed."""
    found = hashlib.blake2b(digest.to_bytes(8, "little") + instruction.encode(), digest_size=6)
    for camera in sorted(observation.images):
        found.update(camera.encode() + np.ascontiguousarray(observation.images[camera]).tobytes())
    found.update(np.asarray(observation.proprio, np.float32).tobytes())
    return int.from_bytes(found.digest(), "little")


def write_action(digest: int, place: int) -> list[int]:
    """Return the four numbers of an action; float32 has each of them exactly."""
    return [digest & 0xFFFF, digest >> 16 & 0xFFFF, digest >> 32, place]


class FingerprintPolicy(VLA):
    """A policy that computes its chunks, and then replaces them. Make it with `fingerprint_policy`."""

    def act(self, observations: Sequence[Observation], sessions: Sequence[Session], *args: Any) -> list[Chunk]:
        chunks = super().act(observations, sessions, *args)
        found = []
        for chunk, session, observation in zip(chunks, sessions, observations, strict=True):
            # The generator is the one part of a session that its copies have with a number of ours in it.
            digest = extend(session.generator.initial_seed(), session.instruction, observation)
            session.generator.manual_seed(digest)
            actions = [write_action(digest, place) for place in range(len(chunk.actions))]
            found.append(Chunk(np.array(actions, np.float32)))
        return found


def fingerprint_policy() -> VLA:
    """Return a tiny policy with a history, chunks of 4 actions, of which 2 are executed."""
    vla = small.policy({"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1})
    vla.__class__ = FingerprintPolicy
    return vla
