"""Write your own recordings as a data set: one .npz per episode, and one YAML file that declares the conventions.

    python examples/train_on_my_dataset.py my_data     # some seconds; then the same folder works in a recipe's data

Replace `record` by your robot's recordings. `actions[t]` is the action that was taken after observing step t.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from anyvla.data.formats.folder import write_description
from anyvla.data.open import open_dataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group

ROBOT = Embodiment(
    name="my_arm",
    cameras=("front",),
    proprio=ActionSpace(groups=(Group(name="position", size=3, kind="position", unit="m", frame="base"),)),
    action=ActionSpace(
        groups=(
            Group(name="position", size=3, kind="position", mode="delta", unit="m", frame="base"),
            Group(name="gripper", size=1, kind="gripper", low=0, high=1, open=1),
        )
    ),
    control_hz=10,
)


def record(number: int) -> dict[str, np.ndarray]:
    """Return a synthetic demonstration: the hand moves to a red block and closes."""
    rng = np.random.default_rng(number)
    steps, goal = 30, rng.uniform(-0.2, 0.2, 3)
    hand = np.linspace(np.zeros(3), goal, steps + 1)
    gripper = np.where(np.arange(steps) < steps - 3, 1.0, 0.0)
    images = np.full((steps, 96, 96, 3), 200, np.uint8)
    x, y = (48 + goal[:2] * 200).astype(int)
    images[:, y - 5 : y + 5, x - 5 : x + 5] = (200, 30, 30)
    return {
        "actions": np.column_stack([np.diff(hand, axis=0), gripper]),  # (T, 4)
        "proprio": hand[:-1],  # (T, 3)
        "images/front": images,  # (T, H, W, 3) uint8 RGB
        "instruction": np.array("pick up the red block"),
    }


def main(folder: Path) -> None:
    """Write ten episodes and open them as a data set."""
    write_description(folder, ROBOT, about="an example")
    for number in range(10):
        np.savez(folder / f"episode_{number:03d}.npz", **record(number))
    dataset = open_dataset(folder)
    episode = dataset[0]
    print(f"{len(dataset)} episodes, {dataset.lengths.sum()} steps, {dataset.embodiment.name} at {ROBOT.control_hz} Hz")
    print(f"{episode.instruction!r}: front camera {episode.images['front'].shape}, actions {episode.actions.shape}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "my_data"))
