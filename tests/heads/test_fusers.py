from __future__ import annotations

import pytest
import torch

from anyvla.config import ConfigError, build
from anyvla.heads.fusers import GPTFuser, LSTMFuser


@pytest.mark.parametrize("make", [LSTMFuser, GPTFuser])
def test_fusers_never_see_later_steps(make):
    sizes = {"hidden": 16, "layers": 2} if make is LSTMFuser else {"width": 16, "layers": 2, "heads": 2}
    torch.manual_seed(0)
    fuser = make(build(make.Config, sizes), 8, 4).eval()
    features = torch.randn(1, 4, 8)
    changed = features.clone()
    changed[:, 2:] += 1
    one, other = fuser(features), fuser(changed)
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert (one[:, 2:] - other[:, 2:]).abs().max() > 1e-4
    assert one.shape[-1] == fuser.width


def test_gpt_heads_must_divide_its_width():
    with pytest.raises(ConfigError, match="width 10 must be a multiple of heads 4"):
        build(GPTFuser.Config, {"width": 10, "heads": 4})
