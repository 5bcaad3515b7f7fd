"""Statistics for the batch norms of a vision tower that starts from nothing.

A backbone keeps the statistics of batch norms while it trains, because otherwise a sample would depend on its batch.
An untrained norm has mean 0 and variance 1, which normalizes nothing: in a deep tower the features vanish. So the
statistics are measured once, on random images, like the first batch of an activation norm (Glow, arXiv 1807.03039).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_IMAGES = 16
_PATCHES = (3, 12)  # patches of one color along a side: coarse and fine shapes, as in images of scenes


@torch.no_grad()
def measure_batch_norms(tower: nn.Module, run: Callable[[Float[Tensor, "N 3 h w"]], Tensor], size: int) -> None:
    """Set the statistics of all batch norms of `tower` from one run over random images of `size` pixels.

    Uses the global random generator.
    """
    norms = [m for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    training, momenta = tower.training, [norm.momentum for norm in norms]
    tower.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the statistics of this run alone
    images = [F.interpolate(torch.rand(_IMAGES, 3, n, n) - 0.5, size, mode="bilinear") for n in _PATCHES]
    run(torch.stack(images).sum(0).to(next(tower.parameters())))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    tower.train(training)
