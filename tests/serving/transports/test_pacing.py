from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvla.serving.transports.pacing import FrameCounter, measure_frame
from tests.serving.clients import frame

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
@pytest.mark.parametrize("begin", [0, 3])
def test_the_size_of_a_frame_is_that_of_its_header_and_its_payload(size: int, begin: int) -> None:
    data = bytearray(b"x" * begin + frame(b"y" * size) + b"more")
    assert measure_frame(data, begin) == len(data) - begin - len(b"more")
    assert measure_frame(data[: begin + 1], begin) is None


@pytest.mark.parametrize(("size", "header"), [(5, 2), (300, 4), (70_000, 10)])
def test_a_header_must_be_whole(size: int, header: int) -> None:
    data = bytearray(frame(b"y" * size))
    for length in range(header + 5):
        assert (measure_frame(data[:length], 0) is None) == (length < header)
    unmasked = bytes([data[0], data[1] & 0x7F]) + data[2:header]
    assert measure_frame(bytearray(unmasked), 0) == header + size


def slices(whole: bytes, pieces: list[int]) -> list[bytes]:
    """Return what is parsed at once if the bytes arrive in pieces of these sizes, repeatedly."""
    counter, waiting, parsed, at, turn = FrameCounter(), bytearray(), [], 0, 0
    while at < len(whole):
        piece = whole[at : at + pieces[turn % len(pieces)]]
        at += len(piece)
        turn += 1
        if not waiting and counter.pass_over(piece):
            parsed.append(piece)
            continue
        waiting += piece
        while waiting and (size := counter.take(waiting)):
            parsed.append(bytes(waiting[:size]))
            del waiting[:size]
    return parsed


def test_a_large_frame_is_parsed_as_it_arrives_and_small_ones_by_4096_bytes() -> None:
    large, pings = frame(b"x" * 300_000), frame(b"", 9) * 3000
    parsed = slices(REQUEST + large + pings, [65536])
    assert parsed[0] == REQUEST
    assert sum(map(len, parsed[1:6])) == len(large)  # in five pieces, although it is 74 times 4096 bytes
    assert max(map(len, parsed[6:])) < 4096 + len(frame(b"", 9))
    assert b"".join(parsed) == REQUEST + large + pings


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 90, 125, 126, 4000, 5000, 65536]), max_size=30),
    st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
def test_no_slice_begins_frames_beyond_4096_bytes(sizes: list[int], pieces: list[int]) -> None:
    """All bytes are parsed in order, however they arrive, and a slice ends with the frame that passes 4096 bytes."""
    frames = [frame(bytes(size)) for size in sizes]
    whole = REQUEST + b"".join(frames)
    parsed = slices(whole, pieces)
    assert b"".join(parsed) == whole
    begins, at = set(), len(REQUEST)
    for one in frames:
        begins.add(at)
        at += len(one)
    at = 0
    for part in parsed:
        assert not any(begin in begins for begin in range(at + 4096, at + len(part)))
        at += len(part)


def test_bytes_of_one_frame_need_no_turn_and_those_of_two_do() -> None:
    counter = FrameCounter()
    request = bytearray(REQUEST)
    assert not counter.pass_over(REQUEST)
    assert counter.take(request) == len(REQUEST)
    large = frame(b"x" * 1000)
    assert counter.pass_over(large[:3]) is False  # its size is not known yet
    assert counter.pass_over(large[:100])
    assert counter.pass_over(large[100:500])
    assert not counter.pass_over(large[500:] + frame(b"", 9))
    assert counter.pass_over(large[500:])
    assert counter.pass_over(frame(b"", 9))
    assert not counter.pass_over(frame(b"", 9) * 2)


@pytest.mark.parametrize("pieces", [[1], [2], [3], [7], [len(REQUEST) - 1], [len(REQUEST) + 1]])
def test_the_request_ends_where_the_first_frame_begins(pieces: list[int]) -> None:
    whole = REQUEST + frame(b"x" * 200) + frame(b"", 9)
    parsed = slices(whole, pieces)
    assert b"".join(parsed) == whole
    ends = {sum(map(len, parsed[: n + 1])) for n in range(len(parsed))}
    assert len(REQUEST) in ends
