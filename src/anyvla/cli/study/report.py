"""`anyvla study report FOLDER_OR_FILE`: write the page of a study from its file and its store."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.stopping import graceful

if TYPE_CHECKING:
    from anyvla.cli.recipe_help import KeyParser


def add_arguments(parser: KeyParser) -> None:
    """Add the options of the command."""
    parser.epilog = "Any key of the study can be set, as it was for anyvla study run: --seeds '[0]'"
    parser.add_argument("file", metavar="FOLDER_OR_FILE", type=Path, help="the study's folder, or its file")
    parser.add_argument("--store", type=Path, help="its results (default: of its folder, or FILE's name with .jsonl)")
    parser.add_argument("--out", type=Path, help="the page (default: <name>.html beside the store)")
    parser.add_argument("--film", action="store_true", help="first film the best and the worst cell in the folder")
    parser.add_argument("--json", action="store_true", help="print the whole analysis; write no page without --out")


def run(options: argparse.Namespace) -> int:
    """Write the page and print its path, or print the analysis as one JSON object."""
    from anyvla.study.analysis.analyze import analyze
    from anyvla.study.page.cell_rows import list_cells
    from anyvla.study.page.clips import film_cells
    from anyvla.study.page.write import to_json, write_page
    from anyvla.study.sources import read_sources

    sources = read_sources(options.file, options.store, options.overrides)
    analysis = analyze(sources.study, sources.lines)
    if options.film:
        with graceful() as stop:
            film_cells(sources.store.parent, list_cells(sources, analysis.tables), stop)
    page = options.out or sources.store.with_name(f"{sources.study.name}.html")
    if options.out or not options.json:
        write_page(sources, analysis, page)
    print(json.dumps(to_json(sources, analysis), indent=1, allow_nan=False) if options.json else page)
    return 0
