"""Examine policies that are really served: by the doctor's own server, by a running one, and by a user's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.cli.main import main
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.doctor.local_server import serving
from anyvla.policy import VLA
from anyvla.serving.mapping import ClientMapping, Request, Translator
from anyvla.serving.mapping_files import choose_mapping
from anyvla.serving.protocols.registry import load_protocol
from anyvla.types import Observation
from tests import small
from tests.doctor import recordings

pytest.importorskip("websockets")
LSTM = {"name": "lstm", "hidden": 32, "layers": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with a policy and its data."""
    folder = tmp_path_factory.mktemp("runs") / "arm"
    mixture = recordings.write(folder / "dataset")
    recordings.policy(mixture, {"name": "policy_head", "window": 2}, LSTM).save(folder / "checkpoint", {"name": "arm"})
    return folder


@pytest.fixture(scope="module")
def vla(run: Path) -> VLA:
    return VLA.load(run / "checkpoint")


def call(capsys: Any, run: Path, *arguments: object) -> tuple[int, str, str]:
    given = [str(a) for a in arguments]
    data = [] if "--dataset" in given else ["--dataset", str(run / "dataset")]
    status = main(["doctor", "policy", str(run), *data, *given])
    out, err = capsys.readouterr()
    return status, out, " ".join(err.split())


