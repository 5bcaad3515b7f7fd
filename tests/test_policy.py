import dataclasses
import shutil

import numpy as np
import pytest
import torch

from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla.robot.views import center_crop_views, resize_to_view
from anyvla.types import Observation
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.small import (
    NANO,
    SIZE,
    batch,
    embodiment,
    episode,
    model,
    observation,
    policy,
    statistics,
    windowed,
)


def test_splitting_a_batch_changes_no_sum():
    vla = policy()
    data = batch(4, 1)
    mask = data.action_mask.clone()
    mask[0] = False
    mask[1, :, 1:] = False
    data = dataclasses.replace(data, action_mask=mask)

    whole, parts = vla.loss(data), [vla.loss(data.cut(0, 2)), vla.loss(data.cut(2, 4))]
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    torch.testing.assert_close(whole.value, (parts[0].total + parts[1].total) / (parts[0].count + parts[1].count))


def test_the_instruction_changes_the_actions():
    vla = policy()
    data = batch(1, 1)
    one, other = (vla.act([observation(data, 0, 0)], [vla.start(t)])[0] for t in ("open it", "close it"))
    assert np.abs(one.actions - other.actions).max() > 1e-4


def test_invalid_combinations_are_refused_with_an_alternative():
    with pytest.raises(ConfigError, match=r"history none has one step; the nearest that is possible: .*fuser: ident"):
        model("none", "lstm")
    with pytest.raises(ConfigError, match=r"leaves time to the fuser, and fuser identity reads each step by itself"):
        model({"name": "policy_head", "window": 2}, "identity")
    with pytest.raises(ConfigError, match=r"decoder tokens writes tokens, and representation continuous has none"):
        model(decoder="tokens")
    with pytest.raises(ConfigError, match="execute 5 exceeds chunk 4"):
        model(execute=5)


def test_observations_that_do_not_fit_are_refused():
    vla = policy()
    good = observation(batch(1, 1), 0, 0)
    session = vla.start("open")
    with pytest.raises(ValueError, match=r"lacks camera 'wrist'; this policy was trained with corner, wrist"):
        vla.act([Observation({"corner": good.images["corner"]}, good.proprio)], [session])
    with pytest.raises(ValueError, match=r"proprio has shape \(2,\).*\(3,\): \['position'\]"):
        vla.act([Observation(good.images, good.proprio[:2])], [session])
    with pytest.raises(ValueError, match="must have one size"):
        vla.act([Observation({**good.images, "wrist": good.images["wrist"][:16]}, good.proprio)], [session])
    with pytest.raises(ValueError, match="one observation per session"):
        vla.act([good], [])
    with pytest.raises(ValueError, match="the instruction is empty"):
        vla.start("  ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda i: i.astype(np.float32), r"got float32 \(32, 32, 3\): give image\.round\(\)\.astype"),
        (lambda i: i / np.float32(255), r"got float32 \(32, 32, 3\): give \(image \* 255\)\.round\(\)\.astype"),
        (lambda i: i.transpose(2, 0, 1), r"got uint8 \(3, 32, 32\), channels first: give image\.transpose\(1, 2, 0\)"),
        (
            lambda i: np.pad(i, ((0, 0), (0, 0), (0, 1))),
            r"got uint8 \(32, 32, 4\), with an alpha channel: give image\[\.\.\., :3\]",
        ),
        (lambda i: i[..., 0], r"got uint8 \(32, 32\): give one RGB frame"),
        (lambda i: i[None], r"got uint8 \(1, 32, 32, 3\): give one RGB frame"),
        (torch.from_numpy, r"got Tensor: give np\.asarray\(image\)"),
    ],
    ids=["float", "float to 1", "channels first", "alpha", "gray", "batched", "tensor"],
)
def test_an_image_that_does_not_fit_names_its_camera_and_the_remedy(wrong, message):
    vla = policy()
    good = observation(batch(1, 1), 0, 0)
    given = Observation({**good.images, "wrist": wrong(good.images["wrist"])}, good.proprio)
    expected = r"camera 'wrist': expected a uint8 array \(H, W, 3\), RGB, 0\.\.255, "
    with pytest.raises(ValueError, match=expected + message):
        vla.act([given], [vla.start("open")])


