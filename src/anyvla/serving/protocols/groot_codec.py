"""Read and write the messages of GR00T: msgpack maps, whose arrays have one form in N1.6 and another in N1.7.

N1.6 writes an array as the bytes of `numpy.save`, {"__ndarray_class__": True, "as_npy": ...}; N1.7 as `msgpack_numpy`
does, {b"nd": True, b"type": dtype, b"kind": b"", b"shape": [...], b"data": ...}. Both become views of the message.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np

from anyvla.serving.arrays import view_array
from anyvla.serving.limits import ServerLimits
from anyvla.serving.msgpack_reader import MessageError, read_msgpack
from anyvla.serving.naming import join_names, quote

Dialect = Literal["N1.6", "N1.7"]
MODALITY_MARKERS = {"__ModalityConfig_class__": True, "__ModalityConfig__": True}  # of N1.6 and N1.7; both know one
# The header of a file of numpy.save, version 1 and 2 (numpy.lib.format), for arrays of plain numbers.
_NPY = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,12}, ?)*(?:\d{1,12},?)?)\), \} *\n"
)
_HEADER_BYTES = 1024


@dataclass(frozen=True)
class Call:
    """A request of a client, checked for its form. Its arrays are decoded."""

    endpoint: str
    data: Mapping[str, Any]
    token: Any
    dialect: Dialect | None  # None: it has no array, so both are possible


def read_call(message: bytes, limits: ServerLimits) -> Call:
    """Parse a request. Raises ValueError with its fault."""
    try:
        value = read_msgpack(message, limits, binary_keys=True)
    except MessageError as error:
        raise ValueError(f"not a msgpack message of GR00T: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a request is a map with an endpoint and data, this is a {type(value).__name__}")
    endpoint, data = value.get("endpoint", "get_action"), value.get("data")
    if not isinstance(endpoint, str) or not isinstance(data, dict | None):
        raise ValueError(f"a request has an endpoint (text) and data (a map); this one has {join_names(value)}")
    reader = _ArrayReader(limits)
    return Call(endpoint, reader.decode(data or {}, "data"), value.get("api_token"), reader.dialect)


def write_reply(value: Any, dialect: Dialect) -> bytes:
    """Return a reply. Its arrays have the form of the dialect."""
    data: bytes = msgpack.packb(value, default=_encode_npy if dialect == "N1.6" else _encode_nd)
    return data


class _ArrayReader:
    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self.dialect: Dialect | None = None

    def decode(self, value: Any, name: str) -> Any:
        """Return a value whose maps that write an array are replaced by it."""
        if isinstance(value, list):
            return [self.decode(item, name) for item in value]
        if not isinstance(value, dict):
            return value
        if "__ndarray_class__" in value:
            self.dialect = "N1.6"
            return self._read_npy(value.get("as_npy"), quote(name))
        if "nd" in value:
            self.dialect = "N1.7"
            return self._read_nd(value, quote(name))
        return {key: self.decode(item, key) for key, item in value.items()}

    def _read_npy(self, data: Any, name: str) -> np.ndarray:
        if not isinstance(data, memoryview) or bytes(data[:6]) != b"\x93NUMPY":
            raise ValueError(f"{name} has no 'as_npy' of numpy.save, but {quote(data)}")
        form = {1: "<H", 2: "<I"}.get(data[6] if len(data) > 6 else 0)
        if form is None:
            raise ValueError(f"{name} is a file of numpy.save of an unknown version")
        begin = 8 + struct.calcsize(form)
        size = struct.unpack(form, data[8:begin])[0] if len(data) >= begin else _HEADER_BYTES + 1
        header = _NPY.fullmatch(data[begin : begin + size]) if size <= _HEADER_BYTES else None
        if header is None:
            raise ValueError(f"{name} is no file of numpy.save of plain numbers; nothing is unpickled")
        dtype, fortran, shape = (part.decode("latin-1") for part in header.groups())
        sizes = [int(size) for size in re.findall(r"\d+", shape)]
        fields = {"dtype": dtype, "shape": sizes, "data": data[begin + size :]}
        if fortran == "False":
            return view_array(fields, name, self._limits.message_bytes)
        return view_array(fields | {"shape": sizes[::-1]}, name, self._limits.message_bytes).T

    def _read_nd(self, value: Mapping[str, Any], name: str) -> np.ndarray:
        kind, dtype = (_as_text(value.get(key)) for key in ("kind", "type"))
        if kind not in (None, ""):
            raise ValueError(f"{name} is an array of kind {quote(kind)}; only plain numbers are read, never a pickle")
        fields = {"dtype": dtype, "shape": value.get("shape", []), "data": value.get("data")}
        return view_array(fields, name, self._limits.message_bytes)


def _as_text(value: Any) -> Any:
    return bytes(value).decode("latin-1") if isinstance(value, memoryview) else value


def _encode_npy(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no form for {type(value).__name__}")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _encode_nd(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no form for {type(value).__name__}")
    shape = list(value.shape)
    return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": shape, b"data": value.tobytes()}
