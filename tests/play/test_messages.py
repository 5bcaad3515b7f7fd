from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.play.messages import LARGEST_SEED, CommandError, read_command, write_picture

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


def test_commands_are_read():
    assert read_command('{"do": "instruct", "text": "open the drawer"}').text == "open the drawer"
    assert read_command('{"do": "move", "shift": [0, -0.5]}').shift == (0.0, -0.5)
    assert read_command('{"do": "scene", "task": "door-open", "seed": 7}').seed == 7


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"{}", "text"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[]", "key do"),
        ('{"do": ["step"]}', "key do"),
        ('{"do": "fly"}', "one of instruct"),
        ('{"do": "step", "text": ""}', "keys"),
        ('{"do": "instruct"}', "keys"),
        ('{"do": "instruct", "text": 1}', "text"),
        ('{"do": "reset", "seed": true}', "seed"),
        ('{"do": "reset", "seed": 1.5}', "seed"),
        ('{"do": "reset", "seed": -1}', "seed"),
        (f'{{"do": "reset", "seed": {LARGEST_SEED + 1}}}', "seed"),
        ('{"do": "move", "shift": [NaN, 0]}', "shift"),
        ('{"do": "move", "shift": [2, 0]}', "shift"),
        ('{"do": "move", "shift": [0]}', "shift"),
        ('{"do": "speed", "speed": 0}', "speed"),
        (f'{{"do": "speed", "speed": {"9" * 400}}}', "speed"),
        (json.dumps({"do": "instruct", "text": "x" * 301}), "at most 300"),
    ],
)
def test_a_bad_command_is_refused(data, part):
    with pytest.raises(CommandError, match=part):
        read_command(data)


@given(st.dictionaries(st.sampled_from(["do", "text", "seed", "shift", "kind"]), JSON, max_size=3))
def test_no_json_makes_it_fail_otherwise(keys):
    with contextlib.suppress(CommandError):
        read_command(json.dumps(keys))


def test_a_picture_has_its_header_in_front():
    data = write_picture({"robot": 1, "step": 3}, b"jpeg")
    (length,) = struct.unpack(">I", data[:4])
    assert json.loads(data[4 : 4 + length]) == {"robot": 1, "step": 3}
    assert data[4 + length :] == b"jpeg"
