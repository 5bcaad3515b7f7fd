"""`anyvla doctor backbone MODEL`: report on a model, and check that it meets the contract of a backbone.

MODEL is a model folder, an id of the Hugging Face hub, or the name of a backbone that needs neither, such as `nano`.
The backbone is built as a recipe would build it (`--option KEY=VALUE` sets a key of the recipe's section `backbone:`).
The checks are the ones that every family in the test matrix passes. The exit status is 0 if no check failed.
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
    from anyvla.backbones.checks.conformance import CheckResult

COLORS = {"passed": "green", "failed": "red", "not applicable": "yellow"}


@dataclass(frozen=True)
class BackboneReport:
    """The facts of a backbone."""

    name: str  # of the backbone in a recipe
    model_class: str
    model_type: str
    parameters: Mapping[str, int]  # of each part; `head`: a separate LM head, which belongs to no part
    trainable: int  # number of parameters
    width: int  # of a readout
    image_size: tuple[int, int] | None  # (height, width) that an image is scaled to, in pixels
    image_tokens: int | None  # per camera image
    image_wrapping: int | None  # tokens around and between the image tokens
    context: int | None  # maximum number of tokens
    dtype: str
    capabilities: tuple[str, ...]
    note: str = ""
    untrained: str = ""  # names weights that are still freshly initialized
    warnings: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Print the report and the results of the checks. Return 0 only if no check failed."""
    parser = argparse.ArgumentParser(
        prog="anyvla doctor backbone", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model folder, a hub id, or the name of a backbone that needs neither")
    parser.add_argument("--name", help=f"the backbone that loads it: {', '.join(backbones)} (default: auto)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="set an option of the backbone; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    part = choose_backbone(options.model, options.name, options.option)
    from transformers.utils import logging

    from anyvla.backbones.checks.conformance import CHECKS, examine

    logging.set_verbosity_error()
    backbone = _build(part, options.device)
    report = describe(backbone, part.name)
    if not options.json:
        _print_report(report)
    _warn_about_memory(report, options.device)
    results: list[CheckResult] = []
    with ProgressBar("checks") as bar:
        names = [*CHECKS, ""]
        bar(0, len(CHECKS), names[0])
        for result in examine(backbone, part.config):
            results.append(result)
            bar(len(results), len(CHECKS), names[len(results)])
    failed = [r.check for r in results if r.state == "failed"]
    if options.json:
        document = {"card": dataclasses.asdict(report), "checks": [dataclasses.asdict(r) for r in results]}
        print(json.dumps(document | {"failed": failed}, indent=1))
    else:
        _print_results(results)
    return 1 if failed else 0


def choose_backbone(model: str, name: str | None, options: Sequence[str]) -> Part:
    """Return the requested backbone with its validated options. Raises ConfigError or ValueError."""
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
                f"backbone {chosen!r} loads no model folder; run `anyvla doctor backbone {chosen}`, with "
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
    except Exception as error:  # a third-party model may raise anything
        if os.environ.get("ANYVLA_DEBUG"):
            raise
        raise ValueError(
            f"backbone {part.name!r} cannot be built: {type(error).__name__}: {error} (ANYVLA_DEBUG=1 shows where)"
        ) from error


def describe(backbone: Backbone, name: str) -> BackboneReport:
    """Return the report of a backbone that is already loaded."""
    model: Any = getattr(backbone, "model", backbone)
    pixels, quirk = getattr(backbone, "pixels", None), getattr(backbone, "quirk", None)
    tokens, total = getattr(backbone, "image_tokens", None), getattr(backbone, "tokens_per_camera", None)
    return BackboneReport(
        name=name,
        model_class=type(model).__name__,
        model_type=getattr(getattr(model, "config", None), "model_type", ""),
        parameters=_count_parameters(backbone),
        trainable=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        width=backbone.width,
        image_size=getattr(pixels, "size", None),
        image_tokens=tokens,
        image_wrapping=None if tokens is None or total is None else total - tokens,
        context=getattr(backbone, "context", None),
        dtype=str(next(backbone.parameters()).dtype).removeprefix("torch."),
        capabilities=tuple(sorted(backbone.capabilities)),
        note=getattr(quirk, "note", ""),
        untrained=_describe_untrained_weights(backbone),
        warnings=tuple(_conflicting_token_ids(backbone)),
    )


def _describe_untrained_weights(backbone: Backbone) -> str:
    """Return the number of tensors that no checkpoint provides, with an example; "" if there is none."""
    from anyvla.backbones.checks.untrained_weights import find_untrained_weights

    found, count = find_untrained_weights(backbone), sum(1 for _ in backbone.parameters())
    if not found:
        return ""
    name = next(iter(found))
    return f"{len(found)} of {count} tensors, such as {name}: freshly initialized, so the checks use random weights"


def _conflicting_token_ids(backbone: Backbone) -> Iterator[str]:
    """Yield a message for each special token on which the tokenizer and the model's configuration disagree."""
    config = getattr(getattr(backbone, "model", None), "config", None)
    tokenizer = getattr(backbone, "tokenizer", None)
    if config is None or tokenizer is None:
        return
    parts = (config, config.get_text_config() if hasattr(config, "get_text_config") else config)
    for kind in ("pad", "bos", "eos"):
        own = getattr(tokenizer, f"{kind}_token_id", None)
        configured = next((t for c in parts if (t := getattr(c, f"{kind}_token_id", None)) is not None), None)
        ids = configured if isinstance(configured, list | tuple) else (configured,)
        if own is None or configured is None or own in ids:
            continue
        token = tokenizer.convert_ids_to_tokens(own)
        yield f"the tokenizer's {kind} token is {token} (id {own}), the model's configuration says id {configured}"


def _count_parameters(backbone: Backbone) -> dict[str, int]:
    """Return the number of parameters of each part, and of an LM head that belongs to no part."""
    from anyvla.backbones.adapting.parts import parameters_by_part

    counts: dict[str, int] = {part: sum(w.numel() for w in own) for part, own in parameters_by_part(backbone).items()}
    rest = sum(w.numel() for w in backbone.parameters()) - sum(counts.values())
    return counts | ({"head": rest} if rest else {})


def _warn_about_memory(report: BackboneReport, device: str) -> None:
    """Warn if the checks need more memory than is free: weights, gradients, and a copy for saving and loading."""
    import psutil

    if device != "cpu":
        return
    size = 2 if report.dtype in ("bfloat16", "float16") else 4
    needed, free = 3 * size * sum(report.parameters.values()), psutil.virtual_memory().available
    if needed > 0.9 * free:
        console.print(
            f"The checks need about {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free. If the process is "
            "killed, use a larger machine, --device cuda, or fewer layers: --option layers=2",
            style="yellow",
        )


def _print_report(report: BackboneReport) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    total = sum(report.parameters.values())
    size = "not scaled" if report.image_size is None else "{} x {} pixels".format(*report.image_size)
    rows = {
        "class": f"{report.model_class} ({report.model_type})" if report.model_type else report.model_class,
        "in a recipe": f"backbone: {{name: {report.name}, ...}}",
        "parameters": f"{_short(total)}, {_short(report.trainable)} trainable, {report.dtype}",
        **{f"  {part}": _short(count) for part, count in report.parameters.items()},
        "an image": f"{report.image_tokens} tokens and {report.image_wrapping} around them, {size}",
        "a readout": f"{report.width} numbers",
        "context": f"{report.context} tokens" if report.context else "not limited",
        "capabilities": ", ".join(report.capabilities) or "reads one step only",
        "note": report.note,
        "untrained": report.untrained,
        "token ids": "; ".join(report.warnings),
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    Console().print(table)


def _print_results(results: Sequence[CheckResult]) -> None:
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
