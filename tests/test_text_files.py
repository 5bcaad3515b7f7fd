"""Text files and pipes are UTF-8 whatever the locale: every call in the sources says so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT_MODE = re.compile(r"[rwax]\+?")


def unspecified(source: str) -> list[int]:
    """The lines of calls that read or write text in the encoding of the locale."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(k.arg == "encoding" for k in call.keywords):
            continue
        called = call.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        first = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        mode = next(
            (k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)), first
        )
        keywords = {k.arg for k in call.keywords}
        if (
            (name == "read_text" and not call.args)
            or (name == "write_text" and len(call.args) < 2)
            or (isinstance(called, ast.Name) and name == "open")
            or (name in ("open", "fdopen") and isinstance(mode, str) and TEXT_MODE.fullmatch(mode))
            or (name in ("run", "Popen", "check_output") and keywords & {"text", "universal_newlines"})
        ):
            found.append(call.lineno)
    return found


@pytest.mark.parametrize("top", ["src", "packages", "benchmarks", "examples", "tools"])
def test_every_text_file_is_utf_8(top: str) -> None:
    files = sorted((ROOT / top).rglob("*.py"))
    assert files
    assert [f"{p}:{n}" for p in files for n in unspecified(p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "call",
    [
        "p.read_text()",
        "p.write_text(x)",
        "p.open('a')",
        "open(p)",
        "subprocess.run(c, text=True)",
        "f(mode='w').open('r+')",
    ],
)
def test_a_call_without_an_encoding_is_found(call: str) -> None:
    assert unspecified(call) == [1]
