from __future__ import annotations

import runpy
import sys

import pytest

from anyvla.serving import metrics


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """`anyvla bench latency` and `anyvla doctor policy` need it, too, and have no --protocol to name."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r'needs prometheus_client: pip install "anyvla\[serve\]"'):
        runpy.run_path(str(metrics.__file__))
