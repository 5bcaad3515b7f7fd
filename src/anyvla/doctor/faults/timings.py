"""Known faults of time: a stale or a lost history, late frames, another rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anyvla.doctor.faults.base import Family, Fault, Timing


def list_timing_faults(chunk: int, execute: int, whole_chunks: bool) -> Iterator[Fault]:
    """Yield the faults of sessions and of time. `whole_chunks`: the client gets chunks, not one action a call."""
    keep = "Keep one session (or connection) for each episode"
    yield _fault(
        "the history is lost: a session begins at every call", "session",
        f"{keep}, and reset it only between episodes.",
        resets="call",
    )  # fmt: skip
    if not whole_chunks:
        yield _fault(
            "the history is lost: a session, and with it a chunk, begins at every control step", "session",
            f"{keep}, and reset it only between episodes.",
            resets="call", execute=1,
        )  # fmt: skip
    yield _fault(
        "the history is stale: it is not reset between episodes", "session",
        f"{keep}, and reset it between episodes.",
        resets="never",
    )  # fmt: skip
    for late in sorted({1, 2, 3, execute}):
        text = f"{late} control step{'s' if late > 1 else ''} late"
        if late == execute:
            text += " (taken before the last chunk was executed)"
        fix = "Take the observation right before the call."
        yield _fault(f"observations are {text}", "timing", fix, image_delay=late, proprio_delay=late)
        yield _fault(f"images are {text}, proprio is not", "timing", fix, image_delay=late)
        yield _fault(f"proprio is {text}, images are not", "timing", fix, proprio_delay=late)
    for repeat in (2, 3):
        yield _fault(
            f"each frame is sent {repeat} times, others are skipped", "timing", "Read a new frame for each call.",
            repeat=repeat,
        )  # fmt: skip
    yield _fault(
        "the policy is called twice for each answer", "timing", "Call the policy once for each chunk.", calls=2
    )
    if execute > 1:
        yield _fault(
            "the policy is called at every control step", "timing",
            f"Call the policy once for each chunk: every {execute} control steps.", every_step=True,
        )  # fmt: skip
    for other in range(1, chunk + 1) if not whole_chunks else ():
        if other != execute:
            yield _fault(
                f"{other} actions of each chunk are executed instead of {execute}", "timing",
                f"Start the server with --execute {execute}, as in training.", execute=other,
            )  # fmt: skip


def _fault(name: str, family: Family, fix: str, **timing: Any) -> Fault:
    return Fault(name, family, fix, timing=Timing(**timing))
