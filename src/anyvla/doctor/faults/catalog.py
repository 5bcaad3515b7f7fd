"""All known faults that a policy and its data can have."""

from __future__ import annotations

from collections.abc import Sequence

from anyvla.doctor.faults.base import Fault
from anyvla.doctor.faults.images import list_image_faults
from anyvla.doctor.faults.instructions import list_instruction_faults
from anyvla.doctor.faults.timings import list_timing_faults
from anyvla.doctor.faults.vectors import list_action_faults, list_proprio_faults
from anyvla.doctor.played import Played
from anyvla.policy import VLA


def list_faults(
    vla: VLA,
    robot: int,
    episodes: Sequence[Played],
    *,
    execute: int,
    whole_chunks: bool,
    instructions: Sequence[str] = (),
) -> list[Fault]:
    """Return the known faults of a served path, each once.

    `instructions`: of the data; `whole_chunks`: the client gets chunks, not one action a call.
    """
    embodiment = vla.robots[robot].embodiment
    sizes = {camera: episodes[0].images[camera].shape[1:3] for camera in embodiment.cameras}
    return [
        *list_image_faults(embodiment.cameras, sizes, vla.config.view.size),
        *(list_proprio_faults(vla, robot) if vla.config.proprio != "none" else ()),
        *list_instruction_faults([e.instruction for e in episodes], instructions),
        *list_timing_faults(vla.config.chunk, execute, whole_chunks),
        *list_action_faults(vla, robot),
    ]
