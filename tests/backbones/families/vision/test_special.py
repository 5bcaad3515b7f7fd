"""Inputs of unusual families equal the results of the processors of transformers for the same images and prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
from transformers.models.kosmos2_5.image_processing_pil_kosmos2_5 import Kosmos2_5ImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.families.vision import patches as vision_patches
from anyvla.backbones.families.vision import special
from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.images.pixels import Pixels
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import TokenSequence
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import tiny_tokenizer, token, write_family


def frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def load(name: str, folder: Any) -> AutoBackbone:
    family = FAMILIES[name]
    path = str(write_family(family, folder))
    return AutoBackbone(AutoBackbone.Config(path=path, prompt="do {instruction}", **family.options)).eval()


def sequence_of(backbone: AutoBackbone, images: Tensor, texts: list[str], groups: list[int]) -> TokenSequence:
    block = backbone.tokenize(images, texts)
    return lay_out(block, groups, 1, pad_id=backbone.pad_id, query_id=backbone.query_id)


def arguments(backbone: AutoBackbone, sequence: TokenSequence) -> dict[str, Any]:
    with backbone._image_inputs(sequence) as given:
        return given


@pytest.mark.wrong_types
def test_kosmos_reads_the_patches_of_its_image_processor() -> None:
    images = frames(2, 1, 64, 64, 3)
    theirs = Kosmos2_5ImageProcessorPil(patch_size={"height": 16, "width": 16}, max_patches=16)
    expected = theirs([image.numpy() for image in images[:, 0]], return_tensors="pt")["flattened_patches"]
    pixels = Pixels({"do_rescale": False, "do_normalize": False}, None, 64)(images.flatten(0, 1))
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_embed_hidden_size=768))
    ours = special.cut_patches_standardized(SequenceImages(pixels, SimpleNamespace(images=images), None, config))  # type: ignore[arg-type]
    assert torch.allclose(ours["flattened_patches"], expected, atol=1e-4)


@pytest.mark.wrong_types
def test_a_uniform_image_causes_no_division_by_zero() -> None:
    images = torch.full((1, 1, 32, 32, 3), 7, dtype=torch.uint8)
    pixels = Pixels({"do_rescale": False, "do_normalize": False}, None, 32)(images.flatten(0, 1))
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_embed_hidden_size=768))
    patches = special.cut_patches_standardized(SequenceImages(pixels, SimpleNamespace(images=images), None, config))  # type: ignore[arg-type]
    assert patches["flattened_patches"].abs().max() <= 2  # rows and columns


@pytest.mark.wrong_types
def test_fuyu_reads_the_patches_of_its_image_processor() -> None:
    images = frames(2, 60, 60, 3)
    theirs = FuyuImageProcessorPil(size={"height": 60, "width": 60})
    shown = theirs([[image.numpy()] for image in images], return_tensors="pt")["images"]
    expected = torch.cat([torch.from_numpy(theirs.patchify_image(np.asarray(image[0]))) for image in shown])
    pixels = Pixels({"image_mean": 0.5, "image_std": 0.5}, None, 60)(images)
    ours = vision_patches.cut_patches_of_all(SequenceImages(pixels, None, None, SimpleNamespace(patch_size=30)))  # type: ignore[arg-type]
    assert torch.allclose(ours["pixel_values"], expected.reshape(1, 8, -1).float(), atol=1e-5)


@pytest.mark.wrong_types
def test_molmo_pools_patches_as_its_image_processor_does() -> None:
    """Each token pools 2 x 2 patches; -1 is beyond the edge."""
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=7))
    given = special.cut_patches_pooled(SequenceImages(frames(2, 3, 35, 35).float(), None, None, config))  # type: ignore[arg-type]
    expected = []
    for image in range(2):
        for row in range(0, 5, 2):
            for column in range(0, 5, 2):
                near = [(row + r, column + c) for r in (0, 1) for c in (0, 1)]
                expected.append([image * 25 + r * 5 + c if r < 5 and c < 5 else -1 for r, c in near])
    assert given["image_token_pooling"].tolist() == expected
    assert given["image_grids"].tolist() == [[3, 3, 0, 0]] * 2
    assert special.count_molmo_tokens(config, (35, 35)) == (3, 3)


def test_llama_masks_images_like_its_processor(tmp_path: Any) -> None:
    backbone = load("mllama", tmp_path)
    sequence = sequence_of(backbone, frames(3, 2, 40, 40, 3), ["open", "close it", "push"], [2, 1])
    given = arguments(backbone, sequence)
    length = sequence.input_ids.shape[1]
    for row, steps in enumerate([2, 1]):
        ids = sequence.input_ids[row][sequence.attention_mask[row]].tolist()
        spans = get_cross_attention_token_mask(ids, token("<|image|>"))
        expected = convert_sparse_cross_attention_mask_to_dense([spans], [[1] * 2 * steps], 4, length)[0]
        expected[len(ids) :] = 0  # padding reads nothing
        ours = given["cross_attention_mask"][row].numpy()
        assert (ours[:, : 2 * steps] == expected).all()
        assert not ours[:, 2 * steps :].any()
    assert given["pixel_values"].shape == (2, 4, 4, 3, 28, 28)
    assert not given["pixel_values"][:, :, 1:].any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fuyu", ("|SPEAKER|" * 4 + "|NEWLINE|") * 4 + "<s>do it<0x04>"),
        (
            "emu3",
            "<s><|image start|>4*4<|image token|>" + "<image>" * 4 * 5 + "<|extra_201|><|image end|>do it",
        ),
        ("kosmos-2.5", "<s><image>" + "<bbox>" * 4 + "</image>do it"),
        ("molmo2", "<s><low_res_im_start>" + ("<im_patch>" * 3 + "<im_col>") * 3 + "<im_end>do it"),
        ("mllama", "<|image|><s>do it"),
        ("blip2-opt", "<image>" * 4 + "<s>do it"),
        ("blip2-t5", "<image>" * 4 + "do it</s>"),
        ("florence2", "<image>" * 17 + "<s>do it</s>"),
    ],
)
def test_a_prompt_has_the_form_of_its_processor(name: str, expected: str, tmp_path: Any) -> None:
    backbone = load(name, tmp_path)
    block = backbone.tokenize(frames(1, 1, 40, 40, 3), ["it"])
    assert backbone.tokenizer.decode([*block.prefix, *block.tokens[0]]) == expected


def test_the_q_former_reads_the_instruction_of_the_step_of_each_image(tmp_path: Any) -> None:
    backbone = load("instructblip", tmp_path)
    texts = ["open", "close the drawer", "push"]
    given = arguments(backbone, sequence_of(backbone, frames(3, 2, 40, 40, 3), texts, [2, 1]))
    expected = tiny_tokenizer()([f"do {text}" for text in texts for _ in range(2)], padding=True, return_tensors="pt")
    assert torch.equal(given["qformer_input_ids"], expected["input_ids"])
    assert torch.equal(given["qformer_attention_mask"], expected["attention_mask"])


def test_the_tokenizer_of_the_q_former_is_saved(tmp_path: Any) -> None:
    backbone = load("instructblip", tmp_path / "model")
    backbone.save_assets(tmp_path / "assets")
    assert AutoTokenizer.from_pretrained(tmp_path / "assets", subfolder="qformer_tokenizer")("it")["input_ids"]


def test_a_model_without_the_tokenizer_of_its_q_former_is_refused(tmp_path: Any) -> None:
    folder = write_family(FAMILIES["instructblip"], tmp_path)
    for file in (folder / "qformer_tokenizer").iterdir():
        file.unlink()
    (folder / "qformer_tokenizer").rmdir()
    with pytest.raises(ValueError, match=r"has no tokenizer in its folder 'qformer_tokenizer'.* copy that folder"):
        AutoBackbone(AutoBackbone.Config(path=str(folder)))


def test_the_decoder_of_an_encoder_decoder_does_not_run(tmp_path: Any) -> None:
    backbone = load("florence2", tmp_path)
    ran: list[bool] = []
    backbone.model.model.language_model.decoder.register_forward_pre_hook(lambda *_: ran.append(True))
    backbone(sequence_of(backbone, frames(1, 1, 40, 40, 3), ["open"], [1]), torch.zeros(1, 32))
    assert not ran
    assert not any(name for name, weight in backbone.named_parameters() if ".decoder." in name and weight.requires_grad)


def test_the_tower_of_discrete_images_is_frozen(tmp_path: Any) -> None:
    parts = load("emu3", tmp_path).part_modules()
    assert not any(w.requires_grad for module in parts["vision"] for w in module.parameters())
    assert all(w.requires_grad for module in parts["language"] for w in module.parameters())


def test_a_tower_inside_an_encoder_is_vision(tmp_path: Any) -> None:
    backbone = load("t5gemma2", tmp_path)
    parts = parameters_by_part(backbone)
    encoder = backbone.model.get_encoder()
    assert set(parts["vision"]) == set(encoder.vision_tower.parameters())
    assert set(parts["projector"]) == set(encoder.multi_modal_projector.parameters())


@pytest.mark.parametrize("name", ["florence2", "blip2-t5", "t5gemma2"])
def test_the_first_layers_of_an_encoder_can_be_kept(name: str, tmp_path: Any) -> None:
    family = FAMILIES[name]
    path = str(write_family(family, tmp_path))
    backbone = AutoBackbone(AutoBackbone.Config(path=path, layers=1, **family.options))
    encoder = backbone.model.get_encoder()
    text = getattr(encoder, "text_model", encoder)
    assert len(getattr(text, "layers", None) or text.block) == 1
