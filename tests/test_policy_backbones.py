"""With every family of the matrix and every backbone, a policy acts as it was trained and its checkpoints load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.backbones.families.results import load_results
from anyvla.config import ConfigError
from anyvla.policy import VLA
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.backbones.families.registered import REGISTERED
from tests.small import FUSERS, batch, generators, observation, policy, windowed


@pytest.fixture(scope="module", params=[*sorted(FAMILIES), *sorted(REGISTERED)])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Return a backbone as written in a recipe, and the folder of its files."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in REGISTERED:
        return {"name": request.param, **REGISTERED[request.param](folder)}, folder
    path = write_family(FAMILIES[request.param], folder)
    options = FAMILIES[request.param].options
    return {"name": "auto", "path": str(path), "prompt": "do {instruction}", **options}, folder


@pytest.mark.parametrize("history", ["policy_head", "interleaved"])
def test_it_acts_as_it_was_trained(
    backbone: tuple[dict[str, Any], Path], history: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    options, folder = backbone
    data = batch(2, 3)
    structure, fuser = {"name": history, "window": 3}, "identity" if history == "interleaved" else FUSERS[2]
    known = {**load_results().families, **load_results().backbones}.get(request.node.callspec.params["backbone"])
    unknown = known is None or known.capabilities is None
    capabilities = {"interleave", "block_mask"} if unknown else {*known.capabilities}
    if history == "interleaved" and not capabilities >= {"interleave", "block_mask"}:
        with pytest.raises(ConfigError, match="needs a backbone that can"):
            policy(structure, backbone=options)
        if "interleave" not in capabilities:
            return
        structure["past"] = "visible"
    vla = policy(structure, fuser, backbone=options, readouts=2)
    seen = windowed(vla, data)
    sessions = [vla.start(text) for text in data.instructions]
    for step in range(3):
        chunks = vla.act([observation(data, row, step) for row in range(2)], sessions)
        acted = torch.from_numpy(np.stack([c.actions for c in chunks]))
        torch.testing.assert_close(acted, seen[:, step], atol=1e-4, rtol=1e-4)
    vla.train().loss(data).value.backward()
    assert vla.queries.grad is not None
    assert vla.queries.grad.abs().sum() > 0
    vla.eval().save(tmp_path / "checkpoint")
    away = shutil.move(folder, f"{folder}.away")  # a checkpoint needs no other files
    try:
        loaded = VLA.load(tmp_path / "checkpoint", trust_remote_code="trust_remote_code" in options)
    finally:
        shutil.move(away, folder)
    one, other = (v.act([observation(data, 0, 0)], [v.start("open")])[0].actions for v in (vla, loaded))
    np.testing.assert_array_equal(one, other)


EXPERT = {"name": "expert", "width": 32, "mlp": 64, "steps": 2, "tokens": {"ids": "end"}}


def test_an_expert_and_tokens_work_in_it(backbone: tuple[dict[str, Any], Path], request: pytest.FixtureRequest) -> None:
    """The expert reads the cached keys and values of each layer, while the backbone learns tokens (insulation)."""
    options, _ = backbone
    keys = {"decoder": EXPERT, "representation": {"name": "bins", "bins": 16}, "readouts": 2}
    known = {**load_results().families, **load_results().backbones}.get(request.node.callspec.params["backbone"])
    if known is not None and known.capabilities is not None and "keys_values" not in known.capabilities:
        with pytest.raises(ConfigError, match="decoder 'expert' needs a backbone that can"):
            policy(backbone=options, **keys)
        return
    vla, data = policy(backbone=options, **keys), batch(2, 1)
    sessions = [vla.start(text) for text in data.instructions]
    chunks = vla.act([observation(data, row, 0) for row in range(2)], sessions)
    acted = torch.from_numpy(np.stack([c.actions for c in chunks]))
    torch.testing.assert_close(acted, windowed(vla, data)[:, 0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        tokens = vla.decoder.tokens.sample(vla.read(data))
        again = vla.decoder.tokens.sample(vla.read(data))
    torch.testing.assert_close(tokens, again)
    loss = vla.train().loss(data, generators(2))
    loss.value.backward()
    assert {"flow", "tokens/tokens"} <= {*loss.parts}
    assert vla.backbone.embedding.weight.grad.abs().sum() > 0
