"""Count words of a private dialect in docstrings, comments and pages, per 10,000 words.

    python tools/prose.py                 # src, packages, tests, tools, docs: one line each
    python tools/prose.py src/anyvla/data # these folders or files
    python tools/prose.py --show src      # the lines that contain such a word
    python tools/prose.py --sample 60 src # random docstrings, to read aloud

The counts show which files to read again. They are not a goal: a sentence without these words can be hard to read too.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "what": r"\bwhat\b",
    "stand(s)": r"\bstands?\b",
    "lie(s)": r"\blies?\b",
    "told": r"\btold\b",
    "those of/that": r"\bthose (?:of|that)\b",
}
LIMITS = {"what": 25, "stand(s)": 2, "lie(s)": 2, "told": 2, "those of/that": 5}  # per 10,000 words
FOLDERS = ["src", "packages", "tests", "tools", "benchmarks", "docs", "README.md", "CONTRIBUTING.md"]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring of a Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page, or the docstrings and comments of a Python file, each with its line number."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), start=1)
        return
    for first, docstring in docstrings(path):
        yield from enumerate(docstring.splitlines(), start=first)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def files(places: list[str]) -> Iterator[Path]:
    """Yield the Python files and pages below these folders, without fixtures."""
    for place in map(Path, places):
        found = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (p for p in found if p.suffix in (".py", ".md") and not {"fixtures", "stand_ins"} & set(p.parts))


def main() -> int:
    """Print the counts; return 1 if one is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", default=FOLDERS)
    parser.add_argument("--show", action="store_true", help="print the lines that contain such a word")
    parser.add_argument("--sample", type=int, metavar="N", help="print N random docstrings instead")
    options = parser.parse_args()
    if options.sample:
        found = [
            (path, line, text)
            for path in files(options.places)
            if path.suffix == ".py"
            for line, text in docstrings(path)
        ]
        for path, line, text in random.sample(found, min(options.sample, len(found))):
            print(f"\n{path}:{line}\n{text}")
        return 0
    above = False
    for place in options.places:
        counts, total = dict.fromkeys(WORDS, 0), 0
        for path in files([place]):
            for number, line in prose(path):
                total += len(re.findall(r"[A-Za-z']+", line))
                hits = {name: len(re.findall(pattern, line, re.I)) for name, pattern in WORDS.items()}
                for name, count in hits.items():
                    counts[name] += count
                if options.show and any(hits.values()):
                    print(f"{path}:{number}: {line.strip()}")
        shares = {name: 10_000 * count / max(1, total) for name, count in counts.items()}
        above |= any(share > LIMITS[name] for name, share in shares.items())
        print(f"{place}: {total} words; " + ", ".join(f"{name} {share:.1f}" for name, share in shares.items()))
    return 1 if above else 0


if __name__ == "__main__":
    raise SystemExit(main())
