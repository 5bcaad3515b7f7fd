from __future__ import annotations

import io

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from anyvla.serving.arrays import read_image, read_vector
from anyvla.serving.limits import ServerLimits
from anyvla.serving.msgpack_reader import read_msgpack
from anyvla_sim.client.images import read_array, write_array, write_image, write_png


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_a_png_file_has_every_pixel(image: np.ndarray) -> None:
    with Image.open(io.BytesIO(write_png(image))) as opened:
        opened.verify()  # the checksums
    with Image.open(io.BytesIO(write_png(image))) as opened:
        assert (opened.mode, opened.size) == ("RGB", image.shape[1::-1])
        assert np.array_equal(np.asarray(opened), image)


@pytest.mark.parametrize("form", ["raw", "png"])
def test_the_server_reads_the_pixels_that_were_written(form: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8)
    for given_image in (image, image[::-1, ::-1], image.transpose(1, 0, 2)):  # not all are contiguous
        message = msgpack.packb(write_image(np.ascontiguousarray(given_image), form))
        read = read_image(read_msgpack(message, ServerLimits()), "front", ServerLimits())
        assert np.array_equal(read.decode(), given_image)


def test_a_jpeg_image_is_close_and_rgb() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 200
    message = msgpack.packb(write_image(image, "jpeg"))
    pixels = read_image(read_msgpack(message, ServerLimits()), "front", ServerLimits()).decode()
    assert np.abs(pixels.astype(int) - image).max() < 8


def test_arrays_survive_both_ways() -> None:
    vector = np.array([1.5, -2, 3], np.float32)
    message = msgpack.packb(write_array(vector))
    assert np.array_equal(read_vector(read_msgpack(message, ServerLimits()), "proprio", ServerLimits()), vector)
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    read = read_array(msgpack.unpackb(msgpack.packb(write_array(matrix))))
    assert np.array_equal(read, matrix)
    read[0] = 0  # it can be written


@pytest.mark.parametrize(
    "value",
    [None, 3, {}, {"dtype": "O", "shape": [1], "data": b"12345678"}, {"dtype": "<f4", "shape": [3], "data": b"1234"}],
)
def test_what_is_no_array_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no array where one is needed"):
        read_array(value)
