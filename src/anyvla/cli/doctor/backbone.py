"""`anyvla doctor backbone MODEL`: a model's card, and whether it keeps the promises of a backbone.

MODEL is a model folder or an id of the Hugging Face hub; or the name of a backbone that needs none, such as `nano`.
It is built as a recipe would build it (`--option KEY=VALUE` is a line of the recipe's section `backbone:`), and the
checks are those that every family of the test matrix passes. Exit status 0: no check failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from anyvla.cli.common import ProgressBar, console
from anyvla.cli.console import Console
from anyvla.config import Part, build, override
from anyvla.registry import backbones, suggest

if TYPE_CHECKING:
    from anyvla.backbones.base import Backbone
    from anyvla.backbones.checks.conformance import Result

COLORS = {"passed": "green", "failed": "red", "not applicable": "yellow"}


@dataclass(frozen=True)
class BackboneReport:
    """What one backbone is."""

    name: str  # in a recipe
    model_class: str
    model_type: str
    parameters: Mapping[str, int]  # of each part; `head`: an LM head of its own, which belongs to none
    trainable: int  # parameters
    width: int  # of a readout
    image_size: tuple[int, int] | None  # pixels (h, w) that an image is scaled to
    image_tokens: int | None  # of one camera image
    image_wrapping: int | None  # tokens around and between them
    context: int | None  # tokens
    dtype: str
    capabilities: tuple[str, ...]
    note: str = ""
    untrained: str = ""  # weights that are as they were initialized
    warnings: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Print the card and the checks; the exit status is 0 only if none failed."""
    parser = argparse.ArgumentParser(
        prog="anyvla doctor backbone", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model folder, an id of the hub, or the name of a backbone that needs neither")
    parser.add_argument("--name", help=f"the backbone that reads it: {', '.join(backbones)}; default: auto")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the backbone; as often as needed"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--json", action="store_true", help="machine-readable, on standard output")
    options = parser.parse_args(argv)
    part = choose_backbone(options.model, options.name, options.option)

    from anyvla.backbones.checks.conformance import CHECKS, examine

    _silence_transformers()
    backbone = _build(part, options.device)
    card = describe(backbone, part.name)
    if not options.json:
        _print_report(card)
    _warn_about_memory(card, options.device)
    results: list[Result] = []
    with ProgressBar("checks") as bar:
        names = [*CHECKS, ""]
        bar(0, len(CHECKS), names[0])
        for result in examine(backbone, part.config):
            results.append(result)
            bar(len(results), len(CHECKS), names[len(results)])
    failed = [r.check for r in results if r.state == "failed"]
    if options.json:
        document = {"card": dataclasses.asdict(card), "checks": [dataclasses.asdict(r) for r in results]}
        print(json.dumps(document | {"failed": failed}, indent=1))
    else:
        _print_results(results)
    return 1 if failed else 0


def choose_backbone(model: str, name: str | None, options: Sequence[str]) -> Part:
    """The backbone that is meant, with its checked options. Raises ConfigError or ValueError."""
    wrong = [o for o in options if "=" not in o]
    if wrong:
        raise ValueError(f"--option {wrong[0]} has no value; write --option KEY=VALUE, as in --option dtype=bfloat16")
    alone = name in (None, model) and model in backbones and not Path(model).exists()
    chosen = model if alone else name or "auto"
    if chosen not in backbones:
        raise ValueError(f"there is no backbone {chosen!r}: {suggest(chosen, list(backbones))}")
    target = backbones[chosen]
    given: dict[str, Any] = {}
    if not alone:
        if "path" not in {f.name for f in dataclasses.fields(target.Config)}:
            raise ValueError(
                f"backbone {chosen!r} reads no model folder; run `anyvla doctor backbone {chosen}`, with "
                "--option KEY=VALUE for its options"
            )
        given["path"] = model
    data = override(given, [f"--{o}" for o in options])
    return Part("backbones", chosen, build(target.Config, data, where=f"backbone {chosen!r}"))


def _build(part: Part, device: str) -> Backbone:
    try:
        return part.build().to(device)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # a stranger's model may raise anything; its traceback helps only who asks for it
        if os.environ.get("ANYVLA_DEBUG"):
            raise
        raise ValueError(
            f"backbone {part.name!r} cannot be built: {type(error).__name__}: {error} (ANYVLA_DEBUG=1 shows where)"
        ) from error


