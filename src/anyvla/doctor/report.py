"""The report of an examination as JSON, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.doctor.diagnosis import Candidate, Diagnosis
from anyvla.doctor.examination import Examination
from anyvla.doctor.played import Answers
from anyvla.files.durable import replacing

REPORT, CHUNKS = "report.json", "answers.npz"


@dataclass
class Report:
    """An examination, and its subject."""

    checkpoint: str
    dataset: str
    protocol: str
    client: str | None  # the user's own
    server: str | None = None  # its address
    examination: Examination | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        assert self.examination is not None
        found = self.examination
        document = {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "examination"},
            "equal": found.equal,
            **{f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "diagnosis"},
            "diagnosis": None if found.diagnosis is None else _describe(found.diagnosis),
        }
        return _plain(document)


def write_report(folder: Path, report: Report, served: Sequence[Answers]) -> None:
    """Write the report and the served answers of each episode."""
    assert report.examination is not None
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for episode, answers in zip(report.examination.episodes, served, strict=True):
        arrays[f"steps_{episode.episode}"], arrays[f"actions_{episode.episode}"] = answers.steps, answers.actions
    with replacing(folder / CHUNKS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    with replacing(folder / REPORT) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=1, allow_nan=False), encoding="utf-8")


def _describe(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "fit": diagnosis.fit,
        "fault": None if diagnosis.best is None else _candidate(diagnosis.best),
        "same_effect": [c.fault.name for c in diagnosis.same],
        "next": None if diagnosis.next is None else _candidate(diagnosis.next),
        "distance_without": diagnosis.without,
        "tried": diagnosis.tried,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    fault = candidate.fault
    return {
        "name": fault.name,
        "family": fault.family,
        "fix": fault.fix,
        "parts": list(fault.parts),
        "distance": candidate.distance,
        "exact": candidate.exact,
    }


def _plain(value: Any) -> Any:
    """Return a value of JSON; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
