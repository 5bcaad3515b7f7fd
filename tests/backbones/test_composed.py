import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import nn
from transformers import (
    AutoTokenizer,
    Cohere2Config,
    Cohere2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from anyvla.backbones.adapting.options import Options
from anyvla.backbones.checks.conformance import examine
from anyvla.backbones.composed import ComposedBackbone
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.backbones.template import Template
from anyvla.config import STRICT, build
from anyvla.sequence.layout import lay_out

VOCABULARY = len(AutoTokenizer.from_pretrained(TOKENIZER))
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def spread(model):
    """Enlarge the weights, so that inputs matter as in a trained model."""
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.2)
    return model


class Plain(ComposedBackbone):
    """A map of features with batch norms, before a Llama."""

    image_size = 32

    def load_vision(self, config, pretrained):
        self.asked = pretrained
        return spread(nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16)))

    def load_language(self, config):
        sizes = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **LLAMA)
        return spread(LlamaForCausalLM(sizes)), AutoTokenizer.from_pretrained(TOKENIZER)


class Library(Plain):
    """A tower of transformers, as wide as the language model, which is a Phi."""

    def load_vision(self, config, pretrained):
        assert pretrained, "a tower of transformers is rebuilt from its configuration"
        sizes = {**LLAMA, "image_size": 32, "patch_size": 16}
        return spread(SiglipVisionModel(SiglipVisionConfig(**sizes)))

    def load_language(self, config):
        sizes = PhiConfig(vocab_size=VOCABULARY, **LLAMA)
        return spread(PhiForCausalLM(sizes)), AutoTokenizer.from_pretrained(TOKENIZER)


class NoPositions(Plain):
    """MPT takes no positions."""

    def load_language(self, config):
        sizes = MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=512)
        return spread(MptForCausalLM(sizes)), AutoTokenizer.from_pretrained(TOKENIZER)


class Windowed(Plain):
    """Some layers of the language model have a sliding window that is shorter than the sequences here."""

    def load_language(self, config):
        layers = ["sliding_attention", "full_attention"]
        sizes = Cohere2Config(vocab_size=VOCABULARY, layer_types=layers, sliding_window=24, **LLAMA)
        return spread(Cohere2ForCausalLM(sizes)), AutoTokenizer.from_pretrained(TOKENIZER)


def frames(steps=1, views=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (steps, views, 40, 40, 3), dtype=torch.uint8, generator=generator)


def read(backbone, images, text="open it"):
    block = backbone.tokenize(images, [text] * len(images))
    sequence = lay_out(block, [1] * len(images), 1, pad_id=backbone.pad_id, query_id=backbone.query_id)
    return backbone(sequence, torch.ones(1, backbone.width) * 0.1)


@pytest.mark.parametrize("cls", [Plain, Library, NoPositions, Windowed])
def test_it_passes_the_checks(cls):
    results = list(examine(cls(Options()), Options()))
    assert [(r.check, r.detail) for r in results if r.state == "failed"] == []
    not_applicable = {r.check for r in results if r.state == "not applicable"}
    assert not_applicable == ({"cache"} if cls is NoPositions else set())


@pytest.mark.parametrize("option", [{"resampler": {"tokens": 3, "depth": 1}}, {"layers": 1}])
def test_it_passes_the_checks_with_options(option):
    options = build(Options, option)
    backbone = Plain(options)
    assert backbone.image_tokens == (3 if "resampler" in option else 16)
    assert len(backbone.model.model.layers) == option.get("layers", 2)
    results = list(examine(backbone, options))
    assert [(r.check, r.detail) for r in results if r.state == "failed"] == []


def test_too_many_layers_are_refused():
    with pytest.raises(ValueError, match=r"layers: 3, but the language model of this 'llama' has 2 layers"):
        Plain(build(Options, {"layers": 3}))


@pytest.mark.parametrize(("kept", "same"), [("language_only", "model"), ("vision_only", "tower")])
def test_parts_that_are_not_pretrained_are_initialized_anew(kept, same):
    class Trained(Plain):
        def load_components(self, config, assets):
            pair = super().load_components(config, assets)
            for weight in (*pair.vision.parameters(), *pair.language.parameters()):
                nn.init.constant_(weight, 0.25)
            return pair

    backbone = Trained(build(Options, {"pretrained": kept}))
    for part in ("model", "tower"):
        weights = [w for n, w in getattr(backbone, part).named_parameters() if w.ndim > 1]
        assert all((w == 0.25).all() for w in weights) == (part == same)


@pytest.mark.parametrize("kept", ["full", "language_only", "vision_only", "none"])
def test_batch_norms_of_an_untrained_tower_get_statistics_and_others_keep_theirs(kept):
    class Trained(Plain):
        def load_vision(self, config, pretrained):
            tower = super().load_vision(config, pretrained)
            nn.init.constant_(tower[1].running_mean, 7)
            nn.init.constant_(tower[1].running_var, 9)
            return tower

    one, two = (Trained(build(Options, {"pretrained": kept, "seed": 1})).tower[1] for _ in range(2))
    if kept in ("full", "vision_only"):
        assert (one.running_mean == 7).all()
        assert (one.running_var == 9).all()
        return
    assert one.running_mean.abs().max() < 1
    assert 0 < one.running_var.max() < 1  # not those of an untrained norm, which are 0 and 1
    assert torch.equal(one.running_mean, two.running_mean)


def test_equal_widths_need_no_projector_and_others_get_two_layers():
    assert isinstance(Library(Options()).projection, nn.Identity)
    projection = Plain(Options()).projection
    layers = [m for m in projection if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(16, 32), (32, 32)]
    first, last = layers
    seen = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(projection(seen), last(nn.functional.gelu(first(seen))))  # arXiv 2310.03744


