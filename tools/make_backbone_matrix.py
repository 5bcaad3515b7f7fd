"""Measure the matrix of backbones: run every check of `anyvla doctor backbone` on a tiny model of every family.

It writes `src/anyvla/backbones/families/families.json`, which ships with the package, and renders `docs/backbones.md`
from it. It takes about three minutes on two cores:

    python tools/make_backbone_matrix.py                      # all families
    python tools/make_backbone_matrix.py --only llava smolvlm # these; the others keep their results
    python tools/make_backbone_matrix.py --render             # only the page, from existing results

Exit status 0: no check of any family failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # families run side by side; set before torch is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the tiny models of the tests

from anyvla.backbones.families.results import RESULTS, FamilyResult, FamilyResults, parse_results  # noqa: E402
from anyvla.backbones.families.unsupported import UNSUPPORTED  # noqa: E402
from anyvla.cli.common import ProgressBar  # noqa: E402
from anyvla.cli.doctor.backbone import describe  # noqa: E402
from anyvla.config import build  # noqa: E402
from anyvla.registry import backbones  # noqa: E402

PAGE = ROOT / "docs" / "backbones.md"


def main() -> int:
    """Measure, or only render the page. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these families only")
    parser.add_argument("--render", action="store_true", help="write the page only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="families at a time")
    options = parser.parse_args()
    if not options.render:
        with tempfile.TemporaryDirectory() as modules:  # where transformers copies code that comes with models
            os.environ["HF_MODULES_CACHE"] = modules
            measure(options.only, options.jobs)
    results = parse_results(json.loads(RESULTS.read_text(encoding="utf-8")))
    PAGE.write_text(render(results), encoding="utf-8")
    failed = [f"{m.name}: {', '.join(m.failed)}" for m in _all(results) if m.failed]
    print(f"{RESULTS.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}: {len(results.families)} families")
    print("\n".join(["failed:", *failed]) if failed else "no check failed")
    return 1 if failed else 0


def measure(only: list[str] | None, jobs: int) -> None:
    """Examine families and backbones, and write the results."""
    from tests.backbones.families import FAMILIES
    from tests.backbones.families.registered import REGISTERED
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

    known = {"backbones": REGISTERED, "families": FAMILIES}
    unknown = {*(only or ())} - {*REGISTERED, *FAMILIES}
    if unknown:
        raise SystemExit(f"no such family: {', '.join(sorted(unknown))}; known: {', '.join((*REGISTERED, *FAMILIES))}")
    rows: dict[str, dict[str, Any]] = {kind: {} for kind in known}
    if only and RESULTS.is_file():
        old = json.loads(RESULTS.read_text(encoding="utf-8"))
        rows = {kind: {n: row for n, row in old[kind].items() if n in names} for kind, names in known.items()}
    chosen = [(kind, n) for kind, names in known.items() for n in names if not only or n in only]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, ProgressBar("families") as bar:
        waiting = {pool.submit(examine_member, *key): key for key in chosen}
        bar(0, len(waiting))
        for done, future in enumerate(as_completed(waiting), 1):
            kind, name = waiting[future]
            try:
                rows[kind][name] = future.result()
            except Exception as error:  # its process died; the results of the others are kept
                rows[kind][name] = _make_failed_row(kind, name, error)
            bar(done, len(waiting), name)
    for name in backbones:
        if name not in rows["backbones"] and backbones[name].__module__.startswith("anyvla."):
            rows["backbones"][name] = _row(_read_declaration(name))
    seen = {row["model_type"] for row in rows["families"].values()}
    document = {
        "versions": {name: metadata.version(name) for name in ("transformers", "torch")},
        **{kind: dict(sorted(of.items())) for kind, of in rows.items()},
        "untried": {t: _pick_first(c) for t, c in sorted(CLASSES.items()) if t not in seen and t not in UNSUPPORTED},
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _pick_first(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else names[0]


def _read_declaration(name: str) -> FamilyResult:
    """Return the facts that the class of a registered backbone declares."""
    target = backbones[name]
    capabilities = getattr(target, "capabilities", None)
    notes = [getattr(target, "about", None), (inspect.getdoc(target) or "").partition("\n")[0]]
    return FamilyResult(
        name=name,
        model_class=target.__name__,
        model_type="",
        capabilities=tuple(sorted(capabilities)) if isinstance(capabilities, frozenset) else None,
        checks={},
        image_wrapping=0,
        attention="",
        any_size=False,
        note=": ".join(filter(None, notes)),
    )


def examine_member(kind: str, name: str) -> dict[str, Any]:
    """Return the results of one family or backbone; runs in a separate process."""
    import torch
    from tests.backbones.families import FAMILIES
    from tests.backbones.families.common import write_family
    from tests.backbones.families.registered import REGISTERED
    from transformers.utils import logging

    from anyvla.backbones.checks.conformance import examine

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            if kind == "families":
                path = str(write_family(FAMILIES[name], Path(temporary)))
                options = {"path": path, "prompt": "do {instruction}", **FAMILIES[name].options}
                target = backbones["auto"]
            else:
                options, target = REGISTERED[name](Path(temporary)), backbones[name]
            config = build(target.Config, options)
            backbone = target(config)
            report = describe(backbone, name)
            results = [(r.check, r.state, r.detail) for r in examine(backbone, config)]
        except Exception as error:  # a family that cannot be built is a result too
            return _make_failed_row(kind, name, error, temporary)
        # Measured values differ from run to run; the reason for a failure does not.
        checks = {c: (s, "" if s == "passed" else why.replace(temporary, "FOLDER")) for c, s, why in results}
    if kind == "backbones":
        return _row(dataclasses.replace(_read_declaration(name), checks=checks, capabilities=report.capabilities))
    return _row(
        FamilyResult(
            name=name,
            model_class=report.model_class,
            model_type=report.model_type,
            capabilities=report.capabilities,
            checks=checks,
            image_wrapping=report.image_wrapping or 0,
            attention=backbone.attention,
            any_size=backbone.quirk.size_multiple is not None,
            note=report.note,
        )
    )


def _make_failed_row(kind: str, name: str, error: Exception, folder: str = "FOLDER") -> dict[str, Any]:
    why = f"{type(error).__name__}: {error}".replace(folder, "FOLDER")
    blank = FamilyResult(name, "", name, (), {}, 0, "", False, "") if kind == "families" else _read_declaration(name)
    return _row(dataclasses.replace(blank, checks={"build": ("failed", why)}))


def _row(measured: FamilyResult) -> dict[str, Any]:
    row = dataclasses.asdict(measured)
    del row["name"]
    return row | {"checks": {check: ": ".join(filter(None, result)) for check, result in measured.checks.items()}}


def _all(results: FamilyResults) -> list[FamilyResult]:
    return [*results.backbones.values(), *results.families.values()]


def render(results: FamilyResults) -> str:
    """Return the text of `backbones_page.md` with its tables filled in."""
    families = [results.families[name] for name in sorted(results.families)]
    tables = {
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "count": str(len(families)),
        "backbones": _backbones(list(results.backbones.values())),
        "families": _families(families),
        "checks": _checks([m for m in _all(results) if m.checks]),
        "reasons": _reasons(_all(results)),
        "untried": ", ".join(f"`{t}`" for t in results.untried),
        "unsupported": "\n".join(f"- `{t}` {why}." for t, why in sorted(UNSUPPORTED.items())),
    }
    page = (Path(__file__).parent / "backbones_page.md").read_text(encoding="utf-8")
    for name, text in tables.items():
        page = page.replace("{{" + name + "}}", text)
    return page


def _backbones(rows: list[FamilyResult]) -> str:
    lines = []
    for m in rows:
        capabilities = "depend on the family" if m.capabilities is None else ", ".join(m.capabilities) or "none"
        lines.append([f"`{m.name}`", m.model_class, capabilities.replace("_", " "), m.note])
    return _table(["name", "class", "capabilities", "description"], lines)


def _families(rows: list[FamilyResult]) -> str:
    lines = []
    for m in rows:
        can = ["yes" if c in (m.capabilities or ()) else "-" for c in ("interleave", "block_mask", "cache")]
        size = "any" if m.any_size else "its own"
        lines.append([f"`{m.name}`", m.model_class, m.attention, *can, size, str(m.image_wrapping), m.note])
    heads = ["family", "class", "attention to later tokens", "interleave", "block mask", "cache"]
    return _table([*heads, "image size", "tokens around an image", "note"], lines)


def _checks(rows: list[FamilyResult]) -> str:
    marks = {"passed": "yes", "not applicable": "-", "failed": "**no**"}
    names = list(dict.fromkeys(check for m in rows for check in m.checks))
    lines = [[f"`{m.name}`", *(marks[m.checks[c][0]] if c in m.checks else "" for c in names)] for m in rows]
    return _table(["family", *names], lines)


def _reasons(rows: list[FamilyResult]) -> str:
    """Return the reasons why checks did not pass, each reason once."""
    of: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for m in rows:
        for check, (state, why) in m.checks.items():
            if state != "passed":
                checks, names = of.setdefault((state, why), ({}, {}))
                checks[check] = names[f"`{m.name}`"] = None
    lines = [
        f"- {'**failed** ' if state == 'failed' else ''}{', '.join(checks)}: {why} ({', '.join(names)})"
        for (state, why), (checks, names) in sorted(of.items())
    ]
    return "\n".join(lines) or "- none"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


if __name__ == "__main__":
    sys.exit(main())
