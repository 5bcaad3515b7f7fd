"""The policies that act on a page. They load in the background, as the page opens before PyTorch is imported."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from anyvla_sim.base import Observation

if TYPE_CHECKING:
    from anyvla.policy import VLA, Session


class Policies:
    """Policies that act one after another in one thread."""

    def __init__(
        self, checkpoints: Sequence[Path], robot: str, *, device: str = "auto", trust_remote_code: bool = False
    ) -> None:
        """Begin to load the checkpoints. `robot` is the name of the embodiment that acts."""
        self._robot, self._device, self._trust = robot, device, trust_remote_code
        self._thread = ThreadPoolExecutor(1, "policy")
        self.loading: list[Future[VLA]] = [self._thread.submit(self._load, path) for path in checkpoints]

    def _load(self, checkpoint: Path) -> VLA:
        from anyvla.policy import VLA
        from anyvla.training.device import pick_device

        return VLA.load(checkpoint, pick_device(self._device), trust_remote_code=self._trust)

    def wait(self, stopped: threading.Event) -> None:
        """Return once all policies are loaded, or `stopped` is set. Raises the error of a policy that cannot load."""
        for loading in self.loading:
            while not loading.done() and not stopped.wait(0.05):
                pass
            if loading.done():
                loading.result()

    @property
    def are_ready(self) -> bool:
        """Whether all policies are loaded."""
        return all(loading.done() and loading.exception() is None for loading in self.loading)

    def start(self, number: int, instruction: str, seed: int) -> Session:
        """Open a session of a policy. Raises ValueError for an instruction that it cannot take."""
        vla = self.loading[number].result()  # in the thread that acts, as two must not use one tokenizer at a time
        return self._thread.submit(vla.start, instruction, seed, self._robot).result()

    def act(self, number: int, observation: Observation, session: Session) -> Float32[np.ndarray, "N A"]:
        """Return the next chunk of a policy. Raises ValueError like `VLA.act`."""
        vla = self.loading[number].result()
        [chunk] = self._thread.submit(vla.act, [observation], [session]).result()
        return chunk.actions

    def executed(self, number: int) -> int:
        """Return how many actions of each chunk a policy executes."""
        return self.loading[number].result().config.execute

    def close(self) -> None:
        """Load nothing further, and wait for the policy that acts."""
        self._thread.shutdown(cancel_futures=True)
