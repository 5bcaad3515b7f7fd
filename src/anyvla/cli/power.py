"""`anyvla power --difference 5`: the number of episodes needed to detect a difference in success."""

from __future__ import annotations

import argparse
import json


def main(argv: list[str]) -> int:
    """Print the numbers of episodes."""
    parser = argparse.ArgumentParser(prog="anyvla power", description=__doc__)
    parser.add_argument("--difference", type=float, required=True, help="difference to detect, in percentage points")
    parser.add_argument("--rate", type=float, default=80, help="success of the first policy in percent (default: 80)")
    parser.add_argument("--power", type=float, default=0.8, help="probability of detecting it (default: 0.8)")
    parser.add_argument("--alpha", type=float, default=0.05, help="probability of a false detection (default: 0.05)")
    parser.add_argument(
        "--correlation", type=float, default=0.5, help="of both policies' successes per start state (default: 0.5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    from anyvla.evaluation.power import paired_sample_size, unpaired_sample_size

    difference, rate = options.difference / 100, options.rate / 100
    alone = unpaired_sample_size(difference, rate, options.power, options.alpha)
    shared = paired_sample_size(difference, rate, options.correlation, options.power, options.alpha)
    if options.json:
        print(json.dumps({"paired": shared, "unpaired": alone}))
        return 0
    print(
        f"To tell {options.rate:g} % from {options.rate + options.difference:g} %: {shared} episodes of each policy if "
        f"both play the same start states (correlation {options.correlation:g}), {alone} if each plays its own"
    )
    return 0
