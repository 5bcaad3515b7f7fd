"""The way from the messages of clients to the answers, with the policy between."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anyvla.config import ConfigError
from anyvla.doctor.observation_writer import ObservationWriter
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import Translator
from anyvla.serving.mapping_files import choose_mapping
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.openpi import OpenpiConnection, OpenpiProtocol
from anyvla.serving.protocols.openpi_codec import read_map, write_map
from anyvla.serving.warm_up import INSTRUCTION, make_observation
from anyvla.types import Chunk, Observation


class ChunkPath:
    """The messages of several robots, and their sessions in one thread and in a server."""

    def __init__(
        self,
        vla: VLA,
        robot: Embodiment,
        batch: int = 1,
        size: tuple[int, int] | None = None,
        encoding: str = "raw",
        execute: int | None = None,
    ) -> None:
        """`size`: (H, W) of the images; None: as trained. Raises ConfigError for images that a server refuses."""
        self.vla, self.robot, self.batch, self.encoding = vla, robot, batch, encoding
        limits = ServerLimits(batch_size=max(32, batch), pending_requests=max(256, batch))
        mapping = choose_mapping(None, robot, "openpi", OpenpiProtocol.keys)
        self.translator = Translator(mapping, robot, limits, reads_proprio=vla.config.proprio != "none")
        self.service = PolicyService(vla, self.translator, execute, limits)
        observation = make_observation(vla, robot.name)
        self.size = size or next(iter(observation.images.values())).shape[:2]
        if np.prod(self.size) > limits.image_pixels:
            raise ConfigError(f"--images {self.size[0]}x{self.size[1]}: a server takes {limits.image_pixels} pixels")
        rng = np.random.default_rng(0)
        images = {camera: _make_image(self.size, rng) for camera in robot.cameras}
        writer = ObservationWriter(mapping, robot)
        values = writer.write(Observation(images, observation.proprio), INSTRUCTION, self._encode)
        self.message = write_map(values)
        self._sessions = [vla.start(INSTRUCTION, seed, robot.name) for seed in range(batch)]
        self._connections = [OpenpiConnection(self.service) for _ in range(batch)]

    def run(self) -> list[bytes]:
        """Return the answers, computed in this thread."""
        observations = [self.decode() for _ in self._sessions]
        return [self.encode(chunk) for chunk in self.vla.act(observations, self._sessions)]

    def decode(self) -> Observation:
        """Return the observation of a message."""
        return self.translator.request(read_map(self.message, self.service.limits)).observation()

    def encode(self, chunk: Chunk) -> bytes:
        """Return the message with a chunk."""
        return write_map({"actions": self.translator.their_actions(chunk.actions)})

    async def serve(self) -> None:
        """Let the server's code answer all messages at once. Raises RuntimeError if it refuses one."""
        import asyncio

        for reply in await asyncio.gather(*(c.answer(self.message) for c in self._connections)):
            if reply.error is not None:
                raise RuntimeError(f"the server refused an observation: {reply.error}")

    def _encode(self, image: UInt8[np.ndarray, "H W 3"]) -> Any:
        if self.encoding == "raw":
            return image
        file = io.BytesIO()
        Image.fromarray(image).save(file, self.encoding, quality=95)
        return {"__image__": True, "format": self.encoding, "data": file.getvalue(), "shape": list(image.shape)}


def _make_image(size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Return smooth areas with a little noise, which take about as long to decode as the image of a camera."""
    rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(rough) + rng.normal(0, 2, (*size, 3)), 0, 255).astype(np.uint8)
