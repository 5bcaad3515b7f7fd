from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaConfig, MllamaConfig

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.adapting.pretrained import truncate_config
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.checks.examined import ExaminedBackbone
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.config import ConfigError, build
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

TEXTS = ["open", "close it"]
KEPT = {"language_only": {"language", "embeddings"}, "vision_only": {"vision"}, "none": set()}  # RoboVLMs' names
ENOUGH = 256  # weights, to estimate a standard deviation
Build = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = write_family(FAMILIES[family], tmp_path_factory.mktemp(family))
        return folders[family]

    return folder


@pytest.fixture(scope="module")
def build_one(folder: Callable[[str], Path]) -> Build:
    def build_one(family: str, path: Path | None = None, **options: Any) -> AutoBackbone:
        keys = {"path": str(path or folder(family)), "prompt": "do {instruction}", **FAMILIES[family].options}
        return AutoBackbone(build(AutoBackbone.Config, keys | options)).eval()

    return build_one


def copy(source: Path, to: Path) -> Path:
    return Path(shutil.copytree(source, to, dirs_exist_ok=True))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_parts_but_the_kept_ones_are_initialized_anew(build_one: Build, family: str) -> None:
    """Kept parts are bit-equal to the checkpoint; the others have the spread of a newly initialized model."""
    full = build_one(family)
    checkpoint = {n: p.detach() for n, p in full.named_parameters()}
    fresh = dict(AutoModelForImageTextToText.from_config(full.model.config).named_parameters())
    for mode in ("language_only", "vision_only", *(("none",) if family in ("llava", "qwen2_5_vl") else ())):
        backbone = build_one(family, pretrained=mode)
        parts = parameters_by_part(backbone)
        kept = {p for part in KEPT[mode] for p in parts[part]}
        if "language" in KEPT[mode]:
            kept |= {w for module in backbone.unused_modules for w in module.parameters()}
        for name, weight in backbone.named_parameters():
            if weight in kept:
                assert torch.equal(weight, checkpoint[name]), f"{mode}: {name} was not kept"
                continue
            like = fresh[name.removeprefix("model.")]
            if like.numel() > 1 and like.unique().numel() == 1:  # zeros, ones
                assert torch.equal(weight, like), f"{mode}: {name}"
            elif like.numel() >= ENOUGH:
                assert not torch.equal(weight, checkpoint[name]), f"{mode}: {name} is not fresh"
                assert 0.8 < weight.std() / like.std() < 1.25, f"{mode}: {name}"


