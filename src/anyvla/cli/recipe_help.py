"""List the keys of a recipe with types, ranges, defaults and comments, for `--help`.

The config classes are read as source code, because importing them imports torch, and help should not take seconds. The
comment beside or above a field describes it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from anyvla.registry import REGISTRIES

RECIPE = "anyvla.recipe:Recipe"
PACKAGES = {"anyvla", "anyvla_sim"}  # imports from other packages are not followed
WIDTH = 110


class KeyParser(argparse.ArgumentParser):
    """A parser whose help ends with the keys of `target`, a config class given as `"module:Class"`."""

    target, prefix, heading = "", "", ""

    def add_recipe(self) -> None:
        """Add the argument `recipe`, and list all keys of a recipe in the help."""
        self.add_argument("recipe", help="a YAML file, or the name of a bundled recipe (anyvla list recipes)")
        self.add_keys()

    def add_keys(self, target: str = RECIPE, prefix: str = "", heading: str = "Keys of the recipe") -> None:
        """List the keys of a config class in the help, below `heading`."""
        self.target, self.prefix, self.heading = target, prefix, heading

    def format_help(self) -> str:
        """Return argparse's help and the keys."""
        text = super().format_help()
        if not self.target:
            return text
        return "\n".join((text, f"{self.heading}; values are YAML:", *format_keys(self.target, self.prefix), ""))


@dataclass(frozen=True)
class Key:
    """A key that can be set."""

    name: str  # dotted
    type: str
    default: str | None  # as YAML; None: required
    bounds: str
    comment: str
    choices: tuple[str, ...] = ()  # members of a registry that have this key, as in "fuser gpt"


def format_keys(target: str, prefix: str = "") -> list[str]:
    """Return the lines of the help for a class given as `"module:Class"`."""
    lines: list[str] = []
    before: tuple[str, ...] = ()
    for key in list_keys(target, prefix):
        if key.choices != before:
            lines += [f"  with {key.choices[-1]}:"] if key.choices else []
            before = key.choices
        indent = " " * (4 if key.choices else 2)
        value = " (required)" if key.default is None else f" = {key.default}" if key.default else ""
        dashes = "" if "[]" in key.name else "--"  # keys of list items are written in the YAML of the list
        lines.append(f"{indent}{dashes}{key.name} {key.type}{value}{key.bounds and f'  [{key.bounds}]'}")
        lines += textwrap.wrap(key.comment, WIDTH, initial_indent=indent + "    ", subsequent_indent=indent + "    ")
    return lines


def list_keys(target: str, prefix: str = "") -> list[Key]:
    """Return the keys of a class given as `"module:Class"`, those of nested classes and registry members included."""
    module, _, name = target.partition(":")
    scope, node = _module(module).find(name)
    return list(_keys_of(scope, node, f"{prefix}." if prefix else ""))


@dataclass(frozen=True)
class _Field:
    scope: _Module
    node: ast.AnnAssign
    comment: str

    @property
    def name(self) -> str:
        assert isinstance(self.node.target, ast.Name)
        return self.node.target.id


class _Module(Mapping[str, Any]):
    """A module as source code. As a mapping, the values of its constants, for `eval`."""

    def __init__(self, name: str) -> None:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise LookupError(f"there is no source of the module {name}")
        text = Path(found.origin).read_text(encoding="utf-8")
        top = name.partition(".")[0]
        self.lines = text.splitlines()
        self.names: dict[str, ast.AST] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign):
                self._assign(node.targets[0], node.value)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES | {top}:
                self.imported |= {a.asname or a.name: (str(node.module), a.name) for a in node.names}

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, of in zip(target.elts, value.elts, strict=True):
                self._assign(one, of)

    def find(self, name: str) -> tuple[_Module, Any]:
        """Return the node of a dotted name, and its module. Raises LookupError for names of other packages."""
        first, _, rest = name.partition(".")
        scope: _Module = self
        if first in self.imported and first not in self.names:
            module, original = self.imported[first]
            scope, node = _module(module).find(original)
        else:
            node = self.names[first]
        for part in rest.split(".") if rest else ():
            scope, node = _member(scope, node, part)
        return scope, node

    def comment(self, node: ast.AnnAssign) -> str:
        """Return the comment beside a field, else the one above it."""
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        found = [line.partition("  # ")[2] for line in self.lines[first:last]]
        if not any(found):
            above = first
            while self.lines[above - 1].strip().startswith("#"):
                above -= 1
            found = [line.strip().removeprefix("#").strip() for line in self.lines[above:first]]
        return " ".join(filter(None, found)).replace("None:", "null:")  # as YAML writes it

    def value(self, node: ast.expr) -> Any:
        """Evaluate an expression of literals and constants."""
        return eval(compile(ast.Expression(node), "config", "eval"), {"__builtins__": {}}, self)

    def __getitem__(self, name: str) -> Any:
        scope, node = self.find(name)
        return scope.value(node)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)


def _bases(scope: _Module, node: ast.ClassDef) -> list[tuple[_Module, ast.ClassDef]]:
    """Return the class and its bases as far as their source is in anyvla, in the order of lookup."""
    found = [(scope, node)]
    for base in node.bases:
        try:
            owner, cls = scope.find(ast.unparse(base))
        except LookupError:
            continue
        found += _bases(owner, cls) if isinstance(cls, ast.ClassDef) else []
    return found


