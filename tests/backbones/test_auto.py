from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GPT2Config

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.families.quirks import DEFAULT, QUIRKS, Quirk, look_up_quirk
from anyvla.config import ConfigError, build
from anyvla.sequence.tokens import TokenSequence as Sequence

Pack = Callable[..., Sequence]
TEXTS = ["open", "close the drawer slowly", "push"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def backbone(model_folder: Path) -> AutoBackbone:
    return load(model_folder)


def load(folder: Path, assets: Path | None = None) -> AutoBackbone:
    return AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="do {instruction}"), assets=assets).eval()


def frames(steps: int, views: int, size: int = 28, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (steps, views, size, size, 3), dtype=torch.uint8, generator=generator)


def questions(backbone: AutoBackbone, r: int = 1) -> torch.Tensor:
    return torch.randn(r, backbone.width, generator=torch.Generator().manual_seed(1))


def test_readouts_equal_hidden_states_of_the_whole_model(
    model_folder: Path, backbone: AutoBackbone, pack: Pack
) -> None:
    """The unaltered model gives the same hidden state if its embedding table contains the query."""
    block = backbone.tokenize(frames(1, 2), TEXTS[:1])
    sequence = pack(backbone, block, [1])
    query = questions(backbone)
    whole = AutoModelForImageTextToText.from_pretrained(model_folder).eval()
    table = whole.get_input_embeddings()
    scale = float(getattr(table, "embed_scale", 1.0))  # Gemma's table scales embeddings
    with torch.no_grad():
        table.weight[backbone.query_id] = query[0] / scale
        image = sequence.input_ids == backbone.image_id
        given = {"input_ids": sequence.input_ids, **backbone.quirk.image_inputs(backbone._images(sequence))}
        if whole.config.model_type == "kosmos-2":
            given["image_embeds_position_mask"] = image.long()
        if whole.config.model_type == "paligemma":
            given["token_type_ids"] = sequence.query_mask.long()
        hidden = whole(**given, attention_mask=sequence.attention_mask.long(), output_hidden_states=True)
        expected = hidden.hidden_states[-1][:, -1:]
        ours = backbone(sequence, query)
    if whole.config.model_type == "kosmos-2":  # its last recorded state is before the final norm
        expected = whole.text_model.model.layer_norm(expected)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_prefix_never_sees_the_queries(backbone: AutoBackbone, pack: Pack) -> None:
    """Another second query does not change the first readout."""
    block = backbone.tokenize(frames(1, 1), TEXTS[:1])
    query = questions(backbone, 2)
    other = torch.stack([query[0], query[1].flip(0)])
    one, two = (backbone(pack(backbone, block, [1], 2), q) for q in (query, other))
    torch.testing.assert_close(one[:, 0], two[:, 0], atol=TOLERANCE, rtol=TOLERANCE)
    assert (one[:, 1] - two[:, 1]).abs().max() > 1e-3


def test_assets_rebuild_the_architecture_without_the_model_folder(
    llava_folder: Path, pack: Pack, tmp_path: Path
) -> None:
    backbone = load(llava_folder)
    backbone.save_assets(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    config = AutoBackbone.Config(path="gone/away", prompt="do {instruction}")
    again = AutoBackbone(config, assets=tmp_path).eval()
    again.load_state_dict(backbone.state_dict())
    images, query = frames(2, 1, size=40), questions(backbone)
    old, new = (b(pack(b, b.tokenize(images, TEXTS[:2]), [1, 1]), query) for b in (backbone, again))
    assert torch.equal(old, new)


def test_each_step_may_have_its_own_queries(llava_folder: Path, pack: Pack) -> None:
    backbone, images = load(llava_folder), frames(3, 1)
    queries = torch.randn(3, 2, backbone.width, generator=torch.Generator().manual_seed(3))
    together = backbone(pack(backbone, backbone.tokenize(images, TEXTS), [1, 1, 1], 2), queries)
    for i, text in enumerate(TEXTS):
        alone = backbone(pack(backbone, backbone.tokenize(images[i : i + 1], [text]), [1], 2), queries[i])
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=TOLERANCE)


def test_options_left_out_have_the_documented_values() -> None:
    config = AutoBackbone.Config(path="x")
    assert (config.revision, config.image_size, config.tiles) == (None, None, 1)


