"""Let a served policy drive a Gymnasium environment. `pip install "anyvla-sim[client,gym]"`, then

    anyvla serve outputs/mine --protocol anyvla          # where the GPU is
    python examples/drive_gymnasium.py ws://localhost:8000 Reacher-v5 "touch the ball"

The names `front` and `proprio` are the policy's: `Client(url).robot` lists its cameras and the groups of its proprio.
"""

from __future__ import annotations

import sys

import gymnasium

from anyvla_sim.client import Client


def drive(url: str, environment_id: str, instruction: str, seed: int = 0) -> float:
    """Play one episode. Return the sum of its rewards."""
    environment = gymnasium.make(environment_id, render_mode="rgb_array", width=64, height=64)
    total, ended = 0.0, False
    with Client(url) as client, client.start(instruction, seed) as session:
        proprio, _ = environment.reset(seed=seed)
        while not ended:
            action = session.act({"images": {"front": environment.render()}, "proprio": proprio})
            proprio, reward, terminated, truncated, _ = environment.step(action)
            total, ended = total + float(reward), terminated or truncated
    environment.close()
    return total


if __name__ == "__main__":
    print(f"reward {drive(*sys.argv[1:4]):.2f}")