def _member(scope: _Module, node: Any, name: str) -> tuple[_Module, Any]:
    """Return the class called `name` in the body of a class or of its bases, by `class` or by assignment."""
    for owner, cls in _bases(scope, node):
        for inner in cls.body:
            if isinstance(inner, ast.ClassDef) and inner.name == name:
                return owner, inner
            if isinstance(inner, ast.Assign | ast.AnnAssign) and inner.value is not None:
                target = inner.target if isinstance(inner, ast.AnnAssign) else inner.targets[0]
                if ast.unparse(target) == name:
                    return owner.find(ast.unparse(inner.value))
    raise LookupError(f"{node.name} has no {name}")


def _fields(scope: _Module, node: ast.ClassDef) -> list[_Field]:
    fields: dict[str, _Field] = {}
    for owner, cls in reversed(_bases(scope, node)):
        for inner in cls.body:
            if isinstance(inner, ast.AnnAssign):
                field = _Field(owner, inner, owner.comment(inner))
                fields[field.name] = field
    return list(fields.values())


def _first_sentence(node: ast.ClassDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."


def _is_config(node: Any) -> bool:
    return isinstance(node, ast.ClassDef) and any("STRICT" in ast.unparse(d) for d in node.decorator_list)


def _keys_of(scope: _Module, node: ast.ClassDef, prefix: str) -> Iterator[Key]:
    for field in _fields(scope, node):
        name = prefix + field.name
        annotation = _Annotation(field.scope, field.node.annotation)
        default, bounds = _default_of(field, annotation)
        comment = field.comment or next((_first_sentence(cls) for _, cls in annotation.sections), "")
        yield Key(name, annotation.text, default, bounds or annotation.bounds, comment)
        if annotation.registry:
            yield from _member_keys(annotation.registry, name)
        for owner, cls in annotation.sections:
            below = f"{name}[]." if annotation.many else f"{name}."
            yield from _keys_of(owner, cls, below)


def _member_keys(registry: str, name: str) -> Iterator[Key]:
    """Yield the options of the members of a registry, grouped by the members that share them."""
    shared: dict[Key, list[str]] = {}
    for member in REGISTRIES[registry]:
        target = REGISTRIES[registry].target(member)
        try:
            found = list_keys(f"{target}.Config", name)
        except Exception:  # the source of a third party may be anything, and must not break the help
            continue
        for key in found:
            shared.setdefault(key, []).append(member)
    for members in dict.fromkeys(map(tuple, shared.values())):
        choice = f"--{name} {' | '.join(members)}"
        for key in [key for key, owners in shared.items() if tuple(owners) == members]:
            yield replace(key, choices=(choice, *key.choices))


def _default_of(field: _Field, annotation: _Annotation) -> tuple[str | None, str]:
    """Return the default as YAML and the bounds of a field. A section has no default of its own unless it is null."""
    node: Any = field.node.value
    bounds = ""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field":
        bounds = _bounds(field.scope, node)
        given = {k.arg: k.value for k in node.keywords}
        if "default_factory" in given:
            return ("{}" if ast.unparse(given["default_factory"]) == "dict" else ""), bounds
        node = given.get("default")
    if node is None:
        return None, bounds
    if isinstance(node, ast.Call):
        name = next((a.value for a in node.args[1:2] if isinstance(a, ast.Constant)), "")  # of a Part
        return str(name), bounds
    value = field.scope.value(node)
    return _as_yaml(list(value) if isinstance(value, tuple) else value), bounds


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _bounds(scope: _Module, call: ast.Call) -> str:
    known = {k.arg: scope.value(k.value) for k in call.keywords if k.arg in ("ge", "gt", "le", "lt")}
    number = {key: f"{value:g}".replace("e+0", "e").replace("e+", "e") for key, value in known.items()}
    low = number["ge"] if "ge" in number else f"> {number['gt']}" if "gt" in number else ""
    high = number["le"] if "le" in number else f"< {number['lt']}" if "lt" in number else ""
    return f"{low} to {high}" if low and high else low or high


class _Annotation:
    """The type of a field, as text, with the classes and the registry that it names."""

    def __init__(self, scope: _Module, node: ast.expr) -> None:
        self.registry, self.bounds, self.many = "", "", False
        self.sections: list[tuple[_Module, ast.ClassDef]] = []
        self.text = self._read(scope, node)

    def _read(self, scope: _Module, node: Any) -> str:
        if isinstance(node, ast.BinOp):
            sides = [self._read(scope, side) for side in (node.left, node.right)]
            return " | ".join(filter(None, sides))
        if isinstance(node, ast.Constant):
            return "null" if node.value is None else str(node.value)
        if isinstance(node, ast.Subscript):
            return self._read_subscript(scope, node)
        name = ast.unparse(node)
        try:
            owner, found = scope.find(name)
        except LookupError:
            return {"Path": "path", "Any": "any"}.get(name, name)
        if isinstance(found, ast.ClassDef):
            if _is_config(found):
                self.sections.append((owner, found))
                return "keys"
            return found.name
        return self._read(owner, found)

    def _read_subscript(self, scope: _Module, node: ast.Subscript) -> str:
        kind = ast.unparse(node.value)
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if kind == "Literal":
            return " | ".join(str(scope.value(n)) or "''" for n in inner)
        if kind == "Annotated":
            names = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in REGISTRIES]
            if names:  # a Part
                self.registry = str(names[0])
                return " | ".join(REGISTRIES[self.registry])
            for call in inner[1:]:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "Field":
                    self.bounds = _bounds(scope, call)
            return self._read(scope, inner[0])
        if kind == "tuple":
            self.many = self.many or isinstance(inner[-1], ast.Constant)
            items = ["..." if isinstance(n, ast.Constant) else self._read(scope, n) for n in inner]
            return f"[{', '.join(items)}]"
        if kind in ("dict", "Mapping"):
            return f"{{name: {self._read(scope, inner[1])}}}"
        return ast.unparse(node)
