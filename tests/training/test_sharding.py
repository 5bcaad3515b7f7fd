"""A policy that is sharded over processes acts like a whole one, and is saved and restored exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from anyvla.config import ConfigError
from anyvla.files import tensor_files
from anyvla.policy import VLA
from anyvla.training import checkpoint
from anyvla.training.launchers import Launch
from anyvla.training.processes import Processes
from anyvla.training.shard_rules import check_shardable
from anyvla.training.shard_writer import assign
from anyvla.training.warm_start.origin import open_origin
from tests import small
from tests.training import sharded_states
from tests.training.launched import Launcher
from tests.training.sharded_states import FILES, make_state, read_all


def run(launch: Launcher, target: Any, count: int, *arguments: Any) -> list[Any]:
    """Run a function in processes, and return the lines of JSON that each printed."""
    ended = launch(target, count, *arguments)
    assert [of.status for of in ended] == [0] * count, "\n".join(of.err for of in ended)
    return [of.said for of in ended]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Saved(NamedTuple):
    """A checkpoint that 2 processes wrote, and what each of them printed."""

    folder: Path
    said: list[list[Any]]


@pytest.fixture(scope="module")
def written(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    return Saved(folder, run(launch, sharded_states.save_new, 2, folder))


@pytest.fixture
def saved(written: Saved) -> Path:
    return written.folder


def test_it_is_written_in_shards_of_whole_tensors_by_all_processes(saved: Path) -> None:
    whole = make_state()
    whole.save(saved.parent / "whole", {"name": "new"})
    sharded, single = read_all(saved), read_all(saved.parent / "whole")
    assert {name.partition(" ")[0] for name in sharded} == set(FILES)
    # tied weights have one of their names
    tied = {
        "model.safetensors backbone.model.lm_head.weight",
        "model.safetensors backbone.model.model.language_model.embed_tokens.weight",
    }
    assert sharded.keys() - tied == single.keys() - tied
    for name in sharded.keys() & single.keys():
        torch.testing.assert_close(sharded[name], single[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name in FILES:
        sizes = [path.stat().st_size for path in tensor_files.list_files(saved / name)[1:]]
        assert len(sizes) == 2
        assert max(sizes) < 1.2 * min(sizes)


def test_the_rest_of_the_folder_is_that_of_a_single_process(saved: Path) -> None:
    whole = saved.parent / "single"
    checkpoint.save(whole, make_state(), 5, {"name": "new"}, "card")

    def others(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file() and "safetensors" not in path.name]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    assert others(saved) == others(whole)


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_restores_it_exactly(launch: Launcher, saved: Path, tmp_path: Path, count: int) -> None:
    """From the form that the other wrote: shards of 2 processes, and then those of `count` or one file."""
    if count == 1:
        state = make_state(seed=1)
        assert checkpoint.restore(saved, state) == 5
        checkpoint.save(tmp_path / "again", state, 5, {"name": "again"}, "card")
    else:
        run(launch, sharded_states.save_again, count, saved, tmp_path / "again")
    run(launch, sharded_states.save_again, 2, tmp_path / "again", tmp_path / "back")
    assert_equal(read_all(tmp_path / "back"), read_all(saved))


def test_it_loads_as_a_policy_and_as_the_start_of_another_training(saved: Path) -> None:
    averaged = {name.partition(" ")[2]: of for name, of in read_all(saved).items() if name.startswith("model.")}
    weights = VLA.load(saved).state_dict()
    assert all(torch.equal(weights[name], of) for name, of in averaged.items())
    origin = open_origin(str(saved))
    _, stored = origin.describe()
    with origin.opened(stored, None) as read:
        assert all(torch.equal(read(name), averaged[there]) for name, there in stored.items())


def test_process_0_acts_alone_with_the_average_of_the_weights(written: Saved) -> None:
    actions = written.said[0][1]
    expected = VLA.load(written.folder).predict(small.batch(2, 1))
    torch.testing.assert_close(torch.tensor(actions), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_no_process_uses_has_no_gradient(written: Saved) -> None:
    """Zeros in its place would let the optimizer decay it."""
    for said in written.said:
        assert said[-1].pop("queries") == 1
        assert list(said[-1].values()) == [1]
        assert next(iter(said[-1])).startswith("decoder.")


def test_a_process_that_cannot_write_fails_all_of_them_and_leaves_nothing(written: Saved) -> None:
    for said in written.said:
        assert said[0] == [28, "No space left on device", []]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_in_a_save_leaves_the_last_checkpoint(launch: Launcher, tmp_path: Path, victim: int) -> None:
    def save(folder: Path, die_at: int) -> list[int]:
        ended = launch(sharded_states.save_twice, 2, folder, victim, die_at, tmp_path / f"operations-{die_at}")
        return [of.status for of in ended]

    assert save(tmp_path / "straight", 0) == [0, 0]
    count = int((tmp_path / "operations-0").read_text())
    assert count >= 6  # two for each shard
    steps, ends = {step: read_all(tmp_path / "straight" / "train" / f"step-0000000{step}") for step in (5, 6)}, set()
    for moment in range(1, count + 1):
        folder = tmp_path / f"at-{moment}"
        assert save(folder, moment)[victim] == -9
        newest = checkpoint.latest(folder)
        assert newest is not None
        checkpoint.check_whole(folder, newest)
        ends.add(checkpoint.read_step(newest))
        assert_equal(read_all(newest), steps[checkpoint.read_step(newest)])
        checkpoint.tidy(folder)
        assert [path for path in folder.rglob("*") if "tmp" in path.name] == []
    assert 5 in ends


def test_tensors_are_shared_out_by_size() -> None:
    sizes = [1000, 10, 600, 390, 10, 10, 0]
    writer = assign({str(number): torch.zeros(size) for number, size in enumerate(sizes)}, 2)
    assert [sum(size for number, size in enumerate(sizes) if writer[str(number)] == rank) for rank in (0, 1)] in (
        [1010, 1010],
        [1020, 1000],
        [1000, 1020],
    )


def refused(count: int = 2, backbone: Any = small.NANO, history: Any = "none", **training: Any) -> None:
    fuser = "identity" if history == "none" else {"name": "lstm", "hidden": 8, "layers": 1}
    recipe = small.recipe(small.model(history, fuser, backbone=backbone), {"shard": True, **training})
    check_shardable(recipe, torch.device("cpu"), Processes(Launch("test", 0, count, 0, "", 0), None))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backbone": small.NANO | {"quantize": "int4"}}, r"model\.backbone\.quantize packs them in blocks"),
        ({"optim": {"name": "adamw8bit"}}, r"adamw8bit rounds it in blocks of 256 numbers"),
        ({"history": {"name": "recurrent", "at_once": 2}}, r"use --training\.gradient_checkpointing true"),
    ],
)
def test_what_cannot_be_sharded_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refused(**keys)
    refused(count=1, **keys)  # one process shards nothing


def test_a_plain_recipe_is_not_refused() -> None:
    refused(history={"name": "recurrent", "steps": 40})
