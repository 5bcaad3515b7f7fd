from __future__ import annotations

import hashlib
import json

import pytest

from anyvla.config import ConfigError
from anyvla.report.published import FILE, PublishedResult, find_published, match_protocol, read_published

OURS = {
    "horizon": 300,
    "episodes": 50,
    "settings": {"render": "native", "cameras": {"agentview": [256, 256]}, "settling": 10},
}
SAME = {"horizon": 300, "episodes": 50, "settings": {"render": "native", "cameras": {"agentview": [256, 256]}}}
SOURCES = {  # a checksum of the numbers of each
    "https://arxiv.org/abs/2506.01844 (Table 2)": "8f32dbbf54c3",
    "https://github.com/Robot-VLAs/RoboVLMs (README)": "470b459b9dbd",
    "https://github.com/Robot-VLAs/RoboVLMs (README, as it reports GR-1)": "ba97bdf52a34",
    "https://github.com/Robot-VLAs/RoboVLMs (README, as it reports RT-1)": "425f4b9a9e99",
    "https://github.com/moojink/openvla-oft (LIBERO.md)": "7c35a08e23fc",
    "https://github.com/openvla/openvla (README)": "3e59f7cd9422",
    "https://huggingface.co/Mark-ZJTang/alam_plus_pi_metaworld_mt50": "d8ee403d4fea",
    "https://huggingface.co/docs/lerobot/pi05": "1841682038db",
    "https://intuitive-robots.github.io/flower_vla": "cf8d73abcb93",
    "leaderboards": "9fae6505d1ff",
}


def made(**changes):
    entry = {
        "benchmark": "libero", "suites": ("goal",), "system": "a policy", "measure": "episodes", "number": 79.2,
        "unit": "%", "source": "a paper", "checked": True, "protocol": SAME,
    }  # fmt: skip
    return PublishedResult(**(entry | changes))


def test_the_file_is_valid_and_names_each_source():
    known = read_published()
    assert len({(p.benchmark, p.suites, p.system, p.measure) for p in known}) == len(known)
    for p in known:
        assert p.source.startswith("https://") or not p.checked, p


def checksum(source: str) -> str:
    """Return the checksum of all numbers of a source, in the order of the file."""
    taken = [
        [p.benchmark, p.suites, p.system, p.measure, p.number, p.unit, p.checked, p.protocol]
        for p in read_published()
        if p.source == source
    ]
    return hashlib.sha256(json.dumps(taken).encode()).hexdigest()[:12]


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_the_numbers_of_a_source_are_unchanged(source):
    """To change a number, read its source again and then change the checksum."""
    assert checksum(source) == SOURCES[source]


def test_every_source_has_its_checksum():
    assert {p.source for p in read_published()} == set(SOURCES)


@pytest.mark.parametrize(
    ("suite", "system", "measure", "number"),
    [
        # Tables of the RoboVLMs repository: chains of five tasks, after training on four scenes, and on three others.
        ("calvin/ABCD-D", "RoboVLMs (KosMos, policy head)", "length", 4.49),
        ("calvin/ABC-D", "RoboVLMs (KosMos, policy head)", "length", 4.25),
        ("calvin/ABCD-D", "GR-1", "length", 4.21),
        ("calvin/ABC-D", "GR-1", "length", 3.06),
        ("calvin/ABC-D", "RT-1", "length", 0.90),
        # OpenVLA's table of LIBERO, and that of OpenVLA-OFT.
        ("libero/spatial", "OpenVLA (one model a suite)", "episodes", 84.7),
        ("libero/object", "OpenVLA (one model a suite)", "episodes", 88.4),
        ("libero/goal", "OpenVLA (one model a suite)", "episodes", 79.2),
        ("libero/10", "OpenVLA (one model a suite)", "episodes", 53.7),
        ("libero/10", "OpenVLA-OFT (one model a suite)", "episodes", 97.1),
        ("libero/goal", "OpenVLA-OFT (one model for all)", "episodes", 96.8),
        ("libero/10", "pi0.5 (openpi)", "episodes", 92.4),
        ("metaworld/mt50", "SmolVLA (2.25B)", "groups", 68.24),
    ],
)
def test_well_known_numbers(suite, system, measure, number):
    [found] = [p for p in find_published(suite) if (p.system, p.measure) == (system, measure)]
    assert found.number == number


def test_a_protocol_must_state_all_four_keys():
    for missing in ("horizon", "episodes"):
        stated = {key: value for key, value in SAME.items() if key != missing}
        assert match_protocol(made(protocol=stated), OURS).unstated == [missing]
    for missing, kept in (("settings.render", "cameras"), ("settings.cameras", "render")):
        stated = SAME | {"settings": {kept: SAME["settings"][kept]}}
        assert match_protocol(made(protocol=stated), OURS).unstated == [missing]


def test_the_numbers_of_a_suite_come_best_first_and_with_averages_over_suites():
    goal = find_published("libero/goal")
    assert {"OpenVLA (one model a suite)", "OpenVLA-OFT (one model for all)"} <= {p.system for p in goal}
    assert all("goal" in p.suites for p in goal)
    assert [p.number for p in goal] == sorted((p.number for p in goal), reverse=True)
    assert find_published("toy/line") == []
    assert {p.unit for p in find_published("calvin/ABC-D")} == {"tasks"}


def test_a_protocol_must_agree_in_every_stated_key():
    assert match_protocol(made(), OURS).same
    other = match_protocol(made(protocol=SAME | {"horizon": 220}), OURS)
    assert not other.same
    assert other.differs == ["horizon: 220, ours 300"]
    silent = match_protocol(made(protocol={"horizon": 300}), OURS)
    assert not silent.same
    assert silent.differs == []
    assert silent.unstated == ["episodes", "settings.render", "settings.cameras"]


def test_another_camera_differs_as_a_whole():
    two = OURS | {"settings": OURS["settings"] | {"cameras": {"agentview": [256, 256], "hand": [256, 256]}}}
    assert match_protocol(made(), two).differs == [
        "settings.cameras: agentview 256x256, ours agentview 256x256, hand 256x256"
    ]


def test_keys_that_ours_lacks_are_named():
    assert match_protocol(made(protocol=SAME | {"settling": 10}), OURS).differs == ["settling: 10, ours not given"]


def test_an_average_over_suites_is_never_the_same():
    assert match_protocol(made(suites=("goal", "object")), OURS).differs == ["the average of goal, object"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"number": 104.0}, "outside 0..100"),
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
