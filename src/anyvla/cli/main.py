"""The command `anyvla`. Each command is a module that is imported only when it is called, so that help is instant."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from pathlib import Path

from anyvla import __version__

COMMANDS = {
    "quickstart": ("anyvla.cli.quickstart", "collect demonstrations, train, evaluate, and write a report with videos"),
    "advise": ("anyvla.cli.advise", "a recipe for your robot, GPU and control rate, with evidence for each choice"),
    "plan": ("anyvla.cli.plan", "plan a training before it runs: memory, largest batch, samples, time"),
    "train": ("anyvla.cli.train", "train a policy from a recipe, or resume an interrupted training"),
    "eval": ("anyvla.cli.evaluate", "evaluate a policy on a benchmark: success rates with intervals, and videos"),
    "compare": ("anyvla.cli.compare", "compare policies on the same episodes, with exact tests and intervals"),
    "power": ("anyvla.cli.power", "the number of episodes needed to detect a difference in success"),
    "study": ("anyvla.cli.study.command", "run a grid of recipes, and answer its question with intervals"),
    "play": ("anyvla.cli.play", "open a page on which you instruct a simulated robot and watch it obey"),
    "serve": ("anyvla.cli.serve", "serve a policy to existing clients"),
    "bench": ("anyvla.cli.bench.command", "measure where the time of a chunk goes, and the control rate that follows"),
    "explain": ("anyvla.cli.explain", "token layout, attention mask and parameter counts of a recipe's model"),
    "report": ("anyvla.cli.report", "write the HTML report of a run or an evaluation"),
    "data": ("anyvla.cli.data.command", "collect, inspect, check and convert robot data; fit codecs"),
    "list": ("anyvla.cli.list.command", "backbones, histories, fusers, decoders, representations, benchmarks, ..."),
    "doctor": ("anyvla.cli.doctor.command", "check this machine, and print how to install missing packages"),
}

_ONE_PROCESS = ("quickstart", "eval", "study", "play", "serve")  # commands that several processes would do twice


def usage() -> str:
    """Return the text of `anyvla --help`."""
    rows = "\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: anyvla COMMAND [options]\n\n"
        "Turn any vision-language model into a vision-language-action model.\n\n"
        f"commands:\n{rows}\n\n"
        "For the options of a command: anyvla COMMAND --help. For the version: anyvla --version.\n"
    )


def write_utf_8() -> None:
    """Write stdout and stderr in UTF-8 in any locale; paths that are not valid UTF-8 keep their bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def restart_in_utf_8() -> None:
    """Run this command again in UTF-8 mode if the encoding of file names is another one, such as ASCII.

    Libraries and workers would otherwise decode the same path differently. The process keeps its id.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})


def main(argv: list[str] | None = None) -> int:
    """Run a command. Return the exit status, 0 only if it succeeded."""
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
    except OSError:  # libraries would fail with less helpful messages
        print(f"{name}: the current folder was removed: cd to another one", file=sys.stderr)
        return 1
    from anyvla.cli.stopping import end_process, stoppable
    from anyvla.interrupted import STOPPED

    try:
        with stoppable(name):
            from anyvla.cli.common import run_guarded  # imports rich, which help does not need

            status = run_guarded(lambda: _run(name, rest), name)
    except KeyboardInterrupt:  # outside of `run_guarded`
        status = STOPPED
    if argv is None and (name == "serve" or (name == "train" and _is_launched())):
        end_process(status)
    return status


def _is_launched() -> bool:
    """Return whether this is one of several processes, whose connections may be cut at the end."""
    from anyvla.config import ConfigError
    from anyvla.training.launchers import read_launch

    try:
        return read_launch() is not None
    except ConfigError:
        return False


def _run(name: str, arguments: list[str]) -> int:
    if name in _ONE_PROCESS:
        from anyvla.training.launchers import check_one_process

        check_one_process(name)
    return importlib.import_module(COMMANDS[name][0]).main(arguments)


if __name__ == "__main__":
    sys.exit(main())
