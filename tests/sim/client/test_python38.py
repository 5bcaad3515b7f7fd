"""The client in Python 3.8, with the packages of `anyvla-sim[client]`, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from anyvla.types import Observation
from tests import small
from tests.serving.clients import Running
from tests.serving.lossy import LossyProxy
from tests.serving.protocols.test_anyvla import KEYS
from tests.sim.test_python38 import make_environment

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import numpy as np
from anyvla_sim.client import Client, WrongObservation

got = []
for images in ("raw", "png"):
    with Client(sys.argv[1], images=images) as client, client.start("open the drawer", seed=2) as session:
        for step in range(6):
            pixels = (np.arange(32 * 32 * 3) * (step + 3) % 256).astype(np.uint8).reshape(32, 32, 3)
            observation = {"images": {camera: pixels for camera in client.robot.cameras}, "proprio": [0.1 * step, 0, 1]}
            got.append(session.act(observation).tolist())
        try:
            session.act({"images": {}, "proprio": [0, 0, 0]})
        except WrongObservation as error:
            message = str(error)
print(json.dumps([sys.version_info[:2], got, message]))
"""


@pytest.fixture(scope="module")
def python38(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_environment(tmp_path_factory.mktemp("python38"))
    command = [made, "-m", "pip", "install", "-q", "numpy", "msgpack", "websockets>=13"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not run: the packages cannot be installed for Python 3.8 here: {done.stderr[-200:]}")
    return made


def test_a_rollout_from_python38_over_lost_connections(python38: Path) -> None:
    from anyvla.serving.protocols.anyvla import AnyvlaProtocol

    history, fuser = {"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1}
    vla = small.awake(small.policy(history, fuser, decoder="diffusion"))
    server = Running(vla, protocol=AnyvlaProtocol, mapping=KEYS)
    proxy = LossyProxy(server.port, lambda answers: answers % 4 == 0)
    path = str(Path(__file__).parents[3] / "packages" / "anyvla-sim" / "src")
    command = [python38, "-c", SCRIPT, proxy.url]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=120)
    proxy.close()
    server.close()
    assert done.returncode == 0, done.stderr
    version, got, message = json.loads(done.stdout)
    session, expected = vla.start("open the drawer", 2), []
    for step in range(0, 6, 2):
        pixels = (np.arange(32 * 32 * 3) * (step + 3) % 256).astype(np.uint8).reshape(32, 32, 3)
        observation = Observation({"corner": pixels, "wrist": pixels}, np.array([0.1 * step, 0, 1], np.float32))
        expected += vla.act([observation], [session])[0].actions[:2].tolist()
    assert version == [3, 8]
    assert np.allclose(got, expected * 2, atol=1e-5)
    assert "lacks the camera 'corner'" in message
