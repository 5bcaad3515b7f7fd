"""Print the report of `anyvla doctor policy`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from anyvla.cli.console import Console
from anyvla.doctor.diagnosis import Diagnosis
from anyvla.doctor.examination import EpisodeDifference, Examination
from anyvla.doctor.recorded import GroupAgreement
from anyvla.doctor.report import Report

_MOST_NAMED = 6  # faults in a list


def print_report(report: Report) -> None:
    """Print the extent of the comparison, the verdict, the fault, and how the answers follow the recorded actions."""
    found = report.examination
    assert found is not None
    out = Console()
    calls = sum(e.calls for e in found.episodes)
    kind = "chunks" if found.whole_chunks else "actions"
    path = f"{report.client} with {report.server}" if report.client else f"{report.protocol} at {report.server}"
    out.print(f"{len(found.episodes)} episodes, {calls} {kind} served by {path}", soft_wrap=True)
    if found.in_process is not None:
        _print_check(out, found.in_process <= found.tolerance, _describe_in_process(found))
    _print_check(out, found.equal, _describe_served(found))
    if not found.equal:
        out.print(_make_episode_table(found.episodes))
    if found.diagnosis is not None:
        for line, style in _describe_diagnosis(found.diagnosis):
            out.print(line, style=style, soft_wrap=True)
    if found.unnoticed:
        out.print(_describe_unnoticed(found.unnoticed, found.tried), style="yellow", soft_wrap=True)
    out.print()
    out.print("Served against recorded actions:")
    out.print(_make_agreement_table(found.agreement))
    for group in found.agreement:
        for remark in group.remarks:
            out.print(f"{group.group}: {remark}", style="yellow", soft_wrap=True)


def _print_check(out: Console, passed: bool, text: str) -> None:
    mark = Text("equal  " if passed else "DIFFERS", "green" if passed else "bold red")
    out.print(mark, text, soft_wrap=True)


def _describe_in_process(found: Examination) -> str:
    return (
        f"in this process: a session against the windows of training, largest difference {found.in_process:.2g} of a "
        f"dim's range (tolerance {found.tolerance:g})"
    )


def _describe_served(found: Examination) -> str:
    largest = max(e.largest for e in found.episodes)
    noise = f"; seeds of the noise: {found.seeds}" if found.seeds else ""
    if found.noise is not None and not found.equal:
        noise += f" (two seeds are {found.noise:.2g} apart: a server with seeds of its own differs as much)"
    other = "training" if found.in_process is not None else "a session in this process"
    text = f"served: against {other}, largest difference {largest:.2g}{noise}"
    number, first = next(((e.episode, e.first) for e in found.episodes if e.first is not None), (0, None))
    if first is None:
        return text
    return (
        f"{text}. First at step {first.step} of episode {number} ({first.where}), action {first.action} of the "
        f"answer: {first.dim} is {first.served:.4g}, expected {first.training:.4g}"
    )


def _describe_diagnosis(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    best = diagnosis.best
    if best is None or diagnosis.fit == "none":
        yield f"None of the {diagnosis.tried} known faults and pairs of them fits.", "bold red"
        if best is not None:
            yield (
                f"The nearest is {best.fault.name!r}: {best.distance:.2g} away; no fault: {diagnosis.without:.2g}",
                "yellow",
            )
        return
    sure = "its answers equal the served ones" if diagnosis.fit == "exact" else "its answers are the nearest by far"
    yield f"The fault: {best.fault.name} ({sure}).", "bold red"
    if diagnosis.same:
        names = ", or ".join(c.fault.name for c in diagnosis.same[:_MOST_NAMED])
        yield f"The same effect on these frames: {names}", ""
    other = f"; the next fault, {diagnosis.next.fault.name!r}, {diagnosis.next.distance:.2g}" if diagnosis.next else ""
    yield f"Distance {best.distance:.2g}; without a fault {diagnosis.without:.2g}{other}. {diagnosis.tried} tried.", ""
    yield f"To fix it: {best.fault.fix}", "green"


def _describe_unnoticed(unnoticed: Sequence[str], tried: int) -> str:
    names = ", ".join(unnoticed[:_MOST_NAMED])
    more = f" and {len(unnoticed) - _MOST_NAMED} more" if len(unnoticed) > _MOST_NAMED else ""
    return (
        f"Of {tried} known faults, {tried - len(unnoticed)} would have been noticed. The policy ignores the others on "
        f"these frames: {names}{more}"
    )


def _make_episode_table(episodes: Sequence[EpisodeDifference]) -> Table:
    table = Table("episode", "instruction", "answers", "largest difference", "first at step", box=None, pad_edge=False)
    for e in episodes:
        first = "-" if e.first is None else str(e.first.step)
        table.add_row(str(e.episode), e.instruction, str(e.calls), f"{e.largest:.2g}", first)
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _make_agreement_table(agreement: Sequence[GroupAgreement]) -> Table:
    table = Table("group", "delay", "dim", "correlation", "scale", "offset", box=None, pad_edge=False)
    for group in agreement:
        if group.gripper is not None:
            table.add_row(group.group, "", "", f"{100 * group.gripper:.0f} % agree", "", "")
            continue
        for number, dim in enumerate(group.dims):
            name, delay = (group.group, f"{group.delay} steps") if number == 0 else ("", "")
            numbers = [_format(dim.correlation), _format(dim.scale), f"{dim.offset:.3g}"]
            table.add_row(name, delay, dim.name, *numbers)
    for column in table.columns[3:]:
        column.justify = "right"
    return table


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
