from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from anyvla.backbones.base import Backbone
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens
from anyvla.sequence.tokens import TokenSequence as Sequence
from tests.backbones.families.basic import FAMILIES
from tests.backbones.families.common import write_family


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of each family, as a user would have it on disk."""
    return write_family(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(FAMILIES["llava"], tmp_path_factory.mktemp("only_llava"))


@pytest.fixture(scope="session")
def pack() -> Callable[..., Sequence]:
    """Lay steps out: `groups` of consecutive steps share a sequence; R queries end each step."""

    def pack(backbone: Backbone, block: StepTokens, groups: list[int], r: int = 1, padding: int = 0) -> Sequence:
        ids = {"pad_id": backbone.pad_id, "query_id": backbone.query_id}
        longest = lay_out(block, groups, r, **ids).input_ids.shape[1]
        return lay_out(block, groups, r, **ids, length=longest + padding)

    return pack
