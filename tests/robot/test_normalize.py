import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyvla.robot.normalize import Normalizer, Statistics, StatisticsError, read_statistics, write_statistics
from anyvla.robot.shared_space import merge_spaces
from anyvla.robot.space import ActionSpace, Group

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
ZEROS = torch.zeros(1, dtype=torch.int64)


def make_normalizer(method, what="action", clip=True, statistics=STATISTICS):
    return Normalizer(SPACE, [(SPACE, statistics)], method, what=what, clip=clip)


values = st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4)


@given(x=values, method=st.sampled_from(["quantile", "minmax", "meanstd", "calvin"]))
def test_denormalize_inverts_normalize_on_the_clipped_range(x, method):
    normalizer = make_normalizer(method)
    y = normalizer.normalize(torch.tensor([x]), ZEROS)
    again = normalizer.normalize(normalizer.denormalize(y, ZEROS), ZEROS)
    torch.testing.assert_close(again, y, atol=1e-5, rtol=1e-5)
    inside = (y.abs() < 0.999) & normalizer.learned
    back = normalizer.denormalize(y, ZEROS)
    torch.testing.assert_close(back[inside], torch.tensor([x])[inside], atol=1e-4, rtol=1e-4)


def test_quantiles_map_to_the_ends_and_the_gripper_keeps_its_declared_range():
    normalizer = make_normalizer("quantile")
    low = normalizer.normalize(torch.tensor([[-0.5, -1.0, 2.0, 0.0]]), ZEROS)
    high = normalizer.normalize(torch.tensor([[0.5, 3.0, 2.0, 0.08]]), ZEROS)
    torch.testing.assert_close(low, torch.tensor([[-1.0, -1.0, 0.0, -1.0]]))
    torch.testing.assert_close(high, torch.tensor([[1.0, 1.0, 0.0, 1.0]]))


def test_outliers_are_clipped_only_where_asked():
    far = torch.tensor([[9.0, 9.0, 2.0, 0.08]])
    assert make_normalizer("minmax").normalize(far, ZEROS)[0, 0] == 1.0
    assert make_normalizer("minmax", "proprio", clip=False).normalize(far, ZEROS)[0, 0] == 9.0


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("quantile", [-0.5, -1.0, 2.0, 0.0], [0.5, 3.0, 2.0, 0.08]),  # q01 and q99; the gripper's declared range
        ("minmax", [-1.0, -2.0, 2.0, 0.0], [1.0, 4.0, 2.0, 0.08]),
        ("calvin", [-0.65, -0.65, -0.65, 0.0], [0.65, 0.65, 0.65, 0.08]),
        ("meanstd", [-1.5, -2.0, 2.0, 0.0], [1.5, 4.0, 2.0, 0.08]),  # mean -+ 6 deviations: it has no ends
    ],
)
def test_predictions_beyond_the_range_become_the_nearer_end(method, low, high):
    predicted = torch.tensor([[-6.0] * 4, [6.0] * 4])[:, None].expand(2, 5, 4)
    got = make_normalizer(method).denormalize(predicted, ZEROS.expand(2))
    torch.testing.assert_close(got, torch.tensor([low, high])[:, None].expand(2, 5, 4))


@pytest.mark.parametrize("method", ["quantile", "minmax", "calvin"])
def test_data_beyond_the_range_becomes_the_nearer_end(method):
    far = torch.tensor([[-99.0] * 4, [99.0] * 4])
    varies = torch.tensor([1.0, 1.0, method == "calvin", 1.0])  # the third dim is constant, which CALVIN does not ask
    got = make_normalizer(method).normalize(far, ZEROS.expand(2))
    torch.testing.assert_close(got, torch.stack([-varies, varies]))


def test_an_unclipped_vector_keeps_values_beyond_the_range():
    normalizer = make_normalizer("minmax", "proprio", clip=False)
    far = torch.tensor([[-9.0, -11.0, 5.0, 0.16], [9.0, 13.0, 5.0, -0.08]])
    got = normalizer.normalize(far, ZEROS.expand(2))
    torch.testing.assert_close(got, torch.tensor([[-9.0, -4.0, 0.0, 3.0], [9.0, 4.0, 0.0, -3.0]]))
    back = torch.tensor([[-9.0, -11.0, 2.0, 0.16], [9.0, 13.0, 2.0, -0.08]])  # the constant is its constant
    torch.testing.assert_close(normalizer.denormalize(got, ZEROS.expand(2)), back)


def test_a_cast_of_the_model_rounds_no_table():
    statistics = {"min": [0.1234567, 700.25, 0.0, 0.0], "max": [0.7654321, 701.75, 1 / 3, 0.08]}
    policy = torch.nn.ModuleDict({"action": make_normalizer("minmax", statistics=statistics)})
    y = torch.tensor([[-0.5, 0.75, 0.25, -1.0]])
    # center + y * half the range, in float64
    expected = torch.tensor([[0.28395055, 701.5625, 5 / 24, 0.0]])
    for cast in (policy, policy.bfloat16(), policy.half(), policy.to(torch.bfloat16)):
        got = cast["action"].denormalize(y, ZEROS)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-7)
        torch.testing.assert_close(cast["action"].normalize(got, ZEROS), y, atol=1e-4, rtol=0)


def test_calvins_convention_needs_no_statistics():
    normalizer = make_normalizer("calvin", statistics={})
    got = normalizer.normalize(torch.tensor([[0.325, -0.65, 0.9, 0.0]]), ZEROS)
    torch.testing.assert_close(got, torch.tensor([[0.5, -1.0, 1.0, -1.0]]))
    torch.testing.assert_close(normalizer.denormalize(got, ZEROS), torch.tensor([[0.325, -0.65, 0.65, 0.0]]))


