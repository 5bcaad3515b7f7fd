"""`anyvla data VERB`: collect, inspect, check and convert robot data. Each verb is a module, imported when called."""

from __future__ import annotations

import importlib

from anyvla.cli.recipe_help import KeyParser
from anyvla.registry import suggest

VERBS = {
    "info": "format, robot, episodes, cameras, instructions, statistics and faults of a data set",
    "view": "an episode as a page with video and plots of action and proprio, or as a rerun recording",
    "check": "find NaN, jumps, idle ends, broken frames, duplicates ...; --fix writes a clean copy",
    "statistics": "ranges, means and quantiles of every dim, and how normalization uses them",
    "convert": "rewrite a data set of any format as LeRobot v3: parallel, resumable, verified",
    "collect": "demonstrations by the benchmark's scripted experts, as a LeRobot v3 data set",
    "fit-codec": "fit the codec of a recipe's representation to its data, and report the round-trip error",
    "vqa": "questions and answers about simulator frames, for vision-language pre-training",
}


def usage() -> str:
    """Return the text of `anyvla data --help`."""
    rows = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
    return f"usage: anyvla data VERB [options]\n\n{rows}\n\nFor the options of a verb: anyvla data VERB --help\n"


def main(argv: list[str]) -> int:
    """Run a verb. Keys of a recipe (`--collect.demonstrations 100`) go to the verbs that read a recipe."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if argv else 2
    verb, *rest = argv
    parser = KeyParser(prog=f"anyvla data {verb}", description=VERBS.get(verb))
    if verb not in VERBS:
        parser.error(f"there is no verb {verb!r}: {suggest(verb, list(VERBS))}")
    module = importlib.import_module(f"anyvla.cli.data.{verb.replace('-', '_')}")
    module.add_arguments(parser)
    options, overrides = parser.parse_known_args(rest)
    if hasattr(options, "recipe"):
        options.overrides = overrides
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    return module.run(options)
