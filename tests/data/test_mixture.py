from __future__ import annotations

from pathlib import Path

import pytest
from demonstrations import ROBOT, demonstration

from anyvla.config import ConfigError, build, to_dict
from anyvla.data.formats.lerobot_writer import write_dataset
from anyvla.data.mixture import DataConfig, open_mixture


def test_a_source_travels_as_plain_data():
    config = build(DataConfig, {"sources": [{"path": "data/set"}], "cache_gb": 0.5})
    assert config.sources[0].path == Path("data/set")
    assert build(DataConfig, to_dict(config)) == config


def test_the_given_source_or_else_what_was_collected(tmp_path):
    write_dataset(tmp_path / "given", ROBOT, [demonstration(5)])
    write_dataset(tmp_path / "own", ROBOT, [demonstration(5), demonstration(6)])
    given = DataConfig(sources=({"path": tmp_path / "given"},))
    assert open_mixture(given, tmp_path / "own").lengths == [5]
    assert open_mixture(DataConfig(), tmp_path / "own").lengths == [5, 6]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": [{"path": "a"}, {"path": "b"}]}, r"one source is supported; give a single entry \(got 2\)"),
        ({"sources": [{"path": "a", "weight": 0}]}, r"'sources\.0\.weight': .* greater than 0 \(given: 0\)"),
        ({"cache_gb": -1}, "'cache_gb': .* greater than or equal to 0"),
        ({"source": []}, "unknown key 'source': did you mean 'sources'"),
    ],
)
def test_config_is_checked(data, message):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, data)
