"""A browser for the tests of pages."""

from __future__ import annotations

import contextlib

import pytest

from tests.report import chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    page = tmp_path_factory.mktemp("probe") / "index.html"
    page.write_text("<title>seen</title>")
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(chromium.Chromium())
            started.open(page, 1280)
            seen = started.evaluate("document.title") == "seen"
        except (RuntimeError, TimeoutError, OSError):
            seen = False
        if not seen:  # packed as a snap, it may not read temporary files
            pytest.skip("Chromium is installed, but it does not start here or may not read temporary files")
        yield started
