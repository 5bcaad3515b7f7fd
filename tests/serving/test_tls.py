from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.sync.client import connect

from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.serving.tls import TlsFiles
from tests.serving.certificate import make_certificate
from tests.serving.clients import Raw, Running, ask, payload, seen


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return make_certificate(tmp_path)


def test_a_client_that_knows_the_certificate_gets_its_action(
    vla: VLA, files: TlsFiles, running: Callable[..., Running]
) -> None:
    server = running(vla, tls=files, key="k3y")
    trusts = ssl.create_default_context(cafile=str(files.certificate))
    headers = {"Authorization": "Bearer k3y"}
    url = f"wss://127.0.0.1:{server.port}"
    with connect(
        url, compression=None, max_size=None, ssl=trusts, additional_headers=headers, open_timeout=30
    ) as client:
        assert ask(client, "observation", payload(seen(1)))["type"] == "action"
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(url, additional_headers=headers)
    asked = http.client.HTTPSConnection("127.0.0.1", server.port, context=trusts, timeout=20)
    asked.request("GET", "/healthz")
    assert asked.getresponse().status == 200
    asked.close()


def test_a_client_without_tls_is_ended(vla: VLA, files: TlsFiles, running: Callable[..., Running]) -> None:
    client = Raw(running(vla, tls=files), shake=False)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.ends(5)
    client.close()


def test_files_that_are_no_pair_are_refused(files: TlsFiles, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    locked = make_certificate(tmp_path, "locked", "secret")
    nothing = tmp_path / "nothing"
    nothing.write_text("no certificate")
    for certificate, key, message in (
        (files.certificate, other.key, "they are of different pairs"),
        (files.certificate, nothing, "are no certificate and its key"),
        (nothing, files.key, "are no certificate and its key"),
        (locked.certificate, locked.key, "the key has a password"),
        (files.certificate, tmp_path / "missing", "cannot read .*missing of --tls-cert and --tls-key: No such file"),
        (tmp_path, files.key, "cannot read .*: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            TlsFiles(certificate, key).make_context()
