"""Authorize clients of the policy server: everyone on this machine, and others with a key.

A client sends the key as `Authorization: Bearer KEY` or `Api-Key KEY` (openpi), or in its URL, ws://any:KEY@host:port
(websockets makes `Authorization: Basic` of it, the only way of vla-eval).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError

VARIABLE = "ANYVLA_API_KEY"


def read_key(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Return the key of a file, or else of the environment; None if there is none. Raises ConfigError.

    There is no option for the key itself: other users of a machine can read the command lines of all processes.
    """
    if file is None:
        key, where = environment.get(VARIABLE), VARIABLE
    else:
        where = str(file)
        try:
            with file.open("rb") as opened:
                key = opened.read(4096).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API key {file}: {error}") from None
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{where} has no API key: it must be one word of ASCII characters. Make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return key


def check_exposure(addresses: Collection[str], key: str | None, no_auth: bool) -> None:
    """Raise ConfigError for a server that other machines can reach without a key, unless `no_auth` asks for it.

    An address that they can't reach contradicts `no_auth`.
    """
    if no_auth and key is not None:
        raise ConfigError(f"--no-auth contradicts the API key of --api-key-file or {VARIABLE}: give one of them")
    exposed = [a for a in addresses if not ipaddress.ip_address(a.partition("%")[0]).is_loopback]
    if no_auth and not exposed:
        raise ConfigError(
            "--no-auth lets other machines use the server, and they can't reach it: give --host 0.0.0.0, too, or leave "
            "--no-auth away, as clients on this machine need no key"
        )
    if exposed and key is None and not no_auth:
        raise ConfigError(
            f"other machines could use a server at {exposed[0]} without a key. Put a key into a file and give "
            f"--api-key-file FILE (or set {VARIABLE}), or allow everyone with --no-auth"
        )


def is_authorized(authorization: str, key: str) -> bool:
    """Return whether the header `Authorization` has the key. The time doesn't reveal how much of it is right."""
    scheme, _, given = authorization.strip().partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return False
    elif scheme.lower() not in ("bearer", "api-key"):
        return False
    return is_key(given, key)


def is_key(given: Any, key: str) -> bool:
    """Return whether a client's value is the key. The time doesn't reveal how much of it is right."""
    return isinstance(given, str) and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), key.encode())