def test_an_open_gripper_is_plus_one_at_either_end_of_its_range():
    closes, opens = (
        ActionSpace(groups=(Group(name="gripper", size=1, kind="gripper", low=0, high=1, open=end),)) for end in (0, 1)
    )
    whole = merge_spaces({"closes": closes, "opens": opens}, "action")
    normalizer = Normalizer(whole, [(closes, {}), (opens, {})], "calvin", what="action", clip=True)
    gripper = torch.tensor([[0.0], [1.0]])
    robots = torch.tensor([0, 1])
    assert normalizer.normalize(gripper, robots).tolist() == [[1.0], [1.0]]
    assert normalizer.normalize(1 - gripper, robots).tolist() == [[-1.0], [-1.0]]
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(gripper, robots), robots), gripper)


def test_a_policy_learns_the_dims_that_vary_and_that_a_robot_has():
    assert make_normalizer("quantile").learned.tolist() == [[True, True, False, True]]  # the third dim is constant
    assert not make_normalizer("quantile").learns_all
    assert make_normalizer("calvin").learns_all
    two = Normalizer(
        SPACE,
        [(SPACE, {}), (ActionSpace(groups=SPACE.groups[:1]), {})],
        "calvin",
        what="action",
        clip=True,
    )
    assert two.learned.tolist() == [[True] * 4, [True, True, True, False]]
    assert not two.learns_all


def test_each_robot_uses_its_own_statistics_and_missing_dims_are_zero():
    arm = ActionSpace(groups=(Group(name="joints", size=2, kind="joints"),))
    other = ActionSpace(groups=(Group(name="position", size=1, kind="position"), *arm.groups))
    whole = merge_spaces({"arm": arm, "other": other}, "action")  # joints, position
    bounds = [{"min": [-1.0, -2.0], "max": [1.0, 2.0]}, {"min": [0.0, -4.0, -8.0], "max": [2.0, 4.0, 8.0]}]
    normalizer = Normalizer(whole, list(zip((arm, other), bounds, strict=True)), "minmax", what="action", clip=True)
    raw = torch.tensor([[1.0, 1.0, 9.0], [2.0, 4.0, 1.5]])[:, None].expand(2, 5, 3)  # (B, N, A)
    robots = torch.tensor([0, 1])
    got = normalizer.normalize(raw, robots)
    assert got[:, 0].tolist() == [[1.0, 0.5, 0.0], [0.5, 0.5, 0.5]]
    assert normalizer.known.tolist() == [[True, True, False], [True, True, True]]
    back = normalizer.denormalize(got, robots)
    assert back[:, 4].tolist() == [[1.0, 1.0, 0.0], [2.0, 4.0, 1.5]]


def test_missing_or_wrong_statistics_are_errors(tmp_path):
    with pytest.raises(StatisticsError, match=r"action statistics lack \['q01', 'q99'\]"):
        make_normalizer("quantile", statistics={"mean": [0.0] * 4, "std": [1.0] * 4})
    with pytest.raises(StatisticsError, match="have 3 dims, the action space has 4"):
        make_normalizer("meanstd", statistics={"mean": [0.0] * 3, "std": [1.0] * 3})
    with pytest.raises(StatisticsError, match="not finite"):
        make_normalizer("meanstd", statistics={"mean": [0.0] * 4, "std": [float("nan")] * 4})
    with pytest.raises(StatisticsError, match=r"no statistics at .*statistics.json"):
        read_statistics(tmp_path / "statistics.json")
    (tmp_path / "statistics.json").write_text(json.dumps({"arm": {"action": {}}}))
    with pytest.raises(StatisticsError, match="expected lists of numbers by name"):
        read_statistics(tmp_path / "statistics.json")


def test_statistics_are_equal_after_writing_and_reading(tmp_path):
    proprio = {key: [value + 1 for value in values[:2]] for key, values in STATISTICS.items()}
    robots = {"arm": Statistics(STATISTICS, proprio, "abc"), "other": Statistics({}, {}, "def")}
    (tmp_path / "statistics.json").write_text(write_statistics(robots))
    assert read_statistics(tmp_path / "statistics.json") == robots


def test_an_older_checkpoint_acts_as_it_was_trained(tmp_path):
    """Its half ranges up to 1e-6 were replaced by 1, and its resting dims were clipped at their quantiles."""
    space = ActionSpace(groups=(Group(name="joints", size=4, kind="joints"),))  # ordinary, at rest, tiny, constant
    old = {
        "min": [-1.0, 0.0, 0.0, 0.3],
        "q01": [-0.5, 0.0, 0.0, 0.3],
        "q10": [-0.4, 0.0, 1e-8, 0.3],
        "q90": [0.4, 0.0, 9e-8, 0.3],
        "q99": [0.5, 0.0, 1e-7, 0.3],
        "max": [1.0, 100.0, 1e-7, 0.3],
        "mean": [0.0, 1.0, 5e-8, 0.3],
        "std": [0.2, 10.0, 3e-8, 0.0],
    }
    robots = {"arm": Statistics(old, old, "abc")}
    (tmp_path / "statistics.json").write_text(write_statistics(robots))
    kept = read_statistics(tmp_path / "statistics.json")["arm"].action
    for method, expected in (
        ("quantile", [0.5, 1.0, 1 + 5e-8, 0.3]),
        ("minmax", [1.0, 100.0, 1 + 5e-8, 0.3]),
        ("meanstd", [0.2, 11.0, 1 + 5e-8, 0.3]),
    ):
        of = Normalizer(space, [(space, kept)], method, what="action", clip=True)
        torch.testing.assert_close(of.denormalize(torch.ones(1, 1, 4), ZEROS)[0, 0], torch.tensor(expected))
