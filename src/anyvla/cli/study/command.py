"""`anyvla study VERB`: run a grid of recipes, and answer its question. Each verb is a module, imported when called."""

from __future__ import annotations

import importlib

from anyvla.cli.recipe_help import KeyParser
from anyvla.registry import suggest

VERBS = {
    "run": "train and evaluate the missing cells of a study, here or on a cluster; --dry-run shows what there is to do",
    "report": "write the page of a study: answer, figures, tables and recipes; --json prints the analysis",
    "job": "run one job in the folder of a study, as executors do",
}


def usage() -> str:
    """Return the text of `anyvla study --help`."""
    rows = "\n".join(f"  {name:<8}{text}" for name, text in VERBS.items())
    return f"usage: anyvla study VERB [options]\n\n{rows}\n\nFor the options of a verb: anyvla study VERB --help\n"


def main(argv: list[str]) -> int:
    """Run a verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if argv else 2
    verb, *rest = argv
    parser = KeyParser(prog=f"anyvla study {verb}", description=VERBS.get(verb))
    if verb not in VERBS:
        parser.error(f"there is no verb {verb!r}: {suggest(verb, list(VERBS))}")
    module = importlib.import_module(f"anyvla.cli.study.{verb}")
    module.add_arguments(parser)
    options, overrides = parser.parse_known_args(rest)
    if hasattr(options, "file"):
        options.overrides = overrides
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    return module.run(options)
