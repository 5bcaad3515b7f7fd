"""Record what anyvla computes, as checksums, to prove that a refactoring changed no number.

    python tools/golden.py golden.json            # before: record
    python tools/golden.py golden.json --compare  # after: compare, and list the differences

It records the losses, gradient norms and actions of every bundled recipe around a small backbone, the token sequences
and readouts of every tested family, and the window batches of every data format. A checksum covers every bit, so both
runs need the same machine and the same versions of PyTorch and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the small models and data sets of the tests

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tests.backbones.families import FAMILIES  # noqa: E402
from tests.backbones.families.common import write_family  # noqa: E402
from tests.backbones.families.registered import REGISTERED  # noqa: E402
from tests.data.formats.calvin.test_dataset import folder as calvin  # noqa: E402
from tests.data.formats.hdf5.test_dataset import robot as two_arms  # noqa: E402
from tests.data.formats.hdf5.test_dataset import write_aloha  # noqa: E402
from tests.data.formats.rlds.test_dataset import BRIDGE, FRACTAL  # noqa: E402
from tests.data.formats.robomimic.test_dataset import write_libero, write_robomimic  # noqa: E402
from tests.data.formats.test_folder import folder as npz_folder  # noqa: E402
from tests.hub_like import so101  # noqa: E402
from tests.small import NANO, batch, fit_codec_to, model, observation, robot  # noqa: E402
from tests.test_presets import SHRUNK  # noqa: E402

from anyvla.backbones.auto import AutoBackbone  # noqa: E402
from anyvla.config import build  # noqa: E402
from anyvla.data.open import open_dataset  # noqa: E402
from anyvla.data.training.mixture import Mixture  # noqa: E402
from anyvla.data.training.sampler import WindowIndices  # noqa: E402
from anyvla.data.training.window import WindowConfig, WindowDataset  # noqa: E402
from anyvla.policy import VLA, VLAConfig  # noqa: E402
from anyvla.recipe import bundled, read  # noqa: E402
from anyvla.registry import backbones  # noqa: E402
from anyvla.robot.views import ViewConfig  # noqa: E402
from anyvla.sequence.layout import lay_out  # noqa: E402
from anyvla.training.optim import build_optimizer  # noqa: E402


def checksum(*values: Any) -> str:
    """Return a hash over arrays, tensors, numbers and text, shapes and types included."""
    digest = hashlib.sha256()
    for value in values:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes() if array.dtype.kind != "O" else repr(value).encode())
    return digest.hexdigest()[:16]


def checksum_unordered(values: Iterable[Any]) -> str:
    """Return a hash over a set of tensors, whatever their names and their order."""
    return checksum(*sorted(checksum(value) for value in values))


def record_policy(config: VLAConfig, training: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Record two training steps of a fresh policy, then two calls of `act` in each of two sessions."""
    codec = fit_codec_to(config, robot().embodiment.action, folder)
    torch.manual_seed(0)
    vla = VLA(config, [robot()], codec=codec)
    yield "weights", checksum_unordered(vla.state_dict().values())
    data = batch(2, vla.history.window, chunk=config.chunk)
    optim = build_optimizer(training, vla)
    for step in range(2):
        optim.zero_grad()
        loss = vla.loss(data, [torch.Generator().manual_seed(step) for _ in data.instructions])
        loss.value.backward()
        yield f"loss {step}", checksum(loss.value)
        yield f"gradients {step}", checksum_unordered(p.grad for p in vla.parameters() if p.grad is not None)
        optim.step()
    vla.eval()
    sessions = [vla.start("open the drawer", seed=1), vla.start("close it now, please", seed=2)]
    for step in range(2):
        at = step % data.images.shape[1]
        chunks = vla.act([observation(data, row, at) for row in range(2)], sessions)
        yield f"actions {step}", checksum(*(chunk.actions for chunk in chunks))


def record_recipes(folder: Path) -> Iterator[tuple[str, str]]:
    """Record every bundled recipe, and every decoder with every history, around a small backbone."""
    training = read("quickstart").training.optim
    for name in bundled():
        recipe = read(name, [f"--model.backbone={ {**NANO, 'context': 4096} }", *SHRUNK.get(name, [])])
        for what, value in record_policy(recipe.model, recipe.training.optim, folder / name):
            yield f"recipe {name}: {what}", value
    structures = [("diffusion", "continuous"), ("flow", "continuous"), ("expert", "continuous")]
    structures += [("tokens", "vq"), ("tokens", "fast"), ("lm_tokens", "bins")]
    for history, fuser in (("policy_head", "lstm"), ("interleaved", "mlp")):
        for decoder, representation in structures:
            axes = {"decoder": decoder, "representation": representation, "proprio": "token"}
            config = model({"name": history, "window": 3}, fuser, **axes)
            for what, value in record_policy(config, training, folder / f"{history}-{decoder}"):
                yield f"structure {history} {decoder} {representation}: {what}", value


