"""`anyvla data vqa`: make questions and answers about labeled simulator frames, or write a page of examples."""

from __future__ import annotations

import argparse
import base64
import html
import re
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np

from anyvla.cli.common import ProgressBar, console
from anyvla.cli.stopping import graceful
from anyvla.config import build
from anyvla.files import durable

SHOWN = 24  # examples on the page
STYLE = (
    "body{display:flex;flex-wrap:wrap;font:14px sans-serif}figure{width:256px;margin:12px}div{position:relative}"
    "img{width:100%;display:block}i{position:absolute;width:8px;height:8px;margin:-5px;border:1px solid #000;"
    "border-radius:50%;background:#f0f}"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--benchmark", default="metaworld/half-open", help="the suite to render (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=2000, help="number of frames (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="number of simulator processes (default: one per core)")
    parser.add_argument("--out", type=Path, help="the folder to write; an interrupted run resumes there")
    parser.add_argument("--look", type=Path, metavar="PATH", help="only show counts and examples of existing data")


def run(options: argparse.Namespace) -> int:
    """Make the data or show it. Raises ValueError for invalid settings."""
    if options.look is not None:
        print(look(options.look))
        return 0
    if options.out is None:
        raise ValueError("give the folder to write: --out FOLDER (or show existing data: --look FOLDER)")
    from anyvla.demonstrations.label_frames import LabelConfig, label_frames

    keys = ("benchmark", "frames", "size", "seed", "processes")
    config = build(LabelConfig, {key: getattr(options, key) for key in keys})
    with graceful() as stop, ProgressBar("label") as bar:
        root = label_frames(config, options.out, progress=bar, stop=stop)
    console.print(f"questions and answers: {root}; to look at them: anyvla data vqa --look {root}")
    print(root)
    return 0


def look(path: Path) -> Path:
    """Print counts of vision-language data, and write a page with examples, points drawn in. Return the page."""
    from PIL import Image

    from anyvla.data.vqa import open_vqa

    data = open_vqa(path / "train.json" if (path / "train.json").is_file() else path)
    answers = Counter(answer for example in data for _, answer in example.turns)
    absent = data.missing()
    console.print(f"{data.layout}: {len(data)} examples, {answers.total()} answers, {len(absent)} images missing")
    for answer, count in answers.most_common(12):
        console.print(f"{count:8d}  {answer[:80]}")
    rows = []
    chosen = np.random.default_rng(0).permutation(len(data))[:SHOWN]
    for example in (data[int(i)] for i in sorted(chosen)):
        pictures = []
        found = [re.fullmatch(r"(\d{1,3}) (\d{1,3})", answer) for _, answer in example.turns]
        points = "".join(f'<i style="left:{p[1]}%;top:{p[2]}%"></i>' for p in found if p)
        for pixels in example.images if all(p.is_file() for p in example.paths) else ():
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            coded = base64.b64encode(file.getvalue()).decode()
            pictures.append(f'<div><img src="data:image/png;base64,{coded}">{points}</div>')
        dialog = "".join(f"<p>{html.escape(q)}<br><b>{html.escape(a)}</b></p>" for q, a in example.turns)
        rows.append(f"<figure>{''.join(pictures)}<figcaption>{dialog}</figcaption></figure>")
    page = path / "examples.html" if path.is_dir() else path.with_name(f"{path.stem}-examples.html")
    durable.write(page, f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{''.join(rows)}", to_disk=False)
    return page
