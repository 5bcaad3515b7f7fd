from __future__ import annotations

from pathlib import Path

import pytest

from anyvla.config import ConfigError, build, to_dict
from anyvla.data.mixture import MixtureConfig


def test_one_source_travels_as_plain_data():
    config = build(MixtureConfig, {"sources": [{"path": "data/set"}]})
    assert config.sources[0].path == Path("data/set")
    assert build(MixtureConfig, to_dict(config)) == config


@pytest.mark.parametrize("count", [0, 2])
def test_other_numbers_of_sources(count):
    with pytest.raises(ConfigError, match=f"one source is supported; give a single entry \\(got {count}\\)"):
        build(MixtureConfig, {"sources": [{"path": "a"}] * count})


def test_weights_are_positive():
    with pytest.raises(ConfigError, match="weight of a must be above 0, got 0"):
        build(MixtureConfig, {"sources": [{"path": "a", "weight": 0}]})
