"""The matrix: every family keeps every promise of a backbone."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from families.common import write_family

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.conformance import CHECKS
from anyvla.backbones.subject import NotApplicable, Subject


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    family = FAMILIES[request.param]
    folder = write_family(family, tmp_path_factory.mktemp(request.param))
    config = AutoBackbone.Config(path=str(folder), prompt="do {instruction}", **family.options)
    return Subject(AutoBackbone(config).eval(), config)


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_its_promise(subject: Subject, check: str) -> None:
    torch.manual_seed(0)
    try:
        CHECKS[check](subject)
    except NotApplicable as reason:
        pytest.skip(str(reason))
