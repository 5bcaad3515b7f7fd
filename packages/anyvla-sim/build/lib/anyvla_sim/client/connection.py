"""A connection to a policy server that is opened again when it is lost, and repeats the request in progress.

The bytes of a repeated request are the same, so the server recognizes it and does not advance a session twice.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path
from time import sleep
from typing import Any, Mapping
from urllib.parse import urlsplit

from anyvla_sim.client.errors import AccessDenied, ClientError, NoAnswer, ServerError, SessionLost, Unreachable

try:
    import msgpack
    from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
    from websockets.sync.client import ClientConnection, connect
except ImportError as error:
    raise ImportError(f'a client needs msgpack and websockets ({error}): pip install "anyvla-sim[client]"') from None

PROTOCOL = 1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_FINAL = {1002: "a message that is not of its protocol", 1008: "a limit", 1009: "the size of a message"}  # close codes


class Connection:
    """Sends requests to one server, one at a time. Threads may share it."""

    def __init__(
        self, url: str, key: str | None, timeout_s: float, retries: int, ca_file: str | Path | None = None
    ) -> None:
        """Raise ValueError for a URL that is not one of a server. `open` connects."""
        try:
            parts = urlsplit(url)
            self._port = parts.port or (443 if parts.scheme == "wss" else 80)
            if parts.scheme not in ("ws", "wss") or not parts.hostname:
                raise ValueError("it has no host, or another scheme")
        except ValueError as error:
            raise ValueError(
                f"{url!r} is no address of a policy server ({error}): give ws://HOST:PORT, or wss:// for TLS"
            ) from None
        self.url, self.host = url, parts.hostname
        self._ssl = ssl.create_default_context(cafile=ca_file) if parts.scheme == "wss" else None
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout_s, self._retries = timeout_s, retries
        self._lock, self._requests = threading.Lock(), 0
        self._socket: ClientConnection | None = None
        self._jitter = random.Random()
        self.description: Mapping[str, Any] | None = None  # that the server sent of its robot

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    def open(self) -> None:
        """Connect, and read the description of the server. Raises ClientError."""
        with self._lock:
            self._repeat(None, 0)

    def close(self) -> None:
        """Close the connection. Another request opens it again."""
        with self._lock:
            self._drop()

    def ask(self, kind: str, **keys: Any) -> dict[str, Any]:
        """Return the answer to a request. Raises the server's ServerError, and ClientError without an answer."""
        with self._lock:
            self._requests += 1
            message = {"type": kind, "id": self._requests, **keys}
            return self._repeat(msgpack.packb(message, use_bin_type=True), self._requests)

    def _repeat(self, data: bytes | None, number: int) -> dict[str, Any]:
        """Send a request (None: only connect) until it is answered, at most `retries` times more."""
        for attempt in range(self._retries + 1):
            if attempt:
                pause = min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
                sleep(pause * self._jitter.uniform(0.5, 1.0))
            try:
                if self._socket is None:
                    self._socket = self._connect()
                return {} if data is None else self._exchange(self._socket, data, number)
            except (NoAnswer, Unreachable) as error:
                self._drop()
                failure: ClientError = error
            except ServerError as error:
                if error.code != "busy":
                    raise
                failure = error
            except BaseException:  # an answer may still arrive, and would be taken for that of the next request
                self._drop()
                raise
        raise failure

    def _connect(self) -> ClientConnection:
        """Return a new connection after the exchange of hellos."""
        try:
            plain = socket.create_connection((self.host, self._port), self._timeout_s)
        except socket.timeout:
            raise Unreachable(f"{self.url} did not take the connection within {self._timeout_s:g} s") from None
        except OSError as error:
            raise Unreachable(f"no server takes a connection at {self.url}: {error}") from None
        try:
            _limit_sending(plain, self._timeout_s)
            opened = self._shake(plain)
        except BaseException:
            plain.close()
            raise
        try:
            self._greet(opened)
        except BaseException:
            _close(opened)
            raise
        return opened

    def _shake(self, plain: socket.socket) -> ClientConnection:
        try:
            return connect(
                self.url,
                sock=plain,
                ssl=self._ssl,
                additional_headers=self._headers,
                compression=None,
                max_size=None,
                open_timeout=self._timeout_s,
                close_timeout=1,
            )
        except InvalidStatus as error:
            status, text = error.response.status_code, (error.response.body or b"").decode(errors="replace").strip()
            if status == 401:
                hint = "give key=..., or set ANYVLA_API_KEY" if not self._headers else "the given key is wrong"
                raise AccessDenied(f"{self.url} needs its API key: {hint}") from None
            if status == 503:
                raise Unreachable(f"{self.url} is busy: {text}") from None
            raise ClientError(f"{self.url} answers HTTP {status}: {text[:200]}") from None
        except ssl.SSLCertVerificationError as error:
            raise ClientError(
                f"the certificate of {self.url} is not trusted ({error.verify_message}); give ca_file=..., the file of "
                "the authority that signed it"
            ) from None
        # OSError: timeouts and errors of TLS too. AssertionError: websockets 17, if the server speaks first.
        except (WebSocketException, OSError, EOFError, AssertionError) as error:
            raise Unreachable(
                f"{self.url} does not answer as a policy server: {str(error) or type(error).__name__}"
            ) from None

    def _greet(self, opened: ClientConnection) -> None:
        """Exchange hellos. Raises ClientError if another policy is served than before."""
        hello = msgpack.packb({"type": "hello", "id": 0, "protocol": PROTOCOL}, use_bin_type=True)
        description = self._exchange(opened, hello, 0)
        description.pop("server", None)  # its version
        if self.description not in (None, description):
            raise ClientError(f"{self.url} now serves another policy than before: make a new Client")
        self.description = description

    def _exchange(self, opened: ClientConnection, data: bytes, number: int) -> dict[str, Any]:
        try:
            opened.send(data)
            answer = opened.recv(self._timeout_s)
        except TimeoutError:
            raise NoAnswer(f"{self.url} did not answer within {self._timeout_s:g} s (timeout_s)") from None
        except ConnectionClosed as error:
            code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd is not None else (1006, "")
            if code in _FINAL:
                raise ClientError(f"{self.url} refuses {_FINAL[code]}: {reason or code}") from None
            raise Unreachable(f"the connection to {self.url} was lost: {reason or error}") from None
        return self._read(answer, number)

    def _read(self, data: Any, number: int) -> dict[str, Any]:
        try:
            answer = msgpack.unpackb(data, raw=False)
            kind, answered = answer["type"], answer["id"]
        except (TypeError, KeyError, ValueError, msgpack.UnpackException):
            raise ClientError(
                f"{self.url} does not speak the protocol of this client: start it with `anyvla serve --protocol anyvla`"
            ) from None
        if kind == "error" and answered in (number, None):
            code = str(answer.get("code"))
            raise (SessionLost if code == "session" else ServerError)(str(answer.get("error")), code)
        if answered != number:
            raise ClientError(f"{self.url} answered request {answered!r:.40} instead of {number}")
        return dict(answer)

    def _drop(self) -> None:
        opened, self._socket = self._socket, None
        if opened is not None:
            _close(opened)


def _close(opened: ClientConnection) -> None:
    with contextlib.suppress(Exception):  # it may be broken in any way
        opened.close()


def _limit_sending(plain: socket.socket, seconds: float) -> None:
    """Let `send` fail after a while; `recv` has a timeout of its own, and receives in another thread."""
    whole = int(seconds)
    value = struct.pack("@I", int(seconds * 1000))
    if sys.platform != "win32":
        value = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
