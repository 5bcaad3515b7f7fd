import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions.normalize import Normalizer, Statistics, StatisticsError
from anyvla.actions.space import ActionSpace, Group

SPACE = ActionSpace(
    groups=(
        Group(name="position", size=3, kind="position", mode="delta"),
        Group(name="gripper", size=1, kind="gripper", low=0.0, high=0.08),
    )
)
STATISTICS = {
    "q01": [-0.5, -1.0, 2.0, 0.03],
    "q99": [0.5, 3.0, 2.0, 0.04],
    "min": [-1.0, -2.0, 2.0, 0.0],
    "max": [1.0, 4.0, 2.0, 0.08],
    "mean": [0.0, 1.0, 2.0, 0.04],
    "std": [0.25, 0.5, 0.0, 0.01],
}
values = st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4)


@given(x=values, method=st.sampled_from(["quantile", "minmax", "meanstd"]))
def test_undoing_mirrors_doing_on_the_clipped_range(x, method):
    normalizer = Normalizer(SPACE, STATISTICS, method, what="action", clip=True)
    y = normalizer.normalise(torch.tensor(x))
    again = normalizer.normalise(normalizer.denormalise(y))
    torch.testing.assert_close(again, y, atol=1e-5, rtol=1e-5)
    inside = y.abs() < 0.999
    torch.testing.assert_close(normalizer.denormalise(y)[inside], torch.tensor(x)[inside], atol=1e-4, rtol=1e-4)


def test_quantiles_map_to_the_ends_and_the_gripper_keeps_its_declared_range():
    normalizer = Normalizer(SPACE, STATISTICS, "quantile", what="action", clip=True)
    low = normalizer.normalise(torch.tensor([-0.5, -1.0, 2.0, 0.0]))
    high = normalizer.normalise(torch.tensor([0.5, 3.0, 2.0, 0.08]))
    torch.testing.assert_close(low, torch.tensor([-1.0, -1.0, 0.0, -1.0]))
    torch.testing.assert_close(high, torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_outliers_are_clipped_only_where_asked():
    far = torch.tensor([9.0, 9.0, 2.0, 0.08])
    assert Normalizer(SPACE, STATISTICS, "minmax", what="action", clip=True).normalise(far)[0] == 1.0
    assert Normalizer(SPACE, STATISTICS, "minmax", what="proprio", clip=False).normalise(far)[0] == 9.0


def test_missing_or_wrong_statistics_are_errors(tmp_path):
    with pytest.raises(StatisticsError, match=r"action statistics lack \['q01', 'q99'\]"):
        Normalizer(SPACE, {"mean": [0.0] * 4, "std": [1.0] * 4}, "quantile", what="action", clip=True)
    with pytest.raises(StatisticsError, match="have 3 dims, the action space has 4"):
        Normalizer(SPACE, {"mean": [0.0] * 3, "std": [1.0] * 3}, "meanstd", what="action", clip=True)
    with pytest.raises(StatisticsError, match="not finite"):
        Normalizer(SPACE, {"mean": [0.0] * 4, "std": [float("nan")] * 4}, "meanstd", what="action", clip=True)
    with pytest.raises(StatisticsError, match=r"no statistics at .*statistics.json"):
        Statistics.load(tmp_path / "statistics.json")
    (tmp_path / "statistics.json").write_text(json.dumps({"action": {}}))
    with pytest.raises(StatisticsError, match="not a statistics file"):
        Statistics.load(tmp_path / "statistics.json")


def test_statistics_survive_the_disk(tmp_path):
    statistics = Statistics(STATISTICS, STATISTICS, "abc")
    (tmp_path / "statistics.json").write_text(statistics.to_json())
    assert Statistics.load(tmp_path / "statistics.json") == statistics


def test_a_gripper_must_declare_its_range():
    with pytest.raises(ValueError, match="needs its declared range"):
        Group(name="gripper", size=1, kind="gripper")
