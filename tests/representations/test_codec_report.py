from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.config import Part, build, to_dict
from anyvla.representations.bins import BinsCodec
from anyvla.representations.codec import Codec, CodecError, Continuous
from anyvla.representations.codec_report import (
    CodecReport,
    check_codec,
    load_codec_report,
    measure_round_trip,
    needs_fit,
    purpose_of,
)
from anyvla.robot.normalize import Normalizer
from anyvla.robot.space import ActionSpace
from tests.small import embodiment, statistics

SPACE = embodiment().action  # three dims of position, a gripper
NORMALIZER = Normalizer(
    SPACE, [(SPACE, statistics().action)], "quantile", what="action", clip=True
)  # position: from -2 to 2
ROBOTS = torch.zeros(200, dtype=torch.int64)
DATA = "a" * 64


def bins(**options: Any) -> Part:
    return Part("representations", "bins", build(BinsCodec.Config, options))


QUANTILE = bins(kind="quantile", bins=16)


def chunks() -> torch.Tensor:
    return torch.rand(200, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def fitted(folder: Path, part: Part = QUANTILE, **changes: Any) -> Path:
    codec = part.build(4, SPACE)
    facts = codec.fit(chunks())
    codec.save(folder)
    trip = measure_round_trip(codec, chunks(), torch.ones(200, 4, dtype=torch.bool), NORMALIZER, ROBOTS)
    keys: dict[str, Any] = {"representation": part, "chunk": 4, "method": "quantile", "fingerprint": DATA} | changes
    report = CodecReport(
        purpose=purpose_of(**keys), vocabulary=codec.size, length=codec.length, episodes=9, held_out_episodes=1,
        fitted=trip, held_out=None, facts=facts, seconds=0.1,
    )  # fmt: skip
    (folder / "report.json").write_text(json.dumps(to_dict(report)))
    assert load_codec_report(folder) == report
    return folder


def test_each_group_has_its_errors_in_both_units() -> None:
    codec = bins(bins=5).build(4, SPACE)  # the bins' middles: -0.75, -0.25, 0.25, 0.75
    x = torch.zeros(2, 4, 4)
    x[0, :, :3] = torch.tensor([0.25, 0.5, -0.25])
    x[0, :, 3] = 0.75
    x[1] = 0.99
    mask = torch.tensor([[True] * 4, [False] * 4])
    trip = measure_round_trip(codec, x, mask, NORMALIZER, ROBOTS[:2])
    hand, gripper = trip.errors
    assert (hand.group, gripper.group) == ("position", "gripper")
    assert hand.normalized.mean == pytest.approx(0.25 / 3)
    assert hand.normalized.max == pytest.approx(0.25)
    assert hand.robot.max == pytest.approx(0.5)
    assert gripper.robot.max == 0
    assert (trip.chunks, trip.tokens_mean, trip.tokens_max, trip.compression, trip.invalid) == (2, 16, 16, 1, 0)


class Wrong(Codec):
    """Writes a token for each action whose first number is above 0, and decodes 0.01, 0.02 ... too much."""

    size, length, fitted = 4, 4, True

    def fit(self, chunks: torch.Tensor, seed: int = 0) -> dict[str, Any]:
        return {}

    def encode(self, chunks: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.chunks = chunks
        return torch.where(chunks[..., 0] > 0, 1, -1)

    def decode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = torch.arange(1, self.chunks.numel() + 1).view(self.chunks.shape) * 0.01
        return self.chunks + error * (-1) ** torch.arange(4), (tokens < 0).any(1)

    def save(self, folder: Path) -> None:
        pass


def test_the_numbers_of_a_round_trip_by_hand() -> None:
    """Two robots: the first reaches from -2 to 2, the second has no gripper and reaches from -1 to 1."""
    arm = ActionSpace(groups=SPACE.groups[:1])
    narrow = {key: [value / 2 for value in values[:3]] for key, values in statistics().action.items()}
    robots = [(SPACE, statistics().action), (arm, narrow)]
    normalizer = Normalizer(SPACE, robots, "quantile", what="action", clip=True)
    x = torch.zeros(2, 4, 4)
    x[0, :3, 0] = 0.1  # three tokens
    x[1, 0, 0] = 0.1  # one
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    trip = measure_round_trip(Wrong(4, SPACE), x, mask, normalizer, torch.tensor([0, 1]))
    assert (trip.chunks, trip.tokens_mean, trip.tokens_max, trip.compression, trip.invalid) == (2, 2, 3, 8, 2)
    hand, gripper = trip.errors
    model = np.array([1, 2, 3, 5, 6, 7, 17, 18, 19]) * 0.01  # of actions 0 and 1 of the first, 0 of the second
    robot = np.array([2, 4, 6, 10, 12, 14, 17, 18, 19]) * 0.01
    for got, values in ((hand.normalized, model), (hand.robot, robot)):
        assert (got.mean, got.max) == (pytest.approx(values.mean()), pytest.approx(values.max()))
        assert got.q99 == pytest.approx(
            values.max() - 0.08 * (values.max() - np.sort(values)[-2])
        )  # rank 7.92 of 0 .. 8
    assert (gripper.normalized.mean, gripper.normalized.max) == (pytest.approx(0.06), pytest.approx(0.08))


def test_tokens_and_errors_do_not_depend_on_how_chunks_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, mask = bins().build(4, SPACE), torch.ones(200, 4, dtype=torch.bool)
    whole = measure_round_trip(codec, chunks(), mask, NORMALIZER, ROBOTS)
    monkeypatch.setattr("anyvla.representations.codec_report.AT_ONCE", 7)
    assert measure_round_trip(codec, chunks(), mask, NORMALIZER, ROBOTS) == whole


def test_only_codecs_that_learn_from_data_need_a_fit() -> None:
    assert needs_fit(QUANTILE, 4, SPACE)
    assert not needs_fit(bins(), 4, SPACE)
    assert not needs_fit(Part("representations", "continuous", Continuous.Config()), 4, SPACE)


def test_a_codec_with_the_same_purpose_is_accepted(tmp_path: Path) -> None:
    fitted(tmp_path)
    check_codec(tmp_path, QUANTILE, 4, SPACE, "quantile", DATA)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "b" * 64}, "data (bbbbbbbbbbbb there, aaaaaaaaaaaa now)"),
        ({"chunk": 8}, "chunk (8 there, 4 now)"),
        ({"method": "minmax"}, "normalization.action (minmax there, quantile now)"),
        ({"representation": bins(kind="quantile", bins=32)}, "bins: 32, mu: 255.0 there, name: bins, kind: quantile"),
    ],
)
def test_a_codec_with_another_purpose_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    fitted(tmp_path / "codec", **changed)
    with pytest.raises(CodecError) as raised:
        check_codec(tmp_path / "codec", QUANTILE, 4, SPACE, "quantile", DATA)
    assert message in str(raised.value)
    assert f"fit it again with anyvla data fit-codec RECIPE --out {tmp_path}" in str(raised.value)
    assert str(raised.value).count("there") == 1


def test_a_missing_or_damaged_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"there is no fitted codec at .*run anyvla data fit-codec RECIPE"):
        check_codec(tmp_path, QUANTILE, 4, SPACE, "quantile", DATA)
    for text in ("{", "[]", "{}", "null"):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(CodecError, match=r"or a damaged one: run anyvla data fit-codec RECIPE again"):
            check_codec(tmp_path, QUANTILE, 4, SPACE, "quantile", DATA)
        check_codec(tmp_path, bins(), 4, SPACE, "quantile", DATA)  # needs none
