from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyvla.backbones.checks.conformance import CHECKS
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.cli.main import main
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.small import NANO

OPTIONS = [f"{key}={value}" for key, value in NANO.items() if key != "name"]
Arguments = Callable[..., int]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(FAMILIES["llava"], tmp_path_factory.mktemp("llava"))


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        given = [a for option in options for a in ("--option", option)]
        status = main(["doctor", "backbone", *arguments, *given])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_model_folder_gets_its_card_and_its_checks(doctor: Arguments, llava: Path) -> None:
    status, out, _ = doctor(str(llava), "--json", options=("prompt=do {instruction}",))
    document = json.loads(out)
    assert status == 0, document["failed"]
    assert [c["check"] for c in document["checks"]] == list(CHECKS)
    assert {c["state"] for c in document["checks"]} == {"passed"}
    card = document["card"]
    assert card["model_class"] == "LlavaForConditionalGeneration"
    assert card["model_type"] == "llava"
    assert (card["image_tokens"], card["image_wrapping"], card["image_size"]) == (16, 0, [28, 28])
    assert card["context"] == 256
    assert {"block_mask", "cache", "interleave", "keys_values", "lm_head"} <= {*card["capabilities"]}
    assert set(card["parameters"]) >= {"vision", "projector", "language", "embeddings"}
    assert all(card["parameters"].values())


def test_a_backbone_without_a_folder(doctor: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    status, out, err = doctor("nano", options=tuple(OPTIONS))
    assert status == 0, out
    assert "LlavaForConditionalGeneration (llava)" in out
    assert "4 tokens and 0 around them, 32 x 32 pixels" in out
    assert "block_mask, cache, continue, interleave" in out
    assert out.count("passed") == len(CHECKS)
    assert f"checks: {len(CHECKS)}/{len(CHECKS)}" in err


def test_parameters_are_counted_once(doctor: Arguments, llava: Path) -> None:
    _, out, _ = doctor(str(llava), "--json")
    counted = json.loads(out)["card"]["parameters"]
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(llava)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())


def test_a_promise_that_is_broken_is_shown_with_its_reason(doctor: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(NanoBackbone):
        def forward(self, sequence: Any, queries: Any, cache: Any = None) -> Any:
            return super().forward(sequence, queries, cache) + sequence.input_ids.shape[0]

    monkeypatch.setattr("anyvla.registry.backbones._targets", {"nano": Careless})
    status, out, _ = doctor("nano", "--json", options=tuple(OPTIONS))
    assert status == 1
    document = json.loads(out)
    assert "neighbors" in document["failed"]
    [found] = [c for c in document["checks"] if c["check"] == "neighbors"]
    assert "sample 0 of 3, alone: differs by" in found["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody/nothing-of-the-kind",), "`hf download nobody/nothing-of-the-kind`"),
        (("EMPTY",), "has no config.json"),
        (("nano", "--option", "widht=3"), "unknown key 'widht': did you mean 'width'?"),
        (("nano", "--option", "width"), "--option width has no value; write --option KEY=VALUE"),
        (("EMPTY", "--name", "nanno"), "there is no backbone 'nanno': did you mean 'nano'?"),
        (("EMPTY", "--name", "nano"), "backbone 'nano' loads no model folder; run `anyvla doctor backbone nano`"),
        (("auto",), "'path' is required"),
        (("EMPTY", "--name", "moondream"), "ships its own code, which would run with all your rights"),
    ],
)
def test_a_mistake_is_one_clear_line(
    doctor: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, out, err = doctor(*(str(tmp_path) if a == "EMPTY" else a for a in arguments))
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert not out


def test_a_strange_model_gives_no_traceback(
    doctor: Arguments, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in llava.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.setattr("anyvla.backbones.auto.Pixels", lambda *_: 1 / 0)
    status, _, err = doctor(str(tmp_path))
    assert status == 1
    assert "backbone 'auto' cannot be built: ZeroDivisionError: division by zero (ANYVLA_DEBUG=1" in err
    monkeypatch.setenv("ANYVLA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        doctor(str(tmp_path))
