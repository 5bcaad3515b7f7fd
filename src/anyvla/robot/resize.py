"""The one way in which images change their size: the same when data is read and when a policy acts.

Resize filters differ between libraries by several gray levels; a policy trained through one and run through another
loses success for no visible reason.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional as F

Fit = Literal["stretch", "pad"]


def resize(
    images: UInt8[np.ndarray, "... H W 3"], size: tuple[int, int], fit: Fit = "stretch"
) -> UInt8[np.ndarray, "... h w 3"]:
    """Resize images bilinearly to `size` (h, w), with antialiasing where they shrink.

    stretch ignores the aspect, as Octo and OpenVLA do; pad keeps it and centers the image between black bars, as
    openpi does. The result for an image does not depend on the others.
    """
    height, width = images.shape[-3:-1]
    inner = size
    if fit == "pad":
        share = min(size[0] / height, size[1] / width)
        inner = (max(1, round(height * share)), max(1, round(width * share)))
    planes = torch.from_numpy(np.ascontiguousarray(images)).reshape(-1, height, width, 3).permute(0, 3, 1, 2)
    out = F.interpolate(planes, inner, mode="bilinear", antialias=True, align_corners=False).permute(0, 2, 3, 1)
    if inner != size:
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        whole = torch.zeros(len(out), *size, 3, dtype=torch.uint8)
        whole[:, top : top + inner[0], left : left + inner[1]] = out
        out = whole
    return out.reshape(*images.shape[:-3], *size, 3).contiguous().numpy()
