from __future__ import annotations

import pytest

from anyvla.config import ConfigError
from anyvla.report.published import FILE, Published, fit, published_for, read_published

OURS = {
    "horizon": 300,
    "episodes": 50,
    "settings": {"render": "native", "cameras": {"agentview": [256, 256]}, "settling": 10},
}
SAME = {"horizon": 300, "episodes": 50, "settings": {"render": "native", "cameras": {"agentview": [256, 256]}}}


def made(**changes):
    entry = {
        "benchmark": "libero", "suites": ("goal",), "system": "a policy", "measure": "episodes", "number": 79.2,
        "unit": "%", "source": "a paper", "checked": True, "protocol": SAME,
    }  # fmt: skip
    return Published(**(entry | changes))


def test_the_file_is_well_made_and_says_where_each_number_is_from():
    known = read_published()
    assert len({(p.benchmark, p.suites, p.system, p.measure) for p in known}) == len(known)
    for p in known:
        assert p.source.startswith("https://") or not p.checked, p


def test_the_numbers_of_a_suite_come_best_first_and_with_averages_over_suites():
    goal = published_for("libero/goal")
    assert {"OpenVLA (one model a suite)", "OpenVLA-OFT (one model for all)"} <= {p.system for p in goal}
    assert all("goal" in p.suites for p in goal)
    assert [p.number for p in goal] == sorted((p.number for p in goal), reverse=True)
    assert published_for("toy/line") == []
    assert {p.unit for p in published_for("calvin/ABC-D")} == {"tasks"}


def test_only_a_protocol_that_states_all_and_agrees_in_all_is_the_same():
    assert fit(made(), OURS).same
    other = fit(made(protocol=SAME | {"horizon": 220}), OURS)
    assert not other.same
    assert other.differs == ["horizon: 220, ours 300"]
    silent = fit(made(protocol={"horizon": 300}), OURS)
    assert not silent.same
    assert silent.differs == []
    assert silent.unstated == ["episodes", "settings.render", "settings.cameras"]


def test_another_camera_differs_as_a_whole():
    two = OURS | {"settings": OURS["settings"] | {"cameras": {"agentview": [256, 256], "hand": [256, 256]}}}
    assert fit(made(), two).differs == ["settings.cameras: agentview 256x256, ours agentview 256x256, hand 256x256"]


def test_what_ours_does_not_have_is_named():
    assert fit(made(protocol=SAME | {"settling": 10}), OURS).differs == ["settling: 10, ours not given"]


def test_an_average_over_suites_is_never_the_same():
    assert fit(made(suites=("goal", "object")), OURS).differs == ["the average of goal, object"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"number": 104.0}, "outside of 0..100"),
        ({"unit": "tasks", "number": 4.0}, "not given in 'tasks'"),
        ({"suites": ()}, "none"),
    ],
)
def test_impossible_entries_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        made(**changes)


def test_a_broken_file_names_its_entry(tmp_path):
    text = FILE.read_text(encoding="utf-8")
    (tmp_path / "published.yaml").write_text(text + "- {benchmark: libero, sweets: [goal]}\n")
    with pytest.raises(ConfigError, match=rf"(?s)entry {len(read_published()) + 1}:.*sweets"):
        read_published(tmp_path / "published.yaml")