@pytest.mark.parametrize("protocol", ["vla-eval", "openpi", "anyvla"])
def test_a_served_policy_predicts_what_training_computes(
    run: Path, tmp_path: Path, capsys: Any, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyvla.doctor.diagnosis.Doctor.find_unnoticed", lambda doctor, faults: faults[:1])
    status, out, err = call(capsys, run, "--protocol", protocol, "--json", "--out", tmp_path)
    report = json.loads(out)
    assert (status, report["equal"], report["diagnosis"]) == (0, True, None), err
    chunks = protocol != "vla-eval"
    assert report["whole_chunks"] is chunks
    assert len(report["episodes"]) == 3
    assert sum(e["calls"] for e in report["episodes"]) == (5 + 4 + 4 if chunks else 9 + 8 + 8)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert [g["group"] for g in report["agreement"]] == ["position", "gripper"]
    with np.load(tmp_path / "answers.npz") as answers:
        number = report["episodes"][0]["episode"]
        assert answers[f"actions_{number}"].shape[1:] == (4 if chunks else 1, 4)


def test_sampled_noise_is_that_of_the_session(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyvla.doctor.diagnosis.Doctor.find_unnoticed", lambda doctor, faults: [])
    mixture = recordings.write(tmp_path / "dataset")
    recordings.policy(mixture, decoder="flow").save(tmp_path / "checkpoint", {"name": "arm"})
    status, out, _ = call(capsys, tmp_path, "--json")
    assert (status, json.loads(out)["seeds"]) == (0, "the number of the rollout, from 1")


class Turned(Translator):
    """Reads images upside down, as a server does whose camera is mounted so."""

    def request(self, values: Any) -> Any:
        return TurnedRequest(**vars(super().request(values)))


class TurnedRequest(Request):
    def observation(self) -> Observation:
        seen = super().observation()
        return Observation({c: np.ascontiguousarray(i[::-1]) for c, i in seen.images.items()}, seen.proprio)


def test_the_fault_of_a_running_server_is_named(run: Path, vla: VLA, capsys: Any) -> None:
    with serving(vla, Turned(ClientMapping(), vla.robots[0].embodiment), "vla-eval") as url:
        status, out, _ = call(capsys, run, "--server", url, "--tolerance", 1e-5)
    assert status == 1
    assert "The fault: images upside down (flipped) (its answers equal the served ones)." in out
    assert "DIFFERS served: against training" in out
    assert "First at step 0 of episode" in out


MODULE = """
import os
import numpy as np
from anyvla.doctor.wire_clients import VlaEvalClient
from anyvla.doctor.observation_writer import ObservationWriter
from anyvla.serving.mapping import ClientMapping
from anyvla.types import Observation
from tests.doctor.recordings import embodiment

client = VlaEvalClient(os.environ["ANYVLA_SERVER"], ObservationWriter(ClientMapping(), embodiment()))

def ask(seen):
    if seen["step"] == 0:
        client.start(seen["instruction"])
    images = {"front": seen["images"]["wrist"], "wrist": seen["images"]["front"]}
    action = client.ask(Observation(images, seen["proprio"]), seen["step"])[0]
    return action * np.array([1, 1, 1, -1], np.float32)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_arm.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_arm"


def test_two_faults_of_a_users_client_are_named(run: Path, capsys: Any, module: str) -> None:
    status, out, _ = call(capsys, run, "--client", f"{module}:ask", "--json", "--tolerance", 1e-5)
    diagnosis = json.loads(out)["diagnosis"]
    assert (status, diagnosis["fit"]) == (1, "exact")
    assert set(diagnosis["fault"]["parts"]) == {
        "cameras front and wrist swapped",
        "actions: gripper with the opposite polarity",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "ws://127.0.0.1:9"], "no policy server answers at ws://127.0.0.1:9"),
        (["--episodes", "0"], "--episodes 0 is too small"),
        (["--steps", "2"], "the chosen episodes are too short"),
        (["--robot", "leg"], "--robot leg: the policy has arm"),
        (["--protocol", "opnpi"], "openpi"),
        (["--protocol", "groot"], "the doctor has no client of groot, only of vla-eval, openpi, anyvla"),
        (["--client", "my_robot"], "give module:function"),
        (["--client", "no_such_module:ask"], "no_such_module cannot be imported"),
        (["--dataset", "/nowhere"], "/nowhere"),
        (["--api-key-file", "key"], "--api-key-file is the key of --server, and none is given"),
        (["--api-key-file", "key", "--server", "x", "--client", "a:b"], "--api-key-file has no effect with --client"),
        (["--mapping", "m", "--server", "x", "--client", "a:b"], "--mapping has no effect with both --client and"),
        (["--protocol", "groot", "--server", "x", "--client", "a:b"], "--protocol has no effect with both --client"),
        (["--mapping", "plain", "--protocol", "anyvla"], "--mapping has no effect with --protocol anyvla"),
    ],
)
def test_bad_options_get_one_clear_line(run: Path, capsys: Any, arguments: list[str], message: str) -> None:
    status, out, err = call(capsys, run, *arguments)
    assert (status, out) == (1, "")
    assert message in err


def test_data_of_another_robot_is_refused_with_its_differences(run: Path, tmp_path: Path, capsys: Any) -> None:
    write_dataset(tmp_path / "other", small.embodiment(), [small.episode(6)])
    status, _, err = call(capsys, run, "--dataset", tmp_path / "other")
    assert status == 1
    assert "does not fit the policy's robot 'arm'" in err
    assert "it lacks camera front" in err


def test_a_checkpoint_without_statistics_is_refused(run: Path, vla: VLA, tmp_path: Path, capsys: Any) -> None:
    vla.save(tmp_path / "checkpoint", {"name": "arm"})
    (tmp_path / "checkpoint/statistics.json").unlink()
    status, _, err = call(capsys, tmp_path, "--dataset", run / "dataset")
    assert status == 1
    assert "statistics.json" in err


def test_a_server_of_another_policy_is_refused(
    run: Path, vla: VLA, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyvla.doctor.wire_clients._CONNECT_S", 1.0)
    other = recordings.policy(small.mixture(run / "dataset"), chunk=6)
    with serving(other, Translator(ClientMapping(), other.robots[0].embodiment), "vla-eval") as url:
        status, _, err = call(capsys, run, "--server", url)
        assert status == 1
        assert f"the server at {url} has another policy than the checkpoint: chunk 6 instead of 4" in err
        status, _, err = call(capsys, run, "--server", url, "--protocol", "openpi")
        assert "does not greet as a server of openpi" in err


def test_a_running_server_of_other_weights_is_refused(run: Path, capsys: Any) -> None:
    other = recordings.policy(small.mixture(run / "dataset"), {"name": "policy_head", "window": 2}, LSTM)
    other.queries.data += 0.1
    for protocol in ("vla-eval", "openpi", "anyvla"):
        kind = load_protocol(protocol)
        translator = Translator(
            choose_mapping(None, other.robots[0].embodiment, protocol, kind.keys), other.robots[0].embodiment
        )
        with serving(other, translator, protocol) as url:
            status, _, err = call(capsys, run, "--server", url, "--protocol", protocol)
        assert status == 1
        assert "has another policy than the checkpoint: policy" in err


MODULE_IN_DEGREES = """
import numpy as np

def ask(seen):
    from anyvla.observing import ProprioChecker
    from tests.cli.doctor import test_policy

    values = seen["proprio"].copy()
    values[3:6] = np.rad2deg(values[3:6])
    checker = ProprioChecker(test_policy.examined[0].robots[0])
    raise ValueError(checker.describe(values, checker.find_implausible(values)))
"""
examined: list[VLA] = []


def test_the_fault_of_a_refused_observation_is_named(
    run: Path, vla: VLA, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in_degrees.py").write_text(MODULE_IN_DEGREES)
    monkeypatch.syspath_prepend(str(tmp_path))
    examined[:] = [vla]
    status, _, err = call(capsys, run, "--client", "in_degrees:ask")
    assert status == 1
    assert (
        "step 0: in_degrees:ask failed: ValueError: proprio of robot 'arm' is far outside of the training data" in err
    )
    assert "The fault: proprio rotation sent in degrees instead of radians." in err


def test_a_server_that_refuses_an_observation_is_quoted(run: Path, vla: VLA, capsys: Any) -> None:
    mapping = ClientMapping(proprio="other_key")
    with serving(vla, Translator(mapping, vla.robots[0].embodiment), "vla-eval") as url:
        status, _, err = call(capsys, run, "--server", url)
    assert status == 1
    assert "the served path refused a recorded observation" in err
    assert "'other_key'" in err
