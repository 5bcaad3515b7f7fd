"""Runs the opcodes of a pickle that plain data needs.

Python's own unpickler can build any object: it sets attributes of anything on its stack, reserves memory that a file
only promises, and accepts indices of any size. This one implements the opcodes that numpy and Python write for numbers,
text, lists, tuples, dicts, sets and arrays (protocols 0 to 5, pickletools.opcodes) and refuses the others. It imports
nothing and allocates nothing before the bytes are there.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

_DIGITS = 400  # of a number written as text; Python parses long ones in quadratic time
_KEY_BITS = 60  # longer integers can be chosen to have equal hashes


class RefusedPickleError(ValueError):
    """A pickle asks for more than plain data needs. The message continues "a pickle that"."""


class StatefulStandIn(ABC):
    """A result of an allowed function that accepts a state (opcode BUILD)."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take the state. Raises ValueError if it does not fit."""


@dataclass(frozen=True)
class Function:
    """An allowed function on the stack. It is immutable, and it is not data."""

    name: str
    target: Callable[..., Any]


FunctionTable = Mapping[tuple[str, str], Callable[..., Any]]


def run_opcodes(data: bytes, table: FunctionTable) -> Any:
    """Return the object that the opcodes describe. `table` holds the functions that the pickle may call.

    Raises RefusedPickleError for other functions and for opcodes that plain data does not need; ValueError,
    TypeError, KeyError, IndexError or struct.error for damage.
    """
    machine = _PickleMachine(data, table)
    while (code := machine.take(1)) != pickle.STOP:
        operation = _PickleMachine.OPERATIONS.get(code)
        if operation is None:
            raise RefusedPickleError(f"uses the opcode {code!r}, which plain data does not need")
        operation(machine)
    return machine.pop()


def check_key(value: Any) -> Any:
    """Return a key of a dict or a member of a set. Only scalars are allowed, because they are hashed quickly."""
    if not (value is None or isinstance(value, str | bytes | int | float | np.generic)):
        raise RefusedPickleError(f"has a {type(value).__name__} as a key of a dict or a member of a set")
    if isinstance(value, int) and value.bit_length() > _KEY_BITS:
        raise RefusedPickleError(f"has a number of {value.bit_length()} bits as a key of a dict or a member of a set")
    return value


class _PickleMachine:
    OPERATIONS: ClassVar[dict[bytes, Callable[[_PickleMachine], Any]]]

    def __init__(self, data: bytes, table: FunctionTable) -> None:
        self.data, self.at, self.table = data, 0, table
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"it promises {size} bytes where {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise ValueError("a line has no end")
        return self.take(end + 1 - self.at)[:-1]

    def digits(self) -> bytes:
        line = self.line()
        if len(line) > _DIGITS:
            raise RefusedPickleError(f"holds a number of {len(line)} digits")
        return line

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("an opcode needs a value that is not there")
        return self.stack.pop()

    def peek(self) -> Any:
        self.stack.append(self.pop())
        return self.stack[-1]

    def top(self, kind: type) -> Any:
        value = self.peek()
        if type(value) is not kind:
            raise ValueError(f"an opcode needs a {kind.__name__}, found a {type(value).__name__}")
        return value

    def marked(self) -> list[Any]:
        if not self.marks:
            raise ValueError("an opcode needs a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def name(self, module: str, name: str) -> None:
        if (module, name) not in self.table:
            raise RefusedPickleError(f"wants {module}.{name}")
        self.push(Function(name, self.table[module, name]))

    def memoize(self, index: int) -> None:
        self.memo[index] = self.peek()

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict)
        if len(values) % 2:
            raise ValueError("a key of a dict has no value")
        for i in range(0, len(values), 2):
            target[check_key(values[i])] = values[i + 1]

    def integer(self) -> None:
        line = self.digits()
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def long(self, size: int) -> None:
        if not 0 <= size < 256:
            raise RefusedPickleError(f"holds a number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def text(self, data: bytes, encoding: str = "utf-8") -> None:
        text = data.decode(encoding)
        text.encode("utf-8")  # raises for half of a surrogate pair
        self.push(text)

    def quoted(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise ValueError("a string has no quotes")
        self.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    def old_text(self, size: int) -> None:
        if size < 0:
            raise ValueError("a string has a negative length")
        self.push(self.take(size).decode("latin1"))  # the encoding that numpy prescribes for arrays of Python 2

    def named(self) -> None:
        module, name = self.line().decode("utf-8"), self.line().decode("utf-8")
        self.name(module, name)

    def named_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name is not text")
        self.name(module, name)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if type(function) is not Function or type(args) is not tuple:
            raise ValueError("a value that is no function is called")
        self.push(function.target(*args))

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if not isinstance(target, StatefulStandIn):
            raise RefusedPickleError(f"sets the state of a {type(target).__name__}")
        target.build(state)
        self.push(target)

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def dict_of(self) -> None:
        values = self.marked()
        self.push({})
        self.set_items(values)


_PickleMachine.OPERATIONS = {
    pickle.PROTO: lambda m: None if m.take(1)[0] <= 5 else m.long(-1),
    pickle.FRAME: lambda m: m.number("<Q"),  # a hint for reading from a stream
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.POP: lambda m: m.marks.pop() if m.marks and m.marks[-1] == len(m.stack) else m.pop(),
    pickle.POP_MARK: lambda m: m.marked(),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: _PickleMachine.integer,
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG: lambda m: m.push(int(m.digits().rstrip(b"L"))),
    pickle.LONG1: lambda m: m.long(m.number("<B")),
    pickle.LONG4: lambda m: m.long(m.number("<i")),
    pickle.FLOAT: lambda m: m.push(float(m.digits())),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.STRING: _PickleMachine.quoted,
    pickle.BINSTRING: lambda m: m.old_text(m.number("<i")),
    pickle.SHORT_BINSTRING: lambda m: m.old_text(m.number("<B")),
    pickle.BINBYTES: lambda m: m.push(m.take(m.number("<I"))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.number("<B"))),
    pickle.BINBYTES8: lambda m: m.push(m.take(m.number("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.push(bytearray(m.take(m.number("<Q")))),
    pickle.UNICODE: lambda m: m.text(m.line(), "raw-unicode-escape"),
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.take(m.number("<B"))),
    pickle.BINUNICODE: lambda m: m.text(m.take(m.number("<I"))),
    pickle.BINUNICODE8: lambda m: m.text(m.take(m.number("<Q"))),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.LIST: lambda m: m.push(m.marked()),
    pickle.TUPLE: lambda m: m.push(tuple(m.marked())),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.DICT: _PickleMachine.dict_of,
    pickle.FROZENSET: lambda m: m.push(frozenset(map(check_key, m.marked()))),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.marked()),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.marked()),
    pickle.ADDITEMS: lambda m: (lambda values: m.top(set).update(map(check_key, values)))(m.marked()),
    pickle.GET: lambda m: m.push(m.memo[int(m.digits())]),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.PUT: lambda m: m.memoize(int(m.digits())),
    pickle.BINPUT: lambda m: m.memoize(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.memoize(len(m.memo)),
    pickle.GLOBAL: _PickleMachine.named,
    pickle.INST: _PickleMachine.named,
    pickle.STACK_GLOBAL: _PickleMachine.named_on_stack,
    pickle.REDUCE: _PickleMachine.call,
    pickle.BUILD: _PickleMachine.build,
}
