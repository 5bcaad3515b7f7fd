from __future__ import annotations

import json
import logging
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from anyvla.cli.main import main
from anyvla.policy import VLA
from anyvla.report.explanation import Explanation, dummy_window, explain
from anyvla.report.structure import draw_structure, format_count, shown_groups
from anyvla.sequence.valid_steps import ValidSteps
from tests.small import NANO, model, robot

INTERLEAVED = {"name": "interleaved", "window": 3}
EXPERT = {"name": "expert", "width": 32, "mlp": 64}


def made(codec: Any = None, **keys: Any) -> VLA:
    torch.manual_seed(0)
    return VLA(model(**keys), [robot()], codec=codec).eval()


def explained(**keys: Any) -> Explanation:
    return explain(made(**keys), "small")


def attention(e: Explanation, row: tuple[str, int], column: tuple[str, int]) -> float:
    """Return the share of the tokens of one (label, step) that another one attends to."""
    number = {(g.label, g.step): n for n, g in enumerate(e.groups)}
    return float(e.attention[number[row], number[column]])


def test_a_step_is_listed_in_the_order_of_its_tokens() -> None:
    e = explained(readouts=2, proprio="token")
    labels = [g.label for g in e.groups]
    assert labels == ["start", "corner", "wrist", "text", "proprio", "readout"]
    tokens = {g.label: g.tokens for g in e.groups}
    assert tokens["corner"] == tokens["wrist"] == (32 // 16) ** 2  # patches of 16 pixels
    assert (tokens["proprio"], tokens["readout"]) == (1, 2)
    assert sum(tokens.values()) == e.length
    assert (e.window, e.sequences) == (1, 1)


def test_a_policy_head_reads_a_sequence_a_step() -> None:
    e = explained(history={"name": "policy_head", "window": 3}, fuser={"name": "gpt", "width": 32, "heads": 2})
    assert (e.window, e.sequences) == (3, 3)
    assert {g.step for g in e.groups} == {-1, 0}


@pytest.mark.parametrize("past", ["hidden", "visible"])
def test_readouts_obey_the_mask_of_a_window(past: str) -> None:
    vla = made(history={**INTERLEAVED, "past": past})
    e = explain(vla, "small")
    assert e.sequences == 1
    assert [g.step for g in e.groups if g.label == "readout"] == [0, 1, 2]
    visible = attention(e, ("readout", 1), ("readout", 0)) > 0
    assert visible == (past == "visible")
    assert attention(e, ("readout", 1), ("wrist", 0)) == 1
    assert attention(e, ("readout", 0), ("wrist", 1)) == 0
    batch = dummy_window(vla)

    def second(change: float) -> torch.Tensor:
        """Return the readout of step 2 after a change of the query of step 1."""
        steps = vla._make_steps(batch.images[0], list(batch.instructions) * 3, batch.proprio[0], None)
        steps.embeddings[0] += change
        with torch.inference_mode():
            reading = vla.history.read_windows(
                vla.backbone, steps, ValidSteps.of_mask(batch.step_mask), keep_cache=False
            )
        return reading.readouts[0, 1]

    steps = vla._make_steps(batch.images[0], list(batch.instructions) * 3, batch.proprio[0], None)
    assert steps.embeddings.shape[0] == 3
    moved = (second(0.0) - second(3.0)).abs().max().item()
    assert (moved > 1e-4) == visible


def test_a_suffix_sees_its_step_and_earlier_ones_but_no_readout_and_no_other_suffix(tmp_path) -> None:
    vla = made(history=INTERLEAVED, decoder="lm_tokens", representation={"name": "bins", "bins": 16}, chunk=3)
    e = explain(vla, "small")
    suffix = [g for g in e.groups if g.kind == "suffix"]
    assert [(g.label, g.step) for g in suffix[:2]] == [("context", 0), ("lm_tokens", 0)]
    assert {g.step for g in suffix} == {0, 1, 2}
    assert suffix[0].tokens + suffix[1].tokens == vla.codec.length
    assert attention(e, ("lm_tokens", 1), ("text", 1)) == attention(e, ("lm_tokens", 1), ("corner", 0)) == 1
    assert attention(e, ("lm_tokens", 1), ("readout", 1)) == attention(e, ("lm_tokens", 1), ("readout", 0)) == 0
    assert attention(e, ("lm_tokens", 1), ("lm_tokens", 0)) == attention(e, ("corner", 1), ("context", 0)) == 0
    assert attention(e, ("lm_tokens", 1), ("context", 1)) == 1
    assert 0 < attention(e, ("lm_tokens", 1), ("lm_tokens", 1)) < 1  # earlier ones
    assert "a chunk is at most 12 tokens of 16" in e.notes
    assert "a chunk takes 12 more runs of the backbone, of 12 tokens in all" in e.notes


def test_an_expert_reads_its_context_first_and_its_actions_together() -> None:
    e = explained(decoder=EXPERT)
    assert [(g.label, g.tokens) for g in e.groups[-2:]] == [("context", 1), ("expert", 4)]
    assert attention(e, ("expert", 0), ("expert", 0)) == attention(e, ("expert", 0), ("context", 0)) == 1
    assert attention(e, ("context", 0), ("expert", 0)) == 0
    assert attention(e, ("expert", 0), ("wrist", 0)) == 1
    assert any("no more runs of the backbone" in note for note in e.notes)


def test_every_weight_is_counted_once() -> None:
    frozen = {**NANO, "train": {"vision": False}}
    vla = made(backbone=frozen, proprio="token", decoder=EXPERT)
    e = explain(vla, "small")
    parts = {p.name: p for p in e.parts}
    assert sum(p.parameters for p in e.parts) == sum(w.numel() for w in vla.parameters())
    assert sum(p.trainable for p in e.parts) == sum(w.numel() for w in vla.parameters() if w.requires_grad)
    assert parts["vision"].trainable == 0 < parts["vision"].parameters
    assert parts["readout queries"].parameters == vla.queries.numel()
    assert parts["decoder"].parameters == sum(w.numel() for w in vla.decoder.parameters())


@pytest.mark.parametrize("cache", [True, False])
def test_the_tokens_of_a_step_are_measured_when_acting(cache: bool) -> None:
    e = explained(history={**INTERLEAVED, "window": 8, "cache": cache})
    [note] = [note for note in e.notes if note.startswith("acting")]
    assert ("its own tokens only" in note) == cache
    assert ("the tokens of its whole window" in note) != cache
    first, second, third = map(int, re.search(r"\((\d+), (\d+), (\d+) in", note).groups())
    assert (second < first) == cache  # a continued sequence has no start token
    assert (third > 2.5 * first) != cache


def test_explaining_leaves_the_model_as_it_was() -> None:
    vla = made(history=INTERLEAVED).train()
    before = {name: weight.clone() for name, weight in vla.state_dict().items()}
    explain(vla, "small")
    assert vla.training
    assert not vla.backbone._forward_pre_hooks
    assert all(torch.equal(weight, before[name]) for name, weight in vla.state_dict().items())


def test_long_windows_are_shortened_in_pictures_only() -> None:
    e = explained(history={**INTERLEAVED, "window": 16})
    assert {g.step for g in e.groups} == set(range(-1, 16))
    assert {e.groups[n].step for n in shown_groups(e)} == {-1, 0, 1, 15}
    assert np.array(e.to_dict()["attention"]).shape == (len(e.groups), len(e.groups))


def test_the_picture_is_complete_and_has_no_external_resources() -> None:
    drawn = draw_structure(explained(history=INTERLEAVED, decoder=EXPERT))
    root = ElementTree.fromstring(drawn)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"corner", "wrist", "readout", "context", "expert", "2 readout", "after step 3:"} <= set(words)
    assert "prefers-color-scheme: dark" in drawn
    assert re.findall(r"https?://[^\"]*|url\(|@import|<image|href", drawn) == ["http://www.w3.org/2000/svg"]


