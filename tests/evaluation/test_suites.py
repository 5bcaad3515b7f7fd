from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyvla.config import ConfigError
from anyvla.evaluation.suites import open_suite
from anyvla_sim.spec import Spec
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.evaluation.toy_world import Toy


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """Record the specifications that are connected; each gives the toy benchmark."""
    seen: list[Spec] = []

    class Named(Toy):
        name = "any"

        def suites(self) -> list[str]:
            return ["line", "Cart-v1"]

        def suite(self, name: str) -> Any:
            return super().suite("line")

    def connect(spec: Spec) -> Toy:
        seen.append(spec)
        return Named()

    monkeypatch.setattr("anyvla.evaluation.suites.connect", connect)
    return seen


def test_settings_and_interpreter_reach_the_workers(specs: list[Spec]) -> None:
    opened = open_suite("toy/line", {"render": "native"}, "/opt/python")
    assert specs == [Spec("tests.evaluation.toy_world:Toy", {"render": "native"}, "/opt/python")]
    assert opened.spec == specs[0]
    assert (opened.name, opened.suite.name, opened.embodiment.name) == ("any/line", "line", "cart")
    open_suite("toy/line")
    assert specs[1] == Spec("tests.evaluation.toy_world:Toy", {}, None)


def test_an_environment_of_gymnasium_is_named_by_its_id(specs: list[Spec]) -> None:
    given = {"mapping": {"success": "done"}, "id": "Other-v0"}
    open_suite("gym:Cart-v1", given)
    assert specs[0].settings == {"mapping": {"success": "done"}, "id": "Cart-v1"}
    assert given["id"] == "Other-v0"  # the settings of the recipe stay as they are


def test_a_mapping_is_read_from_its_file(specs: list[Spec], tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("cameras: {top: render}\ncontrol_hz: 25\n")
    open_suite("gym:Cart-v1", {"mapping": str(tmp_path / "map.yaml")})
    assert specs[0].settings["mapping"] == {"cameras": {"top": "render"}, "control_hz": 25}
    with pytest.raises(ConfigError, match=r"the mapping none\.yaml"):
        open_suite("gym:Cart-v1", {"mapping": "none.yaml"})


def test_an_unknown_suite_names_the_nearest(specs: list[Spec]) -> None:
    with pytest.raises(ConfigError, match="benchmark toy has no suite 'lime': did you mean 'line'"):
        open_suite("toy/lime")
