"""PaliGemma 2 takes one mask for all layers, although some have a sliding window."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import Cache
from anyvla.backbones.checks.examined import ExaminedBackbone
from tests.backbones.families.common import Family, write_family
from tests.backbones.families.llava_like import paligemma2

WINDOW = 24


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> ExaminedBackbone:
    config: Any = paligemma2()
    config.text_config.sliding_window = WINDOW
    folder: Path = write_family(Family(lambda: config), tmp_path_factory.mktemp("short_window"))
    options = AutoBackbone.Config(path=str(folder), prompt="{instruction}")
    return ExaminedBackbone(AutoBackbone(options).eval(), options, views=1)


def test_it_reads_sequences_longer_than_its_window(subject: ExaminedBackbone) -> None:
    query = subject.make_queries(1)
    with torch.no_grad():
        assert subject.read(subject.make_images(1), ("a long instruction",), query).isfinite().all()


@pytest.mark.parametrize("way", ["mask", "cache"])
def test_a_mask_or_cache_beyond_the_window_is_refused(subject: ExaminedBackbone, way: str) -> None:
    query = subject.make_queries(1)
    sequence = subject.lay_out(subject.backbone.tokenize(subject.make_images(1), ["a long instruction"]), [1], 1)
    length = sequence.input_ids.shape[1]
    assert length > WINDOW
    everything = torch.ones(1, length, length, dtype=torch.bool)
    if way == "mask":
        sequence = dataclasses.replace(sequence, block_mask=everything)
    with pytest.raises(ValueError, match=rf"{length} tokens exceed the sliding window of {WINDOW}.*fewer cameras"):
        subject.backbone(sequence, query, Cache() if way == "cache" else None)


def test_within_the_window_a_mask_that_hides_nothing_changes_nothing(subject: ExaminedBackbone) -> None:
    query = subject.make_queries(1)
    sequence = subject.lay_out(subject.backbone.tokenize(subject.make_images(1), ["go"]), [1], 1)
    length = sequence.input_ids.shape[1]
    assert length <= WINDOW
    everything = torch.ones(1, length, length, dtype=torch.bool)
    with torch.no_grad():
        plain = subject.backbone(sequence, query)
        torch.testing.assert_close(subject.backbone(dataclasses.replace(sequence, block_mask=everything), query), plain)
