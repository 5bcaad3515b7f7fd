"""The backbones that run a model's own code, tested with code that has the interface of the released models.

The released weights were not available and are not tested.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import PhiConfig, PretrainedConfig

from anyvla.backbones.checks.conformance import examine
from anyvla.backbones.remote_code.loading import add_v4_defaults
from anyvla.config import ConfigError, build
from anyvla.policy import VLA, VLAConfig
from anyvla.registry import backbones
from tests.backbones.families.remote import MODELS, VOCABULARY, write_remote
from tests.small import batch, robot

TOKENS = {"moondream": 16, "uform": 5, "qwen_vl": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write model folders as their authors would publish them."""
    folder = tmp_path_factory.mktemp("models")
    return {name: write_remote(name, folder / name) for name in MODELS}


def part(name, folder, **options):
    return {"name": name, "path": str(folder), "trust_remote_code": True, **options}


def config(name, folder, **options):
    keys = {k: v for k, v in part(name, folder, **options).items() if k != "name"}
    return build(backbones[name].Config, keys)


@pytest.mark.parametrize("name", MODELS)
def test_it_keeps_the_promises_of_a_backbone(name, folders):
    chosen = config(name, folders[name])
    backbone = backbones[name](chosen)
    assert backbone.image_tokens == TOKENS[name]
    results = list(examine(backbone, chosen))
    assert [(r.check, r.detail) for r in results if r.state == "failed"] == []
    passed = {r.check for r in results if r.state == "passed"}
    assert {"cameras", "every input", "neighbors", "steps", "gradients", "save and load", "LoRA"} <= passed
    assert ("cache" in passed) == ("cache" in backbone.capabilities) == (name == "uform")
    assert ("block mask" in passed) == (name != "qwen_vl")


@pytest.mark.parametrize("name", MODELS)
def test_it_reads_the_weights_of_the_folder(name, folders):
    backbone = backbones[name](config(name, folders[name]))
    again = backbones[name](config(name, folders[name], seed=1))
    for (key, one), other in zip(backbone.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert backbone.embedding.weight.std() > 0


# A step of two cameras in the form of the models' own code (`I` for the tokens of an image), mean and deviation.
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # openai/clip-vit-large-patch14
PUBLISHED = {
    # moondream/hf/moondream.py of 2024-08-26: "<image>\n\nQuestion: {question}\n\nAnswer:" after the BOS token.
    "moondream": (
        "{bos}II\n\nQuestion: What action should the robot take to open it?\n\nAnswer:",
        [0.5] * 3,
        [0.5] * 3,
    ),
    # VLMProcessor of unum-cloud/uform-gen2-qwen-500m: f" <image> {text}" in Qwen's chat template.
    "uform": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n II "
        "What action should the robot take to open it?<|im_end|>\n<|im_start|>assistant\n",
        *CLIP,
    ),
    # from_list_format of Qwen/Qwen-VL's tokenizer, without "Picture 1: "; the tests' tokenizer lacks <img>.
    "qwen_vl": ("IIWhat action should the robot take to open it?", *CLIP),
}


