from __future__ import annotations

import os
import subprocess
import sys

import pytest

from anyvla.data.formats import hub
from anyvla.data.open import open_dataset


def test_the_error_without_a_network_says_what_to_do(tmp_path):
    code = "from anyvla.data.formats.hub import download; download('someone/pushes')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: there is no folder someone/pushes, and the hub cannot be reached")
    assert last.endswith("connect once, or copy the data set here and give its path")


def test_an_invalid_name_of_the_hub_is_refused():
    with pytest.raises(ValueError, match=r"no folder some one/pus\?hes, and it is no name of the hub"):
        hub.download("some one/pus?hes")


def test_a_name_is_downloaded_and_opened(tmp_path, monkeypatch):
    asked = []

    def download(repo_id):
        asked.append(repo_id)
        return tmp_path

    monkeypatch.setattr(hub, "download", download)
    with pytest.raises(ValueError, match=r"has no known format .*it holds nothing"):
        open_dataset("someone/pushes")
    assert asked == ["someone/pushes"]
