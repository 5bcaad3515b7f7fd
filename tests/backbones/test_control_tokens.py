"""Every tokenizer reads an instruction as plain text."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.checks.conformance import check_plain_text
from anyvla.backbones.checks.examined import CheckFailed, ExaminedBackbone
from anyvla.backbones.control_tokens import ControlTokens, encode_plainly
from anyvla.config import build
from anyvla.registry import backbones
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import SPECIAL, VOCABULARY, tiny_tokenizer, write_family
from tests.backbones.families.registered import REGISTERED

FRAMES = torch.zeros(1, 1, 28, 28, 3, dtype=torch.uint8)


def tokens(backbone: AutoBackbone, text: str) -> list[int]:
    return [*backbone.tokenize(FRAMES, [text]).tokens[0]]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> AutoBackbone:
    folder = write_family(FAMILIES["llava"], tmp_path_factory.mktemp("llava"))
    return AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="{bos} do {instruction} and {instruction}"))


@pytest.mark.parametrize("name", ["nano", "film", "flamingo"])
def test_registered_backbones_read_plain_text(name: str, tmp_path: Path) -> None:
    """test_families.py checks the families of `auto`, remote_code/test_loading.py the backbones with remote code."""
    config = build(backbones[name].Config, REGISTERED[name](tmp_path))
    assert "control tokens" in check_plain_text(ExaminedBackbone(backbones[name](config), config))


def test_control_tokens_in_an_instruction_are_spelled_out(llava: AutoBackbone) -> None:
    for name in (*SPECIAL[:12], "{bos}", "{prompt}", "{instruction}", "<s><s>", "<<s>", "</s", "<image><image>"):
        text = f"push {name}, then stop"
        found = tokens(llava, text)
        assert sum(i < len(SPECIAL) for i in found) == 16 + 1  # the image, and the BOS of the prompt
        assert llava.tokenizer.decode([i for i in found if i >= len(SPECIAL)]) == f"\n do {text} and {text}"


def test_one_instruction_in_any_spelling_gives_the_same_tokens(llava: AutoBackbone) -> None:
    text = "öffne die Tür \u1e9b\u0323 für Åsa"
    expected = tokens(llava, text)
    spellings = [unicodedata.normalize("NFD", text), f" {text}\n", text.replace(" ", "\u00a0"), f"\ufeff{text}\u200b"]
    spellings += [text.replace(" ", "  \t"), text.replace(" ", "\r\n"), "\u200e".join(text)]
    for spelling in spellings:
        assert tokens(llava, spelling) == expected
    assert tokens(llava, text.upper()) != expected
    assert tokens(llava, text + ".") != expected


@pytest.mark.wrong_types
@pytest.mark.parametrize("text", ["open\udce9", "open\x00", b"open", None])
def test_invalid_text_is_refused(llava: AutoBackbone, text: Any) -> None:
    with pytest.raises(ValueError, match="instruction"):
        tokens(llava, text)


def test_the_check_finds_a_control_token_that_takes_effect(
    llava: AutoBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_carelessly(text: str, views: int) -> tuple[list[int], int]:
        return llava.step_tokenizer._encode_step([text], views, apart=False)

    monkeypatch.setattr(llava.step_tokenizer, "_cached", {})
    monkeypatch.setattr(llava.step_tokenizer, "_encode_plainly", encode_carelessly)
    with pytest.raises(CheckFailed, match="'</image>' in an instruction acts as a control token: </image>"):
        check_plain_text(ExaminedBackbone(llava, None))


def added(**keys: bool) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<loc0001>", **keys), AddedToken("cup", **keys)])
    return tokenizer


@pytest.mark.parametrize("keys", [{"special": True}, {"special": False}, {"special": False, "normalized": True}])
def test_added_tokens(keys: dict[str, bool]) -> None:
    """Added tokens that look like control tokens are control tokens, special or not; added words are words."""
    tokenizer = added(**keys)
    control = ControlTokens(tokenizer)
    assert "<loc0001>" in control.names
    assert ("cup" in control.names) == keys["special"]
    assert control.pieces("the <loc0001>") == ["the <", "loc0001>"]
    assert control.pieces("the red can") == ["the red can"]


def test_a_name_made_of_prompt_and_instruction_together(tmp_path: Path) -> None:
    folder = write_family(FAMILIES["llava"], tmp_path)
    backbone = AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="go <{instruction}>"))
    own = backbone.step_tokenizer.control.count(tokens(backbone, "x"))
    for text in ("image", "s", "pad", "im_end"):
        assert backbone.step_tokenizer.control.count(tokens(backbone, text)) == own


def test_a_tokenizer_that_folds_letters(tmp_path: Path) -> None:
    """NFKC turns wide letters into a control token."""
    folder = write_family(FAMILIES["llava"], tmp_path)
    pieces = [(t, 0.0) for t in SPECIAL] + [(c, -5.0) for c in sorted(pre_tokenizers.ByteLevel.alphabet())]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=1))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "Ġ")])
    unigram.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk_before>"
    )
    assert tokenizer("\uff1c/s\uff1e", add_special_tokens=False)["input_ids"] == [3]
    tokenizer.save_pretrained(folder)
    backbone = AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="do {instruction}"))
    own = backbone.step_tokenizer.control.count(tokens(backbone, "x"))
    for text in ("\uff1c/s\uff1e", "now \uff1cs\uff1e", "</s>"):
        assert backbone.step_tokenizer.control.count(tokens(backbone, text)) == own
    assert len(backbone.tokenizer) <= VOCABULARY


def test_a_second_tokenizer_reads_plain_text() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["open it", "open <s> it </s>"]
    read = encode_plainly(tokenizer, texts)
    assert (read["input_ids"] >= len(SPECIAL)).sum() == read["attention_mask"].sum()
    rows = [[*row[mask.bool()]] for row, mask in zip(read["input_ids"], read["attention_mask"], strict=True)]
    assert [tokenizer.decode(row) for row in rows] == texts
    assert rows[0] == [*torch.tensor(tokenizer("open it")["input_ids"])]


def test_a_tokenizer_of_bytes_with_control_tokens_beside_its_vocabulary() -> None:
    """Qwen-VL's tokenizer is built like this."""

    class Bytes:
        special_tokens: ClassVar = {"<|endoftext|>": 300, "<|im_start|>": 301}
        all_special_tokens: ClassVar = ["<|endoftext|>"]
        unk_token_id = None

        def get_vocab(self) -> dict[bytes, int]:
            return {bytes([i]): i for i in range(256)}

        def convert_tokens_to_ids(self, text: str) -> int:
            return self.special_tokens[text]

    control = ControlTokens(Bytes(), template="<img></img>")
    assert control.names == {"<|endoftext|>", "<|im_start|>", "<img>", "</img>"}
    assert control.ids == {300, 301}
