"""`anyvla data VERB`: robot data, made, looked at, checked and rewritten. One module per verb, imported when called."""

from __future__ import annotations

import argparse
import importlib

from anyvla.registry import nearest

VERBS = {
    "info": "what a data set holds: format, robot, episodes, cameras, instructions, statistics, and what is wrong",
    "view": "an episode as a page: video beside action and proprio plots; or as a rerun recording",
    "check": "find NaN, jumps, idle ends, broken frames, duplicates ...; --fix writes a clean copy",
    "statistics": "ranges, means and quantiles of every dim, and what normalization does with them",
    "convert": "rewrite a data set of any format as LeRobot v3: parallel, resumable, verified",
    "collect": "demonstrations by the benchmark's scripted experts, as a LeRobot v3 data set",
    "fit-codec": "fit the codec of a recipe's representation to its data; how far decoded tokens are from the actions",
    "vqa": "questions and answers about simulator frames, for vision-language pre-training",
}


def usage() -> str:
    """The text of `anyvla data --help`."""
    rows = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
    return f"usage: anyvla data VERB [options]\n\n{rows}\n\nanyvla data VERB --help tells more.\n"


def main(argv: list[str]) -> int:
    """Parse and run. Keys of a recipe (`--collect.demonstrations 100`) go to the verbs that read one."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if argv else 2
    verb, *rest = argv
    parser = argparse.ArgumentParser(prog=f"anyvla data {verb}", description=VERBS.get(verb))
    if verb not in VERBS:
        parser.error(f"there is no verb {verb!r}: {nearest(verb, list(VERBS))}")
    module = importlib.import_module(f"anyvla.cli.data.{verb.replace('-', '_')}")
    module.add_arguments(parser)
    options, overrides = parser.parse_known_args(rest)
    if hasattr(options, "recipe"):
        options.overrides = overrides
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    return module.run(options)