def test_an_instruction_longer_than_the_context_is_refused():
    vla = policy(backbone=NANO | {"context": 64})
    good = observation(batch(1, 1), 0, 0)
    vla.act([good], [vla.start("open")])
    with pytest.raises(ValueError, match=r"instruction 'open open .*model's context of 64: use fewer cameras or"):
        vla.act([good], [vla.start("open " * 64)])


def test_a_robot_without_cameras_is_refused():
    with pytest.raises(ConfigError, match=r"embodiment 'small' has no camera; .*needs one at least"):
        VLA(model(), [Robot(dataclasses.replace(embodiment(), cameras=()), statistics())])
    vla = policy()
    with pytest.raises(ValueError, match=r"the images \(1, 0, 32, 32, 3\) are of no camera"):
        vla.backbone.tokenize(torch.zeros(1, 0, 32, 32, 3, dtype=torch.uint8), ["open"])


def test_a_missing_capability_is_refused_before_weights_are_loaded(tmp_path):
    folder = write_family(FAMILIES["paligemma"], tmp_path)
    (folder / "model.safetensors").write_bytes(b"")  # reading it would fail
    keys = {"backbone": {"name": "auto", "path": str(folder)}}
    with pytest.raises(ConfigError) as refused:
        policy({"name": "interleaved", "window": 3}, **keys)
    message = str(refused.value)
    assert "history 'interleaved' needs a backbone that can interleave; this one (auto, " in message
    assert (
        "can block_mask, cache, continue, keys_values, lm_head. Use history: policy_head (or past: visible, if "
        in message
    )
    named = message.rpartition(": ")[2].split(", ")
    assert {"llava", "nano", "smolvlm"} <= set(named)
    assert "paligemma" not in named


def test_capabilities_known_only_after_building_are_checked_then(monkeypatch):
    class Unsure(NanoBackbone):
        @classmethod
        def find_capabilities(cls, config, assets=None):
            return None

        def __init__(self, config, assets=None):
            super().__init__(config, assets)
            self.capabilities = frozenset({"cache"})

    monkeypatch.setattr("anyvla.registry.backbones._targets", {"nano": Unsure})
    assert policy().backbone.capabilities == {"cache"}
    with pytest.raises(ConfigError, match=r"this one \(nano\) can cache\. Use history: policy_head"):
        policy("interleaved")


def test_a_checkpoint_without_statistics_is_refused(tmp_path):
    policy().save(tmp_path / "checkpoint")
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "checkpoint", broken)
    (broken / "statistics.json").unlink()
    with pytest.raises(ValueError, match=r"broken is no whole checkpoint, it lacks statistics\.json"):
        VLA.load(broken)
    with pytest.raises(ValueError, match=r"is no checkpoint of anyvla: it has no config.yaml"):
        VLA.load(tmp_path)


@pytest.mark.parametrize("crop", [0.75, (1.0, 0.5)])
def test_acting_sees_the_center_of_the_crop_of_training(crop):
    """Of images in any size, brought to that of the view by the one resize that reading data uses."""
    vla = policy(view={"size": [SIZE, SIZE], "crop": crop})
    data = batch(1, 1)
    large = {c: np.repeat(np.repeat(f[0], 2, 0), 3, 1) for c, f in episode(1).images.items()}
    views = np.stack([resize_to_view(image, vla.config.view) for image in large.values()])
    seen = center_crop_views(torch.from_numpy(views)[None], vla.config.view.crop)
    assert not torch.equal(seen, torch.from_numpy(views)[None])
    expected = windowed(vla, dataclasses.replace(data, images=seen[:, None]))
    [chunk] = vla.act([Observation(large, data.proprio[0, 0].numpy())], [vla.start(data.instructions[0])])
    np.testing.assert_allclose(chunk.actions, expected[0, 0].numpy(), atol=1e-4)
