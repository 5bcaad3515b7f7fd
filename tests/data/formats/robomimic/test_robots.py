from __future__ import annotations

import pytest

from anyvla.data.formats.robomimic.robots import known_embodiment


@pytest.mark.parametrize(
    ("robots", "name"),
    [
        (["Panda"], "libero_panda"),
        (["MountedPanda"], "libero_panda"),  # LIBERO's tables and floors mount the same arm in two ways
        (["OnTheGroundPanda"], "libero_panda"),
        ("Sawyer", "libero_sawyer"),
    ],
)
def test_an_arm_has_one_name_however_it_is_mounted(robots: list[str] | str, name: str) -> None:
    env = {"env_kwargs": {"robots": robots}}
    found = known_embodiment(env, True, ["agentview"], ["ee_pos"], {"ee_pos": 3, "actions": 7})
    assert found is not None
    assert found.name == name
