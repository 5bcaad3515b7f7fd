"""Encodes the chunks of a batch into tokens where the batch is made: beside the training, on the CPU.

Codecs such as FAST compute on the CPU. In the loss they would make a GPU wait for its own actions and for them.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from anyvla.policy import VLA
from anyvla.representations.codec import Codec
from anyvla.robot.chunks import pad_with_last_action


class ActionTokens:
    """The codec of a policy and its scaling of actions, copied, so that worker processes can have them."""

    def __init__(self, vla: VLA, codec: Codec) -> None:
        self.normalizer, self.codec = copy.deepcopy(vla.action_normalizer).cpu(), copy.deepcopy(codec).cpu()

    @classmethod
    def of(cls, vla: VLA) -> ActionTokens | None:
        """Return the encoder of a policy; None if its actions are continuous."""
        return None if vla.codec is None else cls(vla, vla.codec)

    @torch.no_grad()
    def encode(
        self,
        actions: Float32[np.ndarray, "B T N A"],
        action_mask: Bool[np.ndarray, "B T N"],
        step_mask: Bool[np.ndarray, "B T"],
        robots: Int64[np.ndarray, "B"],
    ) -> Int64[np.ndarray, "B T L"]:
        """Return the tokens of chunks in robot units, padded with their last action; -1 at steps that are not valid."""
        valid, mask = torch.from_numpy(step_mask), torch.from_numpy(action_mask)
        normalized = self.normalizer.normalize(torch.from_numpy(actions), torch.from_numpy(robots))[valid]
        out = torch.full((*valid.shape, self.codec.length), -1)
        out[valid] = self.codec.encode(pad_with_last_action(normalized, mask[valid]))
        return out.numpy()
