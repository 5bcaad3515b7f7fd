"""`anyvla data VERB`: collect, inspect, check and convert robot data."""

from __future__ import annotations

from anyvla.cli.verbs import run_verb

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


def main(argv: list[str]) -> int:
    """Run a verb."""
    return run_verb("data", VERBS, argv)