def describe(backbone: Backbone, name: str) -> BackboneReport:
    """The card of a backbone that stands."""
    model: Any = getattr(backbone, "model", backbone)
    pixels, quirk = getattr(backbone, "pixels", None), getattr(backbone, "quirk", None)
    tokens, places = getattr(backbone, "image_tokens", None), getattr(backbone, "tokens_per_camera", None)
    return BackboneReport(
        name=name,
        model_class=type(model).__name__,
        model_type=getattr(getattr(model, "config", None), "model_type", ""),
        parameters=_count_parameters(backbone),
        trainable=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        width=backbone.width,
        image_size=getattr(pixels, "size", None),
        image_tokens=tokens,
        image_wrapping=None if tokens is None or places is None else places - tokens,
        context=getattr(backbone, "context", None),
        dtype=str(next(backbone.parameters()).dtype).removeprefix("torch."),
        capabilities=tuple(sorted(backbone.capabilities)),
        note=getattr(quirk, "note", ""),
        untrained=_describe_fresh_weights(backbone),
        warnings=tuple(_conflicting_token_ids(backbone)),
    )


def _describe_fresh_weights(backbone: Backbone) -> str:
    """How many weights were never trained, so that the checks run on redrawn ones; "" if all were."""
    from anyvla.backbones.checks.fresh_weights import fresh_weights

    found, count = fresh_weights(backbone), sum(1 for _ in backbone.parameters())
    if not found:
        return ""
    name = next(iter(found))
    return f"{len(found)} of {count} tensors, as {name}: freshly initialized, so the checks run on redrawn ones"


def _conflicting_token_ids(backbone: Backbone) -> Iterator[str]:
    """Token ids that the tokenizer and the model's configuration disagree in."""
    config = getattr(getattr(backbone, "model", None), "config", None)
    tokenizer = getattr(backbone, "tokenizer", None)
    if config is None or tokenizer is None:
        return
    parts = (config, config.get_text_config() if hasattr(config, "get_text_config") else config)
    for kind in ("pad", "bos", "eos"):
        own = getattr(tokenizer, f"{kind}_token_id", None)
        told = next((t for c in parts if (t := getattr(c, f"{kind}_token_id", None)) is not None), None)
        if own is None or told is None or own in (told if isinstance(told, list | tuple) else (told,)):
            continue
        token = tokenizer.convert_ids_to_tokens(own)
        yield f"the tokenizer's {kind} token is {token} (id {own}), the model's configuration says id {told}"


def _count_parameters(backbone: Backbone) -> dict[str, int]:
    """Parameters of each part, and of an LM head that is none's."""
    from anyvla.backbones.adapting.parts import parameters_by_part

    counts: dict[str, int] = {part: sum(w.numel() for w in own) for part, own in parameters_by_part(backbone).items()}
    rest = sum(w.numel() for w in backbone.parameters()) - sum(counts.values())
    return counts | ({"head": rest} if rest else {})


def _silence_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()


def _warn_about_memory(card: BackboneReport, device: str) -> None:
    """Weights, as many gradients, and a second copy for the check of saving and loading."""
    import psutil

    if device != "cpu":
        return
    size = 2 if card.dtype in ("bfloat16", "float16") else 4
    needed, free = 3 * size * sum(card.parameters.values()), psutil.virtual_memory().available
    if needed > 0.9 * free:
        console.print(
            f"The checks take about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free. Where the run is "
            "killed, use a larger machine, --device cuda, or fewer layers: --option layers=2",
            style="yellow",
        )


def _print_report(card: BackboneReport) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    total = sum(card.parameters.values())
    size = "as it comes" if card.image_size is None else "{} x {} pixels".format(*card.image_size)
    rows = {
        "class": f"{card.model_class} ({card.model_type})" if card.model_type else card.model_class,
        "in a recipe": f"backbone: {{name: {card.name}, ...}}",
        "parameters": f"{_short(total)}, {_short(card.trainable)} to train, {card.dtype}",
        **{f"  {part}": _short(count) for part, count in card.parameters.items()},
        "an image": f"{card.image_tokens} tokens and {card.image_wrapping} around them, {size}",
        "a readout": f"{card.width} numbers",
        "context": f"{card.context} tokens" if card.context else "not limited",
        "capabilities": ", ".join(card.capabilities) or "reads one step only",
        **({"note": card.note} if card.note else {}),
        **({"untrained": card.untrained} if card.untrained else {}),
        **({"token ids": "; ".join(card.warnings)} if card.warnings else {}),
    }
    for what, text in rows.items():
        table.add_row(what, text)
    Console().print(table)


def _print_results(results: Sequence[Result]) -> None:
    table = Table("check", "state", "detail", box=None, pad_edge=False)
    for r in results:
        table.add_row(r.check, Text(r.state, COLORS[r.state]), r.detail)
    Console().print()
    Console().print(table)


def _short(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
