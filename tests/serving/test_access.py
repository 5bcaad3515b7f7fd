from __future__ import annotations

import base64
from pathlib import Path

import pytest

from anyvla.config import ConfigError
from anyvla.serving.access import check_exposure, is_authorized, read_key

KEY = "long-key-1234567890"


def basic(user: str, password: str) -> str:
    """Return the header that websockets makes of ws://user:password@host."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_needs_no_key(address: str) -> None:
    check_exposure([address], None, no_auth=False)
    with pytest.raises(ConfigError, match="they can't reach it: give --host"):
        check_exposure([address], None, no_auth=True)
    check_exposure([address, "0.0.0.0"], None, no_auth=True)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.2", "10.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1"])
def test_other_machines_need_a_key(address: str) -> None:
    for all_of_them in (["127.0.0.1", address], [address, "127.0.0.1"]):
        with pytest.raises(ConfigError, match=r"--api-key-file FILE .* or allow everyone with --no-auth"):
            check_exposure(all_of_them, None, no_auth=False)
    check_exposure([address], "key", no_auth=False)
    check_exposure([address], None, no_auth=True)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic !!!", "Basic /w==", "key", "Digest key", "Bearer k\u00e9y"]
)
def test_headers_without_the_key(header: str) -> None:
    assert not is_authorized(header, "key")


def test_the_key_is_taken_in_three_forms() -> None:
    for header in (f"Bearer {KEY}", f"bearer  {KEY} ", f"Api-Key {KEY}", basic("any", KEY), basic("", KEY)):
        assert is_authorized(header, KEY)


@pytest.mark.parametrize("given", [KEY[:-1], KEY[:8], KEY + "x", KEY.upper(), "x" + KEY[1:], ""])
def test_nothing_but_the_whole_key_is_the_key(given: str) -> None:
    for header in (f"Bearer {given}", f"Api-Key {given}", basic("any", given), basic(KEY, given)):
        assert not is_authorized(header, KEY)


def test_a_file_goes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  of-the-file\n")
    environment = {"ANYVLA_API_KEY": "of-the-environment\n", "API_KEY": "another"}
    assert read_key(file, environment) == "of-the-file"
    assert read_key(None, environment) == "of-the-environment"
    assert read_key(None, {"API_KEY": "another"}) is None
    for bad in ("", " \n", "two words", "\u00e9"):
        with pytest.raises(ConfigError, match="has no API key: it must be one word"):
            read_key(None, {"ANYVLA_API_KEY": bad})
