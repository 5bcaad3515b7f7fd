"""Examine structures on the pretend GPU, in a process of its own: `python -m tests.gpu.examine NAME ...`."""

from __future__ import annotations

import json
import sys

from tests.gpu.pretend import install


def main() -> None:
    """Print the waits as JSON."""
    install()
    from tests.gpu import cases

    print(json.dumps(cases.examine_all(sys.argv[1:])))


if __name__ == "__main__":
    main()
