from __future__ import annotations

import pytest

from anyvla_sim.base import Suite, Task
from anyvla_sim.names import suggest
from anyvla_sim.spec import Spec


def test_the_limit_of_a_task_comes_before_that_of_its_suite() -> None:
    suite = Suite("two", [Task("short", "a", (), horizon=60), Task("usual", "a", ())], horizon=120)
    assert (suite.limit("short"), suite.limit("usual")) == (60, 120)
    assert Suite("one", [Task("long", "a", (), horizon=200)], horizon=120).limit("long") == 200
    with pytest.raises(ValueError, match="suite 'two' has no task 'shrt': did you mean 'short'"):
        suite.limit("shrt")


def test_the_defaults_of_a_suite_and_a_task() -> None:
    """20 episodes of each task, any seed, and success at the first time that the goal is reached."""
    suite = Suite("plain", [], horizon=10)
    assert (suite.episodes, suite.starts, suite.success_rule) == (20, None, "reached")
    assert (dict(suite.groups), list(suite.chains)) == ({}, [])
    task = Task("a", "b", ("c",))
    assert (task.paraphrases, task.horizon, task.episodes) == ((), None, None)


def test_a_benchmark_is_opened_with_its_settings() -> None:
    benchmark = Spec("tests.evaluation.toy_world:Toy", {"render": "native", "fails": [3]}).open()
    assert benchmark.settings == {"render": "native", "fails": [3], "marks": "", "leak_mb": 0}
    with pytest.raises(ValueError, match=r"the benchmark Toy: .*color"):
        Spec("tests.evaluation.toy_world:Toy", {"color": "red"}).open()


def test_the_nearest_names_are_suggested_or_else_all() -> None:
    assert suggest("drawer-opn", ["drawer-open", "door-close"]) == "did you mean 'drawer-open'?"
    assert suggest("xyz", ["drawer-open", "door-close"]) == "known: drawer-open, door-close"
