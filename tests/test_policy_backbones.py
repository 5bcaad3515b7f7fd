"""The law of train/act equality over every family of the matrix, and its checkpoints."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from families.common import write_family
from small import batch, observation, policy

from anyvla.backbones.auto import AutoBackbone
from anyvla.config import ConfigError
from anyvla.policy import VLA


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    family = FAMILIES[request.param]
    folder = write_family(family, tmp_path_factory.mktemp(request.param))
    return {"name": "auto", "path": str(folder), "prompt": "do {instruction}", **family.options}


@pytest.mark.parametrize("history", ["policy_head", "interleaved"])
def test_it_acts_as_it_was_trained(backbone: dict, history: str, tmp_path: Path) -> None:
    data = batch(2, 3)
    structure = {"name": history, "window": 3}
    able = AutoBackbone.capabilities_of(AutoBackbone.Config(**{k: v for k, v in backbone.items() if k != "name"}))
    if history == "interleaved" and able is not None and "interleave" not in able:
        with pytest.raises(ConfigError, match="needs a backbone that can"):
            policy(structure, backbone=backbone)
        return
    vla = policy(structure, backbone=backbone, readouts=2)
    with torch.inference_mode():
        readouts = vla.history.windows(vla.backbone, vla.queries, data.images, data.instructions, data.step_mask)
        seen = vla.action.denormalise(vla.decoder.sample(vla._context(readouts, vla.state.normalise(data.proprio))))
    sessions = [vla.start(text) for text in data.instructions]
    for step in range(3):
        chunks = vla.act([observation(data, row, step) for row in range(2)], sessions)
        acted = torch.from_numpy(np.stack([c.actions for c in chunks]))
        torch.testing.assert_close(acted, seen[:, step], atol=1e-4, rtol=1e-4)
    vla.train().loss(dataclasses.replace(data, instructions=["open it", "close it"])).value.backward()
    assert vla.queries.grad is not None
    assert vla.queries.grad.abs().sum() > 0
    vla.eval().save(tmp_path / "checkpoint")
    shutil.move(backbone["path"], backbone["path"] + ".away")  # a checkpoint needs nothing but itself
    try:
        loaded = VLA.load(tmp_path / "checkpoint")
    finally:
        shutil.move(backbone["path"] + ".away", backbone["path"])
    one, other = (v.act([observation(data, 0, 0)], [v.start("open")])[0].actions for v in (vla, loaded))
    np.testing.assert_array_equal(one, other)