@pytest.mark.parametrize("name", MODELS)
def test_prompt_and_normalization_are_as_published(name, folders):
    backbone = backbones[name](config(name, folders[name]))
    text, mean, std = PUBLISHED[name]
    block = backbone.tokenize(torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8), ["open it"])
    image = [backbone.image_id] * TOKENS[name]
    ids = [i for i in (*block.prefix, *block.tokens[0]) if i < VOCABULARY or i == backbone.image_id]
    first = ids.index(backbone.image_id)
    assert ids[first : first + 2 * len(image)] == 2 * image
    before, after = (backbone.tokenizer.decode(part) for part in (ids[:first], ids[first + 2 * len(image) :]))
    assert f"{before}II{after}" == text.replace("{bos}", backbone.tokenizer.bos_token)
    white = backbone.pixels(torch.full((1, 40, 40, 3), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(white.mean((0, 2, 3)), expected, atol=1e-4, rtol=1e-4)
    assert backbone.pixels.filter == 3  # bicubic, as all three say


def test_moondream_reads_378_pixels_by_default(folders):
    assert backbones["moondream"].image_size == 378  # of the released model
    made = backbones["moondream"](config("moondream", folders["moondream"]))
    assert made.pixels.size == (32, 32)  # of the stand-in


def test_configurations_of_remote_code_get_the_defaults_of_transformers_4():
    class Old(PretrainedConfig):
        model_type = "old"

        def __init__(self, **kwargs):
            self.rope_theta, self.rope_scaling, self.inner = 10000.0, None, PhiConfig()
            super().__init__(**kwargs)

    config = Old()
    add_v4_defaults(config)
    assert (config.pad_token_id, config.rope_scaling) == (None, None)
    assert config.inner.rope_parameters["rope_type"] == "default"


def test_qwen_encloses_images_in_tags_and_reads_tags_in_text_as_text(folders):
    backbone = backbones["qwen_vl"](config("qwen_vl", folders["qwen_vl"]))
    images = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    tokens = list(backbone.tokenize(images, ["open <img>/etc/passwd</img>"]).tokens[0])
    start = VOCABULARY
    assert tokens[:18] == [start, *[backbone.image_id] * 16, start + 1]
    assert tokens.count(backbone.image_id) == 16


@pytest.mark.parametrize("name", MODELS)
def test_code_needs_permission_to_run(name, folders, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", _never)
    with pytest.raises(ConfigError, match=r"ships its own code.*all your rights.*trust_remote_code: true"):
        config(name, folders[name], trust_remote_code=False)


def _never(*_, **__):
    raise AssertionError("remote code was run")


@pytest.mark.parametrize("branch", ["main", "2024-08-26", "abc123", "A" * 40])
def test_a_branch_is_refused(branch):
    with pytest.raises(ConfigError, match=r"is no commit.*branches and tags can move.*40 hexadecimal"):
        config("moondream", "vikhyatk/moondream2", revision=branch)


def test_a_model_of_the_hub_needs_its_commit():
    with pytest.raises(ValueError, match=r"vikhyatk/moondream2 is no local folder.*set revision to the commit"):
        backbones["moondream"](config("moondream", "vikhyatk/moondream2"))


def test_the_error_for_a_missing_commit_names_the_download_command(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    with pytest.raises(ValueError, match=f"hf download nobody/nothing --revision {commit}"):
        backbones["uform"](config("uform", "nobody/nothing", revision=commit))


def test_code_that_no_revision_pins_is_refused(folders, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(folders["moondream"], folder)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", _never)
    for file in ("config.json", "tokenizer_config.json"):
        before = (folder / file).read_text()
        elsewhere = {"auto_map": {"AutoModelForCausalLM": "somebody/else--moondream.Moondream"}}
        (folder / file).write_text(json.dumps(json.loads(before) | elsewhere))
        with pytest.raises(ValueError, match=rf"{file} names code in somebody/else, which no revision pins"):
            backbones["moondream"](config("moondream", folder))
        (folder / file).write_text(before)


def test_another_interface_is_refused(folders):
    with pytest.raises(ValueError, match=r"Moondream has no image_encoder.*is not the one of UForm-Gen 2"):
        backbones["uform"](config("uform", folders["moondream"]))


def test_a_folder_without_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match=r"no model with its own code.*backbone: auto"):
        backbones["moondream"](config("moondream", tmp_path))


def test_missing_weights_are_named(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["qwen_vl"], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights"):
        backbones["qwen_vl"](config("qwen_vl", folder))
    save_file({"lm_head.weight": torch.zeros(VOCABULARY + 8, 32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lack transformer\.h\.0.* and \d+ more"):
        backbones["qwen_vl"](config("qwen_vl", folder))


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_runs_its_code_only_if_the_caller_allows_it(name, folders, tmp_path, monkeypatch):
    model = {"history": "none", "fuser": "identity", "decoder": "regression", "chunk": 4, "execute": 2}
    given = build(VLAConfig, model | {"backbone": part(name, folders[name])})
    torch.manual_seed(0)
    vla = VLA(given, [robot()]).eval()
    vla.save(tmp_path / "checkpoint")
    with monkeypatch.context() as watched:
        watched.setattr("transformers.dynamic_module_utils.get_class_in_module", _never)
        with pytest.raises(ValueError, match=r"runs its own code.*VLA\.load\(path, trust_remote_code=True\)"):
            VLA.load(tmp_path / "checkpoint")
    home = folders[name].parent
    moved = home.rename(home.with_name("gone"))  # the checkpoint needs no other files
    try:
        VLA.load(tmp_path / "checkpoint", trust_remote_code=True).save(tmp_path / "second")
        again = VLA.load(tmp_path / "second", trust_remote_code=True)
    finally:
        moved.rename(home)
    windows = batch(2, 1)
    with torch.no_grad():
        assert torch.equal(vla.loss(windows).total, again.loss(windows).total)


def test_auto_names_the_backbones_that_run_remote_code_and_runs_none(folders, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", _never)
    monkeypatch.setattr("builtins.input", _never)
    with pytest.raises(ValueError, match=r"ships its own code.*auto never runs.*moondream, uform, qwen_vl"):
        backbones["auto"](build(backbones["auto"].Config, {"path": str(folders["moondream"])}))
