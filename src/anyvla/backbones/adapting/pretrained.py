"""Reads a model's weights from disk, completely or in part, without a second copy in memory.

Parts can be initialized anew, layers can be dropped, and checkpoints that do not fit their configuration are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import cached_files

from anyvla.backbones.adapting.architecture_only import builds_architecture_only
from anyvla.backbones.adapting.options import Pretrained
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.base import MODEL_PARTS, Backbone, ModelPart
from anyvla.files.documents import as_mapping, read_object
from anyvla.files.inside import check_name
from anyvla.files.tensor_files import join_first

KEPT: dict[Pretrained, tuple[ModelPart, ...]] = {
    "full": MODEL_PARTS,
    "language_only": ("language", "embeddings"),
    "vision_only": ("vision",),
    "none": (),
}
LAYERS_BY_NUMBER = {"cross_attention_layers", "moe_layers", "mlp_only_layers", "full_attn_idxs"}

SIDE_BY_SIDE = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}  # Gemma 3n and 4


def read_model(source: str, revision: str | None, config: Any, dtype: torch.dtype) -> Any:
    """Return the model of `config` with the weights of a folder or hub id, in `dtype`.

    Raises OSError if there are none, and ValueError if they do not fit: every weight must come from the files.
    """
    try:
        stored = dict(_stored(source, revision))
        _cut_rows_of_layers(stored, config)
        with _quiet(), torch.random.fork_rng(devices=[]):
            model, info = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=stored, dtype=dtype,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except SafetensorError as error:
        raise OSError(f"a safetensors file is damaged ({error})") from error
    missing = list(info["missing_keys"])
    mismatched = [f"{name} is {tuple(there)}, not {tuple(here)}" for name, there, here in info["mismatched_keys"]]
    if missing or mismatched:
        faults = {"missing": missing, "of another shape": mismatched, "not of this model": info["unexpected_keys"]}
        raise ValueError(
            f"{source} holds a checkpoint whose classes don't match its config.json ({config.model_type!r}): "
            + "; ".join(f"{fault}: {join_first(names)}" for fault, names in faults.items() if names)
            + ". Use the original folder, or the config.json that belongs to these weights"
        )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.untyped_storage().nbytes() > tensor.nbytes:  # a view into the file cannot be saved
            tensor.data = tensor.data.clone()
    return model


def _stored(source: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    """Yield names and lazy slices of all tensors, not memory-mapped: a map would also keep the files in memory."""
    no_errors = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    single = cached_file(source, SAFE_WEIGHTS_NAME, revision=revision, **no_errors)
    files: Iterable[str] = (single,)
    if single is None:
        index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, revision=revision, **no_errors)
        if index is None:
            raise OSError(
                f"there is neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME} (weights in pickled files, "
                ".bin or .pt, are not read, as they can run code: load and save the model with transformers once)"
            )
        names = sorted({str(name) for name in as_mapping(read_object(Path(index)).get("weight_map"), index).values()})
        for name in names:
            check_name(name, Path(index).parent)
        files = cached_files(source, names, revision=revision)
    for path in files:
        file = safe_open(path, "pt", backend="pread")
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            yield name, file.get_slice(name)


def _cut_rows_of_layers(stored: dict[str, Any], config: Any) -> None:
    """Keep the slices of the first layers where one tensor holds all layers side by side."""
    text = config.get_text_config()
    for name in [n for n in stored if n.endswith(tuple(SIDE_BY_SIDE))]:
        axis = next(a for ending, a in SIDE_BY_SIDE.items() if name.endswith(ending))
        wanted = text.num_hidden_layers * text.hidden_size_per_layer_input
        if stored[name].get_shape()[axis] > wanted:
            stored[name] = stored[name][:wanted] if axis == 0 else stored[name][:, :wanted]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the report of transformers: dropped layers are expected, and everything else raises an error here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def truncate_config(config: Any, layers: int | None) -> None:
    """Keep the first `layers` layers of the language model (SmolVLA, arXiv 2506.01844) in its configuration.

    Raises ValueError if it has fewer, or if no layer that reads images would remain.
    """
    # The encoder's configuration if an encoder reads the images (T5Gemma 2).
    text = getattr(getattr(config, "encoder", None), "text_config", None) or config.get_text_config()
    whole = text.num_hidden_layers
    if layers is None or layers == whole:
        return
    if layers > whole:
        raise ValueError(f"layers: {layers}, but the language model of this {config.model_type!r} has {whole} layers")
    text.num_hidden_layers = layers
    shared = getattr(text, "num_kv_shared_layers", None)  # Gemma's last layers have no keys and values of their own
    if shared:
        text.num_kv_shared_layers = max(0, layers - (whole - shared))
    for name, value in list(vars(text).items()):
        if not isinstance(value, (list, tuple)) or re.search("token", name):
            continue
        if name in LAYERS_BY_NUMBER:
            kept = [i for i in value if i < layers]
            if name == "cross_attention_layers" and value and not kept:
                raise ValueError(f"layers: {layers}, but images are read by layers {list(value)}: keep some of them")
            setattr(text, name, kept)
        elif len(value) == whole:
            setattr(text, name, type(value)(value[:layers]))


def reinitialize(backbone: Backbone, pretrained: Pretrained, seed: int) -> None:
    """Initialize all parts except the ones that `pretrained` keeps, as the model's family does, from `seed`.

    LM head and decoder are kept with the language part. Raises ValueError for a module that cannot initialize itself.
    """
    if pretrained == "full" or builds_architecture_only():
        return
    kept: set[nn.Parameter] = {w for part in KEPT[pretrained] for w in parameters_by_part(backbone)[part]}
    if "language" in KEPT[pretrained]:
        kept |= {w for module in getattr(backbone, "unused_modules", ()) for w in module.parameters()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _initialize(backbone, kept)


def _initialize(module: nn.Module, kept: set[nn.Parameter]) -> None:
    if isinstance(module, PreTrainedModel):
        for inner in module.modules():
            inner._is_hf_initialized = False
            for weight in inner.parameters(recurse=False):
                weight._is_hf_initialized = weight in kept
            below = [w in kept for w in inner.parameters()]
            for buffer in inner.buffers(recurse=False):  # statistics follow the weights beside and below them
                buffer._is_hf_initialized = any(below) if below else bool(kept)
        module.initialize_weights()
        return
    if set(module.parameters(recurse=False)) - kept:
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            name = type(module).__name__
            raise ValueError(f"pretrained: a {name} has weights, but no reset_parameters to initialize them")
        reset()
    for child in module.children():
        _initialize(child, kept)
