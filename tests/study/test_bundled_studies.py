"""The studies that come with anyvla, at small and at full scale, are valid on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyvla.study.cells import expand
from anyvla.study.file import read_study
from anyvla.study.folder import StudyFolder
from anyvla.study.overview import look

STUDIES = sorted((Path(__file__).parents[2] / "studies").rglob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem + "-" + path.parent.name)
def test_every_cell_is_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data, simulators of others, or a model hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    study = read_study(path)
    assert {cell.invalid for cell in expand(study, path)} == {""}
    assert look(study, path, StudyFolder(tmp_path / "out")).states["missing"] >= 12


def test_the_questions_are_there_at_both_scales() -> None:
    full = {path.stem for path in STUDIES if path.parent.name == "full"}
    assert full == {"why", "which", "how", "when"}
    assert len({read_study(path).name for path in STUDIES}) == len(STUDIES)


def test_a_training_on_a_mixture_is_the_first_stage_of_another(tmp_path: Path) -> None:
    """`mixed` and `pre-trained` of the full-scale `when` share the training on Open X-Embodiment."""
    path = next(path for path in STUDIES if path.parent.name == "full" and path.stem == "when")
    jobs_of = look(read_study(path), path, StudyFolder(tmp_path)).jobs_of
    [mixed] = jobs_of["target=widowx,origin=mixed,shots=all,seed=0"].trainings
    first, last = jobs_of["target=widowx,origin=pre-trained,shots=all,seed=0"].trainings
    assert first == mixed != last
    assert jobs_of["target=calvin,origin=pre-trained,shots=10,seed=0"].trainings[0] == mixed