def test_a_map_is_read_row_by_row():
    class Places(Plain):
        def extract_features(self, pixels):  # (N, 16, 4, 4), each place its number
            return torch.arange(16.0).view(1, 1, 4, 4).expand(len(pixels), 16, -1, -1)

        def build_projector(self, given, wanted):
            return nn.Linear(given, wanted)

    backbone = Places(Options())
    nn.init.constant_(backbone.projection.weight, 1 / 16)
    nn.init.zeros_(backbone.projection.bias)
    seen = backbone.embed_images(frames(views=2))
    assert seen.shape == (2, 16, 32)
    torch.testing.assert_close(seen[1, :, 0], torch.arange(16.0))


def test_new_weights_follow_the_seed_and_leave_other_randomness_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (Plain(build(Options, {"seed": seed})).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["projection.0.weight"], other["projection.0.weight"])


def test_assets_rebuild_it_without_weights(tmp_path):
    first = Library(Options())
    first.save_assets(tmp_path / "library")
    assert {p.name for p in (tmp_path / "library").iterdir()} == {"language", "vision"}
    assert not list(tmp_path.rglob("*.safetensors"))

    class Bare(Plain):
        def load_language(self, config):
            raise AssertionError("downloads")

    Plain(Options()).save_assets(tmp_path / "plain")
    again = Bare(Options(), assets=tmp_path / "plain")
    assert again.asked is False
    assert type(again.model) is LlamaForCausalLM
    assert type(Library(Options(), assets=tmp_path / "library").tower) is SiglipVisionModel


def test_only_a_model_of_transformers_is_rebuilt(tmp_path):
    Plain(Options()).save_assets(tmp_path)
    file = tmp_path / "language" / "config.json"
    file.write_text(file.read_text().replace("LlamaForCausalLM", "pipeline"))
    with pytest.raises(ValueError, match=r"names 'pipeline', which is no model of transformers"):
        Plain(Options(), assets=tmp_path)


def test_no_instruction_contains_the_image_id():
    backbone = Plain(Options()).eval()
    everything = backbone.tokenizer.decode(range(VOCABULARY))
    special = " ".join(backbone.tokenizer.all_special_tokens)
    for text in (everything, special, f"<{backbone.image_id}>"):
        assert backbone.image_id not in backbone.step_tokenizer.encode(text)
    assert backbone.image_id > backbone.embedding.num_embeddings
    tokens = list(backbone.tokenize(frames(), [special]).tokens[0])
    assert tokens.count(backbone.image_id) == 16
    assert read(backbone, frames(), special).isfinite().all()


def test_a_tokenizer_of_another_model_is_refused():
    class Mixed(Plain):
        def load_language(self, config):
            model, tokenizer = super().load_language(config)
            tokenizer.add_tokens([f"<new{i}>" for i in range(9)])
            return model, tokenizer

    message = rf"knows ids up to {VOCABULARY + 8}, but the language model embeds {VOCABULARY}.*trained with"
    with pytest.raises(ValueError, match=message):
        Mixed(Options())


def test_a_subclass_can_set_template_and_prompt():
    class Chatty(Plain):
        template = Template(opening="", before_image="[", after_image="]", text=" {prompt}!")

        @dataclass(frozen=True, kw_only=True, config=STRICT)
        class Config(Options):
            prompt: str = "do {instruction}"

    backbone = Chatty(Chatty.Config())
    block = backbone.tokenize(frames(views=2), ["it"])
    texts = [backbone.tokenizer.decode(t) for t in ([t for t in block.tokens[0] if t != backbone.image_id],)]
    assert texts[0].replace(" ", "") == "[][]doit!"
    assert list(block.prefix) == []


def test_pixels_reach_the_tower_normalized():
    class Watched(Plain):
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)

        def extract_features(self, pixels):
            self.pixels_seen = pixels
            return super().extract_features(pixels)

    backbone = Watched(Options())
    read(backbone, torch.full((1, 1, 8, 8, 3), 255, dtype=torch.uint8))
    expected = torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 2.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(backbone.pixels_seen, expected)


def test_defaults_are_as_documented():
    assert ComposedBackbone.image_size == 224
    assert ComposedBackbone.mean == ComposedBackbone.std == (0.5, 0.5, 0.5)
    assert ComposedBackbone.template == Template(opening="{bos}", text="\n{prompt}")
    assert Plain(Options()).pixels.filter == 3  # bicubic


def test_batch_norms_stay_as_trained_while_training():
    backbone = Plain(Options()).train()
    statistics = backbone.tower[1].running_mean.clone()
    together, alone = read(backbone, frames(3)), read(backbone, frames(3)[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(backbone.tower[1].running_mean, statistics)
    assert backbone.model.training


def test_a_tower_that_gives_no_tokens_is_refused():
    class Pooled(Plain):
        def extract_features(self, pixels):
            return self.tower(pixels).mean((2, 3))

    with pytest.raises(ValueError, match=r"gave \(1, 16\) for 1 images: extract_features\(\) must return tokens"):
        Pooled(Options())


def test_a_subclass_must_define_a_vision_tower():
    class Nothing(ComposedBackbone):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing has no vision tower: define load_vision\(\)"):
        Nothing(Options())


def test_a_language_model_of_another_library_needs_its_own_save_assets(tmp_path):
    class Own(LlamaForCausalLM):
        pass

    class Foreign(Plain):
        def load_language(self, config):
            model, tokenizer = super().load_language(config)
            return Own(model.config), tokenizer

    with pytest.raises(
        ValueError, match=r"Own is no model of transformers.*define load_components\(\) and save_assets\(\)"
    ):
        Foreign(Options()).save_assets(tmp_path)