def test_names_in_the_picture_are_escaped() -> None:
    vla = made()
    drawn = draw_structure(explain(vla, "<&>"))
    assert "&lt;&amp;&gt;" in drawn
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize(("count", "words"), [(7, "7"), (9_600, "9.6 k"), (41_300_000, "41.3 M"), (3e9, "3.0 G")])
def test_amounts_are_short(count: int, words: str) -> None:
    assert format_count(count) == words


@pytest.fixture
def recipe(tmp_path):
    document = {
        "name": "small",
        "data": {"sources": [{"path": str(tmp_path / "none-yet")}]},
        "model": {"backbone": NANO, "history": INTERLEAVED, "fuser": "identity", "decoder": "regression", "chunk": 4},
        "training": {"steps": 6},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_the_command_prints_layout_mask_and_weights(recipe, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    picture = tmp_path / "pictures" / "small.svg"
    assert main(["explain", recipe, "--svg", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "step 1  [start 1][static 4][wrist 4]" in shown  # the robot of the recipe is not available
    assert re.search(r"^ *start ██··+$", shown, re.MULTILINE)
    assert re.search(r"^ *1 wrist ████▒▒··+$", shown, re.MULTILINE)
    assert "together" in shown
    assert "decoder regression" in shown
    assert picture.read_text().startswith("<svg")


def test_the_command_gives_json(recipe, capsys) -> None:
    assert main(["explain", recipe, "--json", "--model.chunk", "6"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["structure"]["history"] == "interleaved"
    assert facts["chunk"] == 6
    assert {"kind", "label", "step", "tokens"} == facts["groups"][0].keys()
    assert len(facts["attention"]) == len(facts["groups"])


def test_a_missing_backbone_is_an_error_that_suggests_nano(recipe, capsys, tmp_path) -> None:
    away = str(tmp_path / "no-such-model")
    assert main(["explain", recipe, "--model.backbone", f"{{name: auto, path: {away}}}"]) == 1
    message = capsys.readouterr().err
    assert "the backbone of small cannot be loaded" in message
    assert f"anyvla explain {recipe} --model.backbone nano" in message


def test_an_invalid_combination_is_refused_with_its_reason(recipe, capsys) -> None:
    assert main(["explain", recipe, "--model.history", "none", "--model.fuser", "lstm"]) == 1
    message = capsys.readouterr().err
    assert "history none has one step" in message
    assert "cannot be loaded" not in message


def test_a_codec_that_was_not_fitted_is_fitted_to_made_up_chunks(recipe, capsys, caplog) -> None:
    fast = ["--model.representation", "fast", "--model.decoder", "{name: tokens, width: 32, heads: 2}"]
    assert main(["explain", recipe, *fast]) == 0
    shown = capsys.readouterr().out
    assert "the codec is fitted to made-up chunks" in shown
    assert re.search(r"a chunk is at most \d+ tokens of \d+, and an end", shown)
    assert not caplog.records  # no warning about the invalid chunks of an untrained policy
    assert logging.getLogger("anyvla.heads").getEffectiveLevel() <= logging.WARNING
