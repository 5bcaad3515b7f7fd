"""`anyvla bench latency` gives each stage its own time, and measures what the server does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")

from anyvla.backbones.images.pixels import Pixels
from anyvla.cli.bench.chunk_path import ChunkPath
from anyvla.cli.bench.measurement import STAGES, Latency, measure
from anyvla.cli.main import main
from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.protocols.openpi import OpenpiConnection
from anyvla.serving.protocols.openpi_codec import read_map
from tests import small

PAUSE_S = 1000.0  # of a clock that the tests advance: far more than any load of the machine adds
HEAD = {"name": "policy_head", "window": 3}
GPT = {"name": "gpt", "width": 32, "layers": 1, "heads": 2}


def of(vla: VLA, rounds: int = 2, **keys: Any) -> Latency:
    return measure(ChunkPath(vla, small.embodiment(), **keys), rounds, 1e9)


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that advances the clock of measurements."""
    passed, clock = [0.0], time.perf_counter

    def advance() -> None:
        passed[0] += PAUSE_S

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + passed[0])
    return advance


def delay(monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None], owner: object, method: str) -> None:
    original: Callable[..., Any] = getattr(owner, method)

    def slow(*args: Any, **keys: Any) -> Any:
        pause()
        return original(*args, **keys)

    monkeypatch.setattr(owner, method, slow)


def test_the_stages_add_up() -> None:
    found = of(small.policy(HEAD, GPT), rounds=3, batch=2)
    assert list(found.stages) == [s for s in STAGES if s in found.stages]
    assert {"decode", "resize", "tokenize", "vision", "language", "fuser", "decoder", "encode"} <= set(found.stages)
    assert all(times.p50 > 0 for times in found.stages.values())
    assert sum(times.mean for times in found.stages.values()) == pytest.approx(found.clocked.mean)
    assert 0 < found.chunk.p50 <= found.chunk.p90 <= found.chunk.p99
    assert found.rounds == found.asked == 3


@pytest.mark.parametrize(
    ("stage", "find"),
    [
        ("resize", lambda vla: (vla.observer, "read_images")),
        ("resize", lambda vla: (next(m for m in vla.modules() if isinstance(m, Pixels)), "forward")),
        ("tokenize", lambda vla: (vla.backbone, "tokenize")),
        ("vision", lambda vla: (vla.backbone.part_modules()["vision"][0], "forward")),
        ("language", lambda vla: (next(iter(vla.backbone.part_modules()["language"][0].layers)), "forward")),
        ("fuser", lambda vla: (vla.fuser, "forward")),
        ("decoder", lambda vla: (vla.decoder, "sample")),
        ("other", lambda vla: (vla.action_normalizer, "denormalize")),
    ],
)
def test_a_slow_part_is_found(
    monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None], stage: str, find: Callable[[VLA], tuple[object, str]]
) -> None:
    vla = small.policy(HEAD, GPT)
    delay(monkeypatch, pause, *find(vla))
    found = of(vla)
    assert [name for name, times in found.stages.items() if times.p50 > 500 * PAUSE_S] == [stage]
    assert found.chunk.p50 > 1000 * PAUSE_S
    assert found.served.p50 > 1000 * PAUSE_S


@pytest.mark.parametrize(("method", "stage"), [("request", "decode"), ("their_actions", "encode")])
def test_slow_messages_are_found(
    monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None], method: str, stage: str
) -> None:
    path = ChunkPath(small.policy(), small.embodiment())
    delay(monkeypatch, pause, path.translator, method)
    assert measure(path, 1, 1e9).stages[stage].p50 > 1000 * PAUSE_S