def test_bfloat16_weights_give_readouts_in_the_dtype_of_the_queries(llava_folder: Path, pack: Pack) -> None:
    config = AutoBackbone.Config(path=str(llava_folder), dtype="bfloat16")
    backbone = AutoBackbone(config).eval()
    assert backbone.model.dtype == torch.bfloat16
    out = backbone(pack(backbone, backbone.tokenize(frames(1, 1), ["open"]), [1]), questions(backbone))
    assert out.dtype == torch.float32


def test_repeated_instructions_are_tokenized_once(llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images = load(llava_folder), frames(64, 2)
    first = backbone.tokenize(images, TEXTS[:2] * 32)
    one = backbone.tokenize(images[:1, :1], TEXTS[:1]).tokens[0]  # other tokens, of one camera
    assert first.tokens[0].count(backbone.image_id) == 2 * one.count(backbone.image_id) == 32

    def never(text: str) -> list[int]:
        raise AssertionError(text)

    monkeypatch.setattr(backbone.step_tokenizer, "encode", never)
    assert backbone.tokenize(images, TEXTS[:2] * 32).tokens == first.tokens
    assert backbone.tokenize(images[:1, :1], TEXTS[:1]).tokens == [one]
    with pytest.raises(AssertionError, match="lift"):
        backbone.tokenize(images[:1], ["lift"])


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 1, 28, 28, 3), torch.zeros(1, 1, 3, 28, 28, dtype=torch.uint8), torch.zeros(1, 28, 28, 3).byte()],
    ids=["float", "channels first", "no view"],
)
def test_wrong_images_are_refused(llava_folder: Path, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(M, V, H, W, 3\) .* got .*channels last"):
        load(llava_folder).tokenize(images, ["open"])


def test_a_sequence_beyond_the_context_is_refused(llava_folder: Path, pack: Pack) -> None:
    backbone = load(llava_folder)
    with pytest.raises(ValueError, match=r"context of 256: use fewer cameras or a shorter instruction"):
        backbone.tokenize(frames(1, 1), ["open " * 60])
    with pytest.raises(ValueError, match="one per step"):
        backbone.tokenize(frames(2, 1), ["open"])
    block = backbone.tokenize(frames(12, 1), ["open"] * 12)
    with pytest.raises(ValueError, match="exceeds the model's context of 256: use a shorter window"):
        backbone(pack(backbone, block, [12]), questions(backbone))
    with pytest.raises(ValueError, match="12 query positions, but 12 steps of 2 queries need 24"):
        backbone(pack(backbone, block, [1] * 12), questions(backbone, 2))


def test_the_error_for_a_path_without_a_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fail at once, whatever the network
    with pytest.raises(ValueError, match=r"`hf download nobody/nothing-of-the-kind --revision v1`"):
        AutoBackbone(AutoBackbone.Config(path="nobody/nothing-of-the-kind", revision="v1"))
    with pytest.raises(ValueError, match=r"has no config\.json"):
        AutoBackbone(AutoBackbone.Config(path=str(tmp_path)))
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gpt2' model, which does not read images"):
        AutoBackbone(AutoBackbone.Config(path=str(tmp_path)))


def test_an_incomplete_folder_is_refused(llava_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load(tmp_path)
    for file in llava_folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text((llava_folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"(?s)is not complete: .*model\.safetensors.*Copy the whole folder again"):
        load(tmp_path)


def test_a_family_that_needs_a_row_is_refused(llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUIRKS, "llava", Quirk(image_token="<picture>"))
    with pytest.raises(ValueError, match=r"'llava' model: no image token \(<picture>\); this family needs a row"):
        load(llava_folder)


def test_a_folder_without_preprocessing_is_refused(llava_folder: Path, tmp_path: Path) -> None:
    for file in llava_folder.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        load(tmp_path)
    content = {"image_processor": json.loads((llava_folder / "preprocessor_config.json").read_text())}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert load(tmp_path).preprocessor == content["image_processor"]


def test_a_prompt_must_contain_the_instruction() -> None:
    with pytest.raises(ConfigError, match=r"must contain \{instruction\}"):
        build(AutoBackbone.Config, {"path": "x", "prompt": "what next?"})


def test_the_table_names_real_families() -> None:
    assert all(AutoConfig.for_model(model_type) is not None for model_type in QUIRKS)
    assert look_up_quirk("llava") is DEFAULT
