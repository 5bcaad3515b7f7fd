from __future__ import annotations

import errno

import pytest

from anyvla.config import ConfigError
from anyvla.serving.listening import bind, explain_bind_error


def test_all_addresses_of_a_host_share_one_port() -> None:
    sockets = bind("localhost", 0)
    assert {a in ("127.0.0.1", "::1") for a in (s.getsockname()[0] for s in sockets)} == {True}
    assert len({s.getsockname()[1] for s in sockets}) == 1
    for s in sockets:
        s.close()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EADDRINUSE, "port 80 is in use: .* another --port"),
        (errno.EACCES, "you may not use port 80: ports below 1024 need root; give --port 8000"),
        (errno.EADDRNOTAVAIL, "--host h is no address of this machine"),
        (errno.ENETDOWN, "cannot listen at h, port 80: the network is down"),
    ],
)
def test_errors_suggest_a_remedy(number: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        raise explain_bind_error(OSError(number, "the network is down"), "h", 80)