def record_families(folder: Path) -> Iterator[tuple[str, str]]:
    """Record the tokens of two steps and the readouts of a backbone, for every family."""
    made: dict[str, Callable[[], Any]] = {}
    for name, family in FAMILIES.items():
        path = folder / name
        keys = {"path": str(path), "prompt": "do {instruction}", **family.options}
        made[name] = lambda p=path, k=keys, f=family: (write_family(f, p), AutoBackbone(AutoBackbone.Config(**k)))[1]
    for name, options in REGISTERED.items():
        target = backbones[name]
        made[name] = lambda t=target, o=options, n=name: t(build(t.Config, o(folder / f"as {n}")))
    for name in sorted(made):
        torch.manual_seed(0)
        backbone = made[name]().eval()
        g = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 2, 40, 30, 3), dtype=torch.uint8, generator=g)
        block = backbone.tokenize(images, ["open it", "close the drawer"])
        yield f"family {name}: tokens", checksum(block.prefix, *block.tokens)
        sequence = lay_out(block, (1, 1), 2, pad_id=backbone.pad_id, query_id=backbone.query_id)
        fields = [getattr(sequence, f.name) for f in dataclasses.fields(sequence)]
        yield f"family {name}: sequence", checksum(*(x for x in fields if isinstance(x, torch.Tensor)))
        queries = torch.randn(2, backbone.width, generator=g)
        with torch.inference_mode():
            yield f"family {name}: readouts", checksum(backbone(sequence, queries))


def record_formats(folder: Path) -> Iterator[tuple[str, str]]:
    """Record three windows of a small data set of each format."""
    os.environ["ANYVLA_CACHE"] = str(folder / "cache")
    aloha = folder / "aloha"
    aloha.mkdir()
    write_aloha(aloha / "episode_0.hdf5", True)
    data = {
        "rlds bridge": open_dataset(BRIDGE),
        "rlds fractal": open_dataset(FRACTAL),
        "lerobot v2.1": open_dataset(so101(folder / "v2", "v2.1"), embodiment=make_arm()),
        "lerobot v3.0": open_dataset(so101(folder / "v3", "v3.0"), embodiment=make_arm()),
        "calvin": open_dataset(calvin._get_wrapped_function()(folder)),
        "robomimic": open_dataset(write_robomimic(folder / "low_dim.hdf5")),
        "libero": open_dataset(write_libero(folder / "libero", "open_it", "open it")),
        "hdf5": open_dataset(aloha, embodiment=two_arms("cam_high")),
        "folder": open_dataset(npz_folder(folder / "mine")),
    }
    for name, dataset in data.items():
        yield f"format {name}: fingerprint", dataset.fingerprint[:16]
        windows = WindowDataset(
            Mixture([dataset], [1.0], ["do it"]),
            WindowConfig(window=3, chunk=4, stride=2, view=ViewConfig(size=(24, 24))),
        )
        draw = WindowIndices(np.zeros(3, np.int64), np.array([0, 3, 5]), np.arange(3, dtype=np.uint64))
        for key, value in windows.batch(draw).items():
            if key == "samples":  # numbers of windows, not their contents
                continue
            yield f"format {name}: {key}", checksum(value)


def make_arm() -> Any:
    """Return the embodiment of an SO-101 as `hub_like.so101` records it."""
    return dataclasses.replace(
        two_arms("observation.images.front", "observation.images.wrist", action=6, proprio=6), control_hz=30
    )


def main() -> int:
    """Record, or compare; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the file with the checksums")
    parser.add_argument("--compare", action="store_true", help="compare with the file instead of writing it")
    options = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, record in enumerate((record_recipes, record_families, record_formats)):
            (Path(folder) / str(number)).mkdir()
            found |= record(Path(folder) / str(number))
    if not options.compare:
        options.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} checksums in {options.file}")
        return 0
    expected = json.loads(options.file.read_text(encoding="utf-8"))
    different = [k for k in expected if found.get(k) != expected[k]] + [k for k in found if k not in expected]
    print(
        "\n".join(
            [*(f"differs: {k}" for k in different), f"{len(found) - len(different)} of {len(expected)} are equal"]
        )
    )
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
