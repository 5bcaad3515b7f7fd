"""The command `anyvla`: one module per command, imported only when it is called, so that help is instant."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from pathlib import Path

from anyvla import __version__

COMMANDS = {
    "quickstart": (
        "anyvla.cli.quickstart",
        "demonstrations -> train -> evaluate -> a page with videos, on this machine",
    ),
    "train": ("anyvla.cli.train", "train a recipe, or go on where it was interrupted"),
    "eval": ("anyvla.cli.evaluate", "play a benchmark with a checkpoint; success rates with intervals"),
    "compare": ("anyvla.cli.compare", "policies beside each other on the same episodes, and what chance explains"),
    "power": ("anyvla.cli.power", "how many episodes it takes to see a difference"),
    "serve": ("anyvla.cli.serve", "a policy server that existing clients can talk to"),
    "explain": ("anyvla.cli.explain", "where the tokens of a recipe's model sit, who sees whom, parameters by part"),
    "report": ("anyvla.cli.report", "write the HTML page of a run folder"),
    "data": ("anyvla.cli.data.command", "robot data of any format: look at it, check, convert, collect; fit codecs"),
    "list": ("anyvla.cli.list.command", "backbones, structures, heads, benchmarks, formats, recipes"),
    "doctor": ("anyvla.cli.doctor.command", "what this machine can do, what is missing and how to get it"),
}


def usage() -> str:
    """The text of `anyvla --help`."""
    rows = "\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: anyvla COMMAND [options]\n\n"
        "Turn any vision-language model into a vision-language-action model.\n\n"
        f"commands:\n{rows}\n\n"
        "anyvla COMMAND --help tells more; anyvla --version prints the version.\n"
    )


def write_utf_8() -> None:
    """Have results and messages in UTF-8 whatever the locale; paths that are no text keep their bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def restart_in_utf_8() -> None:
    """Run this command again in UTF-8 mode if the locale gives files names in ASCII or the like.

    Libraries, and workers, would otherwise read the same path in other ways. The process keeps its number.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0 only when it did what was asked."""
    if argv is None:
        restart_in_utf_8()
    write_utf_8()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"anyvla {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
        print(f"anyvla: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        Path.cwd()
    except OSError:  # libraries would end the process in words of their own
        print(f"{name}: the current folder was removed: cd to another one", file=sys.stderr)
        return 1
    from anyvla.cli.stopping import STOPPED, stoppable

    try:
        with stoppable(name):
            from anyvla.cli.common import run_guarded  # rich and logging are not needed for help

            return run_guarded(lambda: importlib.import_module(COMMANDS[name][0]).main(rest), name)
    except KeyboardInterrupt:  # outside of what is run_guarded
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