def test_new_weights_depend_only_on_the_seed(build_one: Build) -> None:
    state = torch.get_rng_state()
    for mode in ("vision_only", "none"):
        one, again, other = (build_one("llava", pretrained=mode, seed=s).state_dict() for s in (1, 1, 2))
        assert all(torch.equal(w, again[n]) for n, w in one.items())
        assert not torch.equal(one["model.lm_head.weight"], other["model.lm_head.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_pretrained_needs_no_weights(build_one: Build, folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy(folder("llava"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert build_one("llava", tmp_path, pretrained="none", seed=3).state_dict().keys()
    with pytest.raises(ValueError, match=r"(?s)neither model\.safetensors nor .*pickled.*Copy the whole folder again"):
        build_one("llava", tmp_path)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_first_layers_compute_the_same_alone(build_one: Build, family: str) -> None:
    """Compare with the state of the whole model after its first layer and final norm."""
    full = build_one(family)
    whole = full.model.config.get_text_config().num_hidden_layers
    if full.attention == "full" or whole < 2:
        pytest.skip("no stack of decoder layers to compare with")
    try:
        cut = build_one(family, layers=1)
    except ValueError as refusal:
        assert "images are read by layers" in str(refusal)  # noqa: PT017
        return
    apart = ("vision", "visual", "tower", "connector", "qformer", "image", "encoder")
    name, stack = next(
        (n, m)
        for n, m in full.model.named_modules()
        if isinstance(m, torch.nn.ModuleList)
        and len(m) == whole
        and n.rpartition(".")[2] in ("layers", "layer")
        and not any(word in n for word in apart)
    )
    parent = full.model.get_submodule(name.rpartition(".")[0])
    norm = next(m for n, m in parent.named_children() if "norm" in n and "per_layer" not in n)
    states = []
    hook = stack[0].register_forward_hook(lambda _m, _i, out: states.append(out if torch.is_tensor(out) else out[0]))
    s = ExaminedBackbone(full, None)
    sequence, query = s.lay_out(full.tokenize(s.make_images(2), TEXTS), [1, 1], 2), s.make_queries(2)
    with torch.no_grad():
        full(sequence, query)
        hook.remove()
        expected = norm(states[-1])[sequence.query_mask].view(2, 2, -1)
        torch.testing.assert_close(cut(sequence, query), expected, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in full.parameters())


def test_lists_with_one_entry_per_layer_are_truncated() -> None:
    config = LlamaConfig(num_hidden_layers=4)
    config.layer_types = ["full_attention", "sliding_attention"] * 2
    config.eos_token_id = [1, 2, 3, 4]
    truncate_config(config, 3)
    assert config.num_hidden_layers == 3
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert config.eos_token_id == [1, 2, 3, 4]
    truncate_config(config, None)
    assert config.num_hidden_layers == 3
    truncate_config(config, 1)
    assert config.num_hidden_layers == 1
    assert config.layer_types == ["full_attention"]


def test_too_many_layers_and_too_few_are_refused(build_one: Build) -> None:
    with pytest.raises(ValueError, match="layers: 9, but the language model of this 'llava' has 2 layers"):
        build_one("llava", layers=9)
    with pytest.raises(ConfigError, match="'layers': Input should be greater than or equal to 1"):
        build_one("llava", layers=0)
    mllama = MllamaConfig()
    truncate_config(mllama, 6)
    assert mllama.text_config.num_hidden_layers == 6
    assert mllama.text_config.cross_attention_layers == [3]
    with pytest.raises(ValueError, match=r"layers: 2, but images are read by layers \[3"):
        truncate_config(mllama, 2)


def test_truncated_and_reinitialized_models_are_saved_and_loaded(build_one: Build, tmp_path: Path) -> None:
    backbone = build_one("gemma3" if "gemma3" in FAMILIES else "llava", layers=1, pretrained="vision_only")
    backbone.save_assets(tmp_path)
    config = build(type(backbone).Config, {"path": "gone", "prompt": "do {instruction}", "layers": 1})
    again = AutoBackbone(config, assets=tmp_path).eval()
    again.load_state_dict(backbone.state_dict())


def test_sharded_checkpoints_are_read(build_one: Build, folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy(folder("llava"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    whole = build_one("llava")
    whole.model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = build_one("llava", tmp_path)
    assert all(torch.equal(w, sharded.state_dict()[n]) for n, w in whole.state_dict().items())
    next(iter(tmp_path.glob("*-00002-*"))).unlink()
    with pytest.raises(ValueError, match="is not complete"):
        build_one("llava", tmp_path)


@pytest.mark.parametrize("fault", ["missing", "shape", "damaged"])
def test_weights_that_do_not_fit_are_refused(
    build_one: Build, folder: Callable[[str], Path], tmp_path: Path, fault: str
) -> None:
    path = copy(folder("llava"), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
    message = r"whose classes don't match its config\.json \('llava'\): "
    if fault == "missing":
        tensors["elsewhere.weight"] = tensors.pop(name)
        message += r"missing: .*layers\.0\.mlp\.up_proj\.weight; not of this model: elsewhere\.weight"
    else:
        tensors[name] = tensors[name][:, :5].contiguous()
        message += r"of another shape: .*up_proj\.weight is \(64, 5\), not \(64, 32\)"
    save_file(tensors, path, {"format": "pt"})
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
        message = "is not complete: a safetensors file is damaged"
    with pytest.raises(ValueError, match=message):
        build_one("llava", tmp_path)


def test_a_config_of_another_model_is_refused(folder: Callable[[str], Path], build_one: Build, tmp_path: Path) -> None:
    copy(folder("llava"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"classes don't match.*missing: .*layers\.2\.input_layernorm.* and 5 more"):
        build_one("llava", tmp_path)


def test_options_that_a_backbone_does_not_read_are_refused() -> None:
    class NoPretrained(NanoBackbone):
        supported_options = frozenset({"layers"})

    with pytest.raises(ValueError, match="NoPretrained has no option pretrained: leave it out"):
        NoPretrained(build(NanoBackbone.Config, {"pretrained": "vision_only", "width": 48}))
