"""`anyvla study VERB`: run a grid of recipes, and answer its question."""

from __future__ import annotations

from anyvla.cli.verbs import run_verb

VERBS = {
    "run": "train and evaluate the missing cells of a study, here or on a cluster; --dry-run shows what there is to do",
    "report": "write the page of a study: answer, figures, tables and recipes; --json prints the analysis",
    "job": "run one job in the folder of a study, as executors do",
}


def main(argv: list[str]) -> int:
    """Run a verb."""
    return run_verb("study", VERBS, argv)
