"""Measure the seconds to fingerprint a data set for the first and the second time, against hashing file by file.

    python benchmarks/fingerprint.py [--gigabytes 4] [--files 8] [--json]

The files are random, and in the page cache for both sides. The alternative is `hashlib.file_digest` in one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from anyvla.data import fingerprints


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def one_by_one(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANYVLA_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "data"
        root.mkdir()
        files = [root / f"{i}.bin" for i in range(options.files)]
        for path in files:
            with path.open("wb") as file:
                for _ in range(round(options.gigabytes * 1e9 / options.files / 2**24)):
                    file.write(os.urandom(2**24))
        time.sleep(3)  # the hash of a file that has just changed is not kept
        found = {
            "gigabytes": round(sum(p.stat().st_size for p in files) / 1e9, 2),
            "one_by_one_s": timed(lambda: one_by_one(files)),
            "first_s": timed(lambda: fingerprints.hash_files(root, files, "")),
            "second_s": timed(lambda: fingerprints.hash_files(root, files, "")),
        }
    print(json.dumps(found) if options.json else "\n".join(f"{k:13} {v:.4g}" for k, v in found.items()))


if __name__ == "__main__":
    main()
