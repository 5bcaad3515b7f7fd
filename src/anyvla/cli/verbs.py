"""Commands with verbs, such as `anyvla data collect`. Each verb is a module, imported when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from anyvla.cli.recipe_help import KeyParser
from anyvla.registry import suggest

_WITH_KEYS = ("recipe", "file")  # arguments of verbs that read keys of a document, as --collect.demonstrations 100


def usage(command: str, verbs: Mapping[str, str]) -> str:
    """Return the text of `anyvla COMMAND --help`."""
    width = max(map(len, verbs)) + 2
    rows = "\n".join(f"  {name:<{width}}{text}" for name, text in verbs.items())
    head = f"usage: anyvla {command} VERB [options]"
    return f"{head}\n\n{rows}\n\nFor the options of a verb: anyvla {command} VERB --help\n"


def run_verb(command: str, verbs: Mapping[str, str], argv: list[str]) -> int:
    """Run the verb that the first argument names: a module of `anyvla.cli.COMMAND`. Return the exit status.

    Keys of a document go to the verbs that read one, as `options.overrides`.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(command, verbs), end="")
        return 0 if argv else 2
    verb, *rest = argv
    parser = KeyParser(prog=f"anyvla {command} {verb}", description=verbs.get(verb))
    if verb not in verbs:
        parser.error(f"there is no verb {verb!r}: {suggest(verb, list(verbs))}")
    module = importlib.import_module(f"anyvla.cli.{command}.{verb.replace('-', '_')}")
    module.add_arguments(parser)
    options, overrides = parser.parse_known_args(rest)
    if any(hasattr(options, name) for name in _WITH_KEYS):
        options.overrides = overrides
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    status: int = module.run(options)
    return status