def test_a_decoder_keeps_the_time_in_which_it_calls_the_backbone(
    monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None], tmp_path: Path
) -> None:
    codec = small.fit_codec("bins", tmp_path / "codec")
    vla = small.policy(decoder="lm_tokens", representation="bins", codec=codec)
    layer, inside = next(iter(vla.backbone.part_modules()["language"][0].layers)), [False]
    sample, forward = vla.decoder.sample, layer.forward

    def sample_slowly(*args: Any) -> Any:
        inside[0] = True
        try:
            return sample(*args)
        finally:
            inside[0] = False

    def slow_inside(*args: Any, **keys: Any) -> Any:
        if inside[0]:
            pause()
        return forward(*args, **keys)

    monkeypatch.setattr(vla.decoder, "sample", sample_slowly)
    monkeypatch.setattr(layer, "forward", slow_inside)
    found = of(vla, rounds=1)
    assert [name for name, times in found.stages.items() if times.p50 > 500 * PAUSE_S] == ["decoder"]


def test_the_measured_answers_are_those_of_the_server() -> None:
    vla = small.awake(small.policy(HEAD, GPT))
    path = ChunkPath(vla, small.embodiment(), size=(40, 24))
    connection = OpenpiConnection(path.service)
    with torch.inference_mode():
        ours = [read_actions(path.run()[0]) for _ in range(3)]
    theirs = [read_actions(asyncio.run(connection.answer(path.message)).data) for _ in range(3)]
    path.service.close()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert np.ptp(ours, axis=0).max() > 0  # the history grows
    assert {image.shape for image in path.decode().images.values()} == {(40, 24, 3)}


def read_actions(data: Any) -> np.ndarray:
    array = read_map(data, ServerLimits())["actions"]
    return np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_encoded_images_are_decoded(encoding: str) -> None:
    path = ChunkPath(small.policy(), small.embodiment(), size=(64, 64), encoding=encoding)
    raw = ChunkPath(small.policy(), small.embodiment(), size=(64, 64))
    difference = path.decode().images["wrist"].astype(int) - raw.decode().images["wrist"]
    assert np.abs(difference).mean() < {"png": 1e-9, "jpeg": 4}[encoding]
    assert len(path.message) < len(raw.message)
    for p in path, raw:
        p.service.close()


def test_nothing_of_the_policy_is_changed() -> None:
    vla = small.policy(HEAD, GPT)
    before = {m: dict(vars(m)) for m in (vla, vla.observer, *vla.modules())}
    of(vla)
    assert all(vars(m).keys() == names.keys() for m, names in before.items())


def test_the_control_rate_follows_from_the_slowest_of_100_chunks() -> None:
    found = of(small.policy(), execute=4)
    assert found.needed_ms == 400  # four actions at 10 Hz
    assert found.margin == pytest.approx(400 / found.served.p99)
    assert found.most_hz == pytest.approx(4 / (found.served.p99 / 1000))
    assert found.keeps_up == (found.served.p99 <= 400)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    small.policy().save(folder, {"name": "small"})
    return folder


def test_the_command_prints_a_table_and_json(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["bench", "latency", str(checkpoint.parent), "--rounds", "2", "--device", "cpu", "--images", "48x32"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert "float32: 2 cameras of 48 x 32 (raw), 2 rounds" in shown
    assert "with 2 actions of a chunk executed, the robot needs a chunk every 200 ms" in shown
    assert main([*options, "--json", "--batch", "2"]) == 0
    [found] = json.loads(capsys.readouterr().out)["devices"]
    assert (found["batch"], found["images"], found["rounds"], found["needed_ms"]) == (2, [48, 32], 2, 200)
    assert found["stages"].keys() <= set(STAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "224"], "--images 224: give height and width in pixels, as 224x224"),
        (["--images", "4000x4000"], "--images 4000x4000: a server takes"),
        (["--batch", "0"], "--batch 0 is too small"),
        (["--execute", "5"], "--execute 5: the policy predicts 4 actions at once"),
        (["--robot", "smal"], "which robot? --robot one of small"),
        (["--device", "cpu", "cuda:77"], "the device 'cuda:77' cannot be used here"),
    ],
)
def test_bad_options(checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["bench", "latency", str(checkpoint), *options]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latency", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "where the time of a chunk goes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench", "latenzy"])
    assert "latency" in capsys.readouterr().err
