"""Put silent bugs into copies of this tree, one at a time, and print those that the tests do not notice.

    python tools/mutate.py                        # every table in tools/mutations
    python tools/mutate.py training serving       # the tables of two layers
    python tools/mutate.py training --only decay  # the mutations of a table whose name contains "decay"
    python tools/mutate.py --check                # only whether the tables still fit the code

CONTRIBUTING.md explains the tables. The exit status is 1 if fewer than `--least` percent of the mutations are noticed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("src", "packages/anyvla-sim/src")
# Imported once, before the processes of the tests are forked. None of them is part of anyvla.
SHARED = ["pytest", "hypothesis", "torch", "transformers.modeling_utils", "scipy.stats", "pyarrow.parquet", "av"]


@dataclass(frozen=True)
class Mutation:
    """One silent bug: `old`, which occurs once in `file`, becomes `new`, and one of `tests` should fail."""

    layer: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, tree: Path) -> str:
        """Return the mutated text of the file. Raise ValueError if the entry does not fit the code in `tree`."""
        path = tree / self.file
        if not path.is_file():
            raise ValueError(f"{self.label}: there is no file {self.file}")
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.label}: the old text occurs {count} times in {self.file}, not once")
        if self.new == self.old:
            raise ValueError(f"{self.label}: the new text is the old text")
        for test in self.tests:
            if not (tree / test.split("::")[0]).exists():
                raise ValueError(f"{self.label}: there is no test {test}")
        mutated = text.replace(self.old, self.new)
        if path.suffix == ".py":
            compile(mutated, self.file, "exec")
        return mutated

    @property
    def label(self) -> str:
        return f"{self.layer}: {self.name}"


def read_table(path: Path) -> list[Mutation]:
    """Return the mutations of one table. Raise ValueError if an entry lacks a key or two have one name."""
    table: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    usual = table.get("tests", [])
    mutations = []
    for entry in table["mutations"]:
        missing = {"name", "file", "old", "new"} - set(entry)
        if missing:
            raise ValueError(f"{path.name}: the entry {entry.get('name')!r} lacks {', '.join(sorted(missing))}")
        tests = tuple(entry.get("tests", usual))
        if not tests:
            raise ValueError(f"{path.name}: the entry {entry['name']!r} names no tests")
        mutations.append(Mutation(path.stem, entry["name"], entry["file"], entry["old"], entry["new"], tests))
    if len({m.name for m in mutations}) < len(mutations):
        raise ValueError(f"{path.name}: two entries have the same name")
    return mutations


def copy_tree(root: Path, to: Path) -> Path:
    """Copy the tracked and untracked files, and compile them, so that no process writes bytecode of a mutation."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", *packages_in(to)], check=True)
    return to


def packages_in(tree: Path) -> list[str]:
    """Return the folders of `tree` that Python imports packages from."""
    return [str(tree / package) for package in PACKAGES if (tree / package).is_dir()]


@contextmanager
def mutated(tree: Path, mutation: Mutation) -> Iterator[None]:
    """Write the mutation into `tree`, and remove it at the end of the block."""
    path = tree / mutation.file
    original, times = path.read_bytes(), path.stat()
    path.write_text(mutation.apply(tree), encoding="utf-8")
    os.utime(path, (0, 0))  # bytecode is up to date if size and seconds are equal: make the seconds differ
    try:
        yield
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _test(tree: str, tests: tuple[str, ...], log: str) -> None:
    """Run pytest in a forked process, on the packages in `tree`."""
    os.setsid()  # a separate process group, so that processes started by the tests end with it
    os.chdir(tree)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    packages = packages_in(Path(tree))
    os.environ |= {"PYTHONPATH": os.pathsep.join(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:0] = packages
    sys.argv = ["pytest"]
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-n0", *tests])))


def run_tests(tree: Path, tests: tuple[str, ...], log: Path, limit: float) -> int | None:
    """Return pytest's exit status, or None if the tests took more than `limit` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SHARED)
    process = context.Process(target=_test, args=(str(tree), tests, str(log)))
    process.start()
    process.join(limit)
    status = process.exitcode
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return status


def measure(root: Path, mutations: list[Mutation], jobs: int, limit: float) -> list[Mutation]:
    """Run the tests of each mutation; print the outcomes; return the mutations that survived.

    Raises ValueError if tests fail, or if there are none, without any mutation.
    """
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(jobs) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for index in range(jobs):
            trees.put(copy_tree(root, Path(folder) / f"tree{index}"))

        def unmutated(tests: tuple[str, ...]) -> str | None:
            tree = trees.get()
            log = tree.with_suffix(".log")
            status = run_tests(tree, tests, log, limit)
            text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            trees.put(tree)
            return None if status == 0 else f"without a mutation, {' '.join(tests)} ended with {status}:\n{text}"

        def survived(mutation: Mutation) -> bool:
            tree = trees.get()
            start = time.monotonic()
            with mutated(tree, mutation):
                status = run_tests(tree, mutation.tests, tree.with_suffix(".log"), limit)
            trees.put(tree)
            noticed = {0: "SURVIVED", None: "hung"}.get(status, "noticed")
            print(f"{noticed:9} {time.monotonic() - start:5.0f} s  {mutation.label}", flush=True)
            return status == 0

        if faults := [f for f in pool.map(unmutated, sorted({m.tests for m in mutations})) if f]:
            raise ValueError("\n".join(faults))
        return [m for m, alive in zip(mutations, pool.map(survived, mutations), strict=True) if alive]


def print_summary(mutations: list[Mutation], survivors: list[Mutation]) -> float:
    """Print noticed mutations by layer, and the survivors. Return the percentage that was noticed."""
    print()
    for layer in sorted({m.layer for m in mutations}):
        every = [m for m in mutations if m.layer == layer]
        print(f"{layer:14} {len(every) - sum(m in survivors for m in every):3} of {len(every):3} noticed")
    rate = 100 * (1 - len(survivors) / len(mutations))
    print(f"{'all':14} {len(mutations) - len(survivors):3} of {len(mutations):3} noticed, {rate:.1f} %")
    for mutation in survivors:
        print(f"survived: {mutation.label}   ({mutation.file})")
    return rate


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="names of tables in tools/mutations; all of them by default")
    parser.add_argument("--only", default="", help="mutations whose name contains this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutations at the same time")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one mutation")
    parser.add_argument("--least", type=float, default=95, help="percentage that must be noticed")
    parser.add_argument("--check", action="store_true", help="only check that every entry fits the code")
    args = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    tables = root / "tools" / "mutations"
    paths = [tables / f"{name}.yaml" for name in args.tables] or sorted(tables.glob("*.yaml"))
    try:
        mutations = [m for path in paths for m in read_table(path) if args.only in m.name]
        for mutation in mutations:
            mutation.apply(root)
        if not mutations:
            raise ValueError("no mutation has such a name")
        if args.check:
            print(f"{len(mutations)} mutations fit the code")
            return 0
        return int(print_summary(mutations, measure(root, mutations, args.jobs, args.limit)) < args.least)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
