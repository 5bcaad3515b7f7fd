"""Validation in training: numbers as computed by hand, no effect on the training, and the best checkpoint by them."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.checkpoint.of_run import find_checkpoint, list_checkpoints
from anyvla.config import ConfigError, build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture, open_mixture
from anyvla.data.training.window import WindowConfig
from anyvla.decoders.regression import RegressionDecoder
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.recipe import Recipe
from anyvla.robot.space import ActionSpace, Group
from anyvla.training.loop import train
from anyvla.training.measurements import undisturbed
from anyvla.training.validation import Validation
from anyvla.types import Batch, Observation
from tests import small
from tests.training.by_hand import loss_by_hand

BEFORE = {"name": "policy_head", "window": 2}
RECURRENT = {"name": "recurrent", "steps": 16}
LSTM = {"name": "lstm", "hidden": 32, "layers": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "one", small.embodiment(), [small.episode(9 + i, seed=i) for i in range(8)])
    write_dataset(folder / "two", small.embodiment(), [small.episode(6, seed=50 + i) for i in range(5)])
    return folder


def made(root: Path, held_out: Any = None, sources: Any = ("one",), model: Any = None, **training: Any) -> Recipe:
    given = {"steps": 8, "batch_size": 4, "log_every": 4, "precision": "float32", "optim": {"lr": 5e-3}}
    data = {"sources": [{"path": str(root / name)} for name in sources], "validation": held_out or {"episodes": 2}}
    return small.recipe(model or small.model(BEFORE, LSTM), given | training, **data)


def run(recipe: Recipe, folder: Path, **keys: Any) -> Path:
    return train(recipe, open_mixture(recipe.data, folder), folder, **keys)


def log(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train" / "log.jsonl").read_text().splitlines()]
    out: dict[int, dict[str, Any]] = {}
    for line in lines:
        out[line["step"]] = out.get(line["step"], {}) | line
    return out


def validation(recipe: Recipe, mixture: Mixture, vla: VLA) -> Validation:
    assert mixture.validation is not None
    assert recipe.data.validation is not None
    window = WindowConfig(window=vla.history.window, chunk=4, stride=2, whole=vla.history.carries_state)
    return Validation(vla, mixture.validation, recipe.data.validation, recipe.training, window)


def windows_by_hand(mixture: Mixture, window: int) -> list[list[Batch]]:
    """Return all windows of each held-out episode, of each data set, the ones over its end included."""
    out = []
    for dataset in mixture.datasets:
        batches = []
        for episode in (dataset[i] for i in range(len(dataset))):
            for last in range(len(episode) + 2 * (window - 1)):
                steps = [t for t in range(last - 2 * (window - 1), last + 1, 2) if 0 <= t < len(episode)]
                data = small.batch(1, window)
                for part in (data.proprio, data.actions, data.action_mask, data.step_mask, data.images):
                    part.zero_()
                for k, t in enumerate(steps):
                    data.step_mask[0, k] = True
                    data.proprio[0, k] = torch.from_numpy(episode.proprio[t].copy())
                    data.images[0, k] = torch.from_numpy(
                        np.stack([np.asarray(episode.images[c])[t] for c in ("corner", "wrist")])
                    )
                    for n in range(min(4, len(episode) - t)):
                        data.action_mask[0, k, n] = True
                        data.actions[0, k, n] = torch.from_numpy(episode.actions[t + n].copy())
                data.instructions[0] = episode.instruction  # type: ignore[index]
                batches.append(data)
        out.append(batches)
    return out


@pytest.mark.parametrize("decoder", ["regression", "flow"])
def test_the_loss_is_the_one_computed_by_hand(root, decoder):
    model = small.model(BEFORE, LSTM, decoder=decoder)
    recipe = made(root, {"episodes": 2, "seed": 3}, model=model)
    mixture = open_mixture(recipe.data, root)
    vla = small.awake(VLA(recipe.model, mixture.robots())).train()
    measured = validation(recipe, mixture, vla).measure(1)["validation.loss"]
    assert mixture.validation is not None
    [batches] = windows_by_hand(mixture.validation, window=2)
    assert len(batches) == sum(int(length) + 2 for length in mixture.validation.datasets[0].lengths)
    total, count = loss_by_hand(vla.eval(), batches, 3, 4, 0)
    assert measured == pytest.approx(total / count, rel=1e-5)


def test_each_data_set_counts_by_its_share(root):
    recipe = made(root, {"episodes": 1}, ("one", "two"))
    mixture = open_mixture(recipe.data, root)
    vla = VLA(recipe.model, mixture.robots())
    measured = validation(recipe, mixture, vla).measure(1)["validation.loss"]
    assert mixture.validation is not None
    per_step, first = [], 0
    for dataset, batches in zip(
        mixture.validation.datasets, windows_by_hand(mixture.validation, window=2), strict=True
    ):
        total, count = loss_by_hand(vla.eval(), batches, 0, 4, first)
        steps = int(dataset.lengths.sum())
        per_step.append((total / steps, count / steps))
        first += len(batches)
    assert measured == pytest.approx(sum(t for t, _ in per_step) / sum(c for _, c in per_step), rel=1e-5)


@pytest.mark.parametrize(
    ("history", "fuser"),
    [("none", "identity"), (BEFORE, LSTM), (RECURRENT, LSTM)],
    ids=["none", "policy_head", "recurrent"],
)
def test_the_errors_are_those_of_acting_at_each_step_once(root, history, fuser):
    recipe = made(root, model=small.model(history, fuser, chunk=4, execute=2))
    mixture = open_mixture(recipe.data, root)
    vla = VLA(recipe.model, mixture.robots()).train()
    measured = validation(recipe, mixture, vla).measure(1)
    assert mixture.validation is not None
    distance, agree = [], []
    [dataset] = mixture.validation.datasets
    vla.eval()
    for episode in (dataset[i] for i in range(len(dataset))):
        for t in range(len(episode)):
            session = vla.start(episode.instruction)
            for before in range(t % 2, t + 1, 2):
                images = {name: np.asarray(frames)[before] for name, frames in episode.images.items()}
                [chunk] = vla.act([Observation(images, episode.proprio[before])], [session])
            for n in range(min(4, len(episode) - t)):
                wanted = episode.actions[t + n]
                distance.append(float(np.linalg.norm(chunk.actions[n, :3] - wanted[:3])))
                agree.append((chunk.actions[n, 3] >= 0) == (wanted[3] >= 0))
    assert measured["validation.position_error"] == pytest.approx(np.mean(distance), rel=1e-4)
    assert measured["validation.gripper_accuracy"] == pytest.approx(np.mean(agree))


def test_numbers_that_are_not_finite_are_left_out_and_training_continues(root, tmp_path, monkeypatch, caplog):
    sample = RegressionDecoder.sample
    monkeypatch.setattr(RegressionDecoder, "sample", lambda self, *of: sample(self, *of) * float("nan"))
    run(made(root, validate_every=4), tmp_path)
    assert "validation.loss" in log(tmp_path)[4]
    assert not [name for line in log(tmp_path).values() for name in line if name.startswith("validation.pos")]
    assert "step 4: not finite on the held-out episodes, and left out: validation.position_error" in caplog.text


def test_robots_with_other_actions_share_a_validation(root, tmp_path):
    """A robot without a gripper has no part in its accuracy, and is compared in its own dims."""
    whole = small.embodiment()
    arm = dataclasses.replace(
        whole, name="arm", action=ActionSpace(groups=(whole.action.groups[0], Group(name="elbow", size=2, unit="rad")))
    )
    episodes = [dataclasses.replace(small.episode(7, seed=70 + i), embodiment=arm) for i in range(4)]
    episodes = [dataclasses.replace(e, actions=np.pad(e.actions[:, :3], ((0, 0), (0, 2)))) for e in episodes]
    write_dataset(tmp_path / "arm", arm, episodes)
    recipe = made(root, {"episodes": 2}, (root / "one", tmp_path / "arm"))
    mixture = open_mixture(recipe.data, root)
    vla = VLA(recipe.model, mixture.robots())
    given = validation(recipe, mixture, vla)
    measured = given.measure(1)
    assert list(given.names) == list(measured)
    assert [name.removeprefix("validation.") for name in measured] == [
        "loss",
        "position_error",
        "gripper_accuracy",
        "elbow_deg",
    ]
    assert mixture.validation is not None
    alone = Mixture(mixture.validation.datasets[:1], [1.0], [None], mixture)
    of_one = Validation(vla, alone, given.config, recipe.training, given.windows.config).measure(1)
    assert measured["validation.gripper_accuracy"] == pytest.approx(of_one["validation.gripper_accuracy"])
    assert measured["validation.elbow_deg"] == pytest.approx(0, abs=1e-3)  # it never moves, and the policy knows


def test_at_most_so_many_windows_are_measured_and_always_the_same(root):
    recipe = made(root, {"episodes": 3, "windows": 7})
    mixture = open_mixture(recipe.data, root)
    vla = VLA(recipe.model, mixture.robots())
    one, other = (validation(recipe, mixture, vla) for _ in range(2))
    assert [len(of) for of in one.chosen] == [7]
    assert one.chosen[0].tolist() == other.chosen[0].tolist()
    assert one.measure(1) == other.measure(2)


def test_validation_changes_no_result_of_training(root, tmp_path, monkeypatch):
    """Dropout and noise come from generators that a measurement uses too."""
    join = VLA._join_features
    monkeypatch.setattr(VLA, "_join_features", lambda self, *of: torch.dropout(join(self, *of), 0.2, self.training))
    model = small.model(BEFORE, LSTM, decoder="flow")
    rare = run(made(root, model=model, validate_every=100), tmp_path / "rare")
    often = run(made(root, model=model, validate_every=1), tmp_path / "often")
    one, other = VLA.load(rare).state_dict(), VLA.load(often).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    a, b = log(tmp_path / "rare"), log(tmp_path / "often")
    assert [step for step, line in b.items() if "validation.loss" in line] == list(range(1, 9))
    assert [(a[step]["loss"], a[step]["grad_norm"]) for step in (4, 8)] == [
        (b[step]["loss"], b[step]["grad_norm"]) for step in (4, 8)
    ]
    assert a[8]["validation.loss"] == b[8]["validation.loss"]


def test_modes_and_generators_are_as_before():
    vla = small.policy().train()
    vla.fuser.eval()  # a part that is kept in another mode
    modes = {name: module.training for name, module in vla.named_modules()}
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with undisturbed(vla):
        assert not any(module.training for module in vla.modules())
        torch.rand(5), np.random.rand(5), random.random(), torch.manual_seed(9)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
    assert {name: module.training for name, module in vla.named_modules()} == modes


def test_the_average_of_the_weights_is_measured_where_it_acts(root, tmp_path):
    recipe = made(root, ema={"decay": 0.9}, validate_every=8)
    final = run(recipe, tmp_path)
    mixture = open_mixture(recipe.data, root)
    again = validation(recipe, mixture, VLA.load(final)).measure(8)
    logged = log(tmp_path)[8]
    assert {name: logged[name] for name in again} == pytest.approx(again)


class Scripted:
    """A measurement with given numbers, which may fail at a step."""

    every, saves_first = 2, False

    def __init__(self, numbers: Mapping[int, float], higher: bool = False, fails_at: int = 0) -> None:
        self.numbers, self.names, self.fails_at = numbers, {"exam.grade": higher}, fails_at
        self.measured: list[int] = []

    def start(self, vla: VLA) -> Scripted:
        return self

    def describe(self) -> str:
        return "an exam"

    def measure(self, step: int) -> Mapping[str, float]:
        if step == self.fails_at:
            raise Interrupted("someone pressed Ctrl-C")
        self.measured.append(step)
        return {"exam.grade": self.numbers[step]}


@pytest.mark.parametrize(("higher", "best"), [(False, 4), (True, 2)])
def test_the_best_checkpoint_is_that_of_the_best_measurement(root, tmp_path, higher, best):
    exam = Scripted({2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0}, higher)
    run(made(root, best="exam.grade", checkpoint_every=100), tmp_path, measurements=[exam])
    assert exam.measured == [2, 4, 6, 8]
    assert find_checkpoint(tmp_path, "best") == tmp_path / "train" / f"step-{best:08d}"
    assert find_checkpoint(tmp_path, "last") == tmp_path / "checkpoint"
    assert [(of.step, of.score.value) for of in list_checkpoints(tmp_path) if of.score is not None] == [
        (best, exam.numbers[best]),
        (8, 2.0),
    ]


@pytest.mark.parametrize(
    ("training", "name"),
    [({}, "validation.loss"), ({"best": "validation.gripper_accuracy"}, "validation.gripper_accuracy")],
)
def test_the_score_is_the_validation_loss_unless_another_is_named(root, tmp_path, training, name):
    run(made(root, validate_every=4, **training), tmp_path)
    found = [of.score for of in list_checkpoints(tmp_path)]
    assert {(of.name, of.higher_is_better) for of in found if of is not None} == {(name, "gripper" in name)}


def test_a_checkpoint_is_written_before_a_measurement_that_may_fail(root, tmp_path):
    exam = Scripted({2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0}, fails_at=6)
    exam.saves_first = True
    recipe = made(root, best="exam.grade", checkpoint_every=100)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, measurements=[exam])
    assert [(of.step, of.score and of.score.value) for of in list_checkpoints(tmp_path)] == [(4, 1.0), (6, None)]
    exam.fails_at = 0
    run(recipe, tmp_path, measurements=[exam])  # the measurement after step 6 is made up for
    assert exam.measured == [2, 4, 6, 8]
    assert {step: line["exam.grade"] for step, line in log(tmp_path).items() if "exam.grade" in line} == exam.numbers
    assert [(of.step, of.score and of.score.value) for of in list_checkpoints(tmp_path)] == [(4, 1.0), (8, 2.0)]
    assert find_checkpoint(tmp_path, "last") == tmp_path / "checkpoint"


def test_a_kill_right_after_the_numbers_are_logged_loses_no_score(root, tmp_path):
    exam = Scripted({2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0})
    exam.saves_first = True
    recipe = made(root, best="exam.grade", checkpoint_every=100)

    def killed(text):
        if text.startswith("step 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path, measurements=[exam], say=killed)
    run(recipe, tmp_path, measurements=[exam])
    assert find_checkpoint(tmp_path, "best") == tmp_path / "train/step-00000004"


def test_a_resumed_run_measures_as_one_that_was_never_stopped(root, tmp_path):
    recipe = made(root, validate_every=3, checkpoint_every=2)
    straight = run(recipe, tmp_path / "straight")
    asked = iter([False] * 5 + [True] * 9)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "stopped", stop=lambda: next(asked))
    resumed = run(recipe, tmp_path / "stopped")
    one, other = VLA.load(straight).state_dict(), VLA.load(resumed).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    names = ("validation.loss", "validation.position_error")
    a, b = log(tmp_path / "straight"), log(tmp_path / "stopped")
    assert {s: [line[n] for n in names] for s, line in a.items() if names[0] in line} == {
        s: [line[n] for n in names] for s, line in b.items() if names[0] in line
    }


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"best": "validation.los"}, "training.best: 'validation.los' is not measured: did you mean 'validation.loss'"),
        (
            {"best": "evaluation.success"},
            "'evaluation.success' is not measured: .*Measured are validation.loss, validation.position_error",
        ),
    ],
)
def test_a_name_that_is_not_measured_is_refused_before_a_policy_is_built(
    root, tmp_path, monkeypatch, training, message
):
    monkeypatch.delattr("anyvla.training.loop.Start.build_policy")
    with pytest.raises(ConfigError, match=message):
        run(made(root, **training), tmp_path)


def test_the_name_of_a_measurement_other_than_validation_is_corrected_before_a_policy_is_built(
    root, tmp_path, monkeypatch
):
    monkeypatch.delattr("anyvla.training.loop.Start.build_policy")
    with pytest.raises(ConfigError, match=r"'exam\.grad' is not measured: did you mean 'exam\.grade'"):
        run(made(root, best="exam.grad"), tmp_path, measurements=[Scripted({})])


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"validate_every": 5}, "training.validate_every is 5, but there is no validation: hold out episodes with"),
        ({"best": "validation.loss"}, "training.best is 'validation.loss', but nothing is measured: hold out episodes"),
    ],
)
def test_measurements_without_held_out_episodes_are_refused(root, tmp_path, training, message):
    recipe = small.recipe(small.model(), {"steps": 2, "batch_size": 2} | training, root / "one")
    with pytest.raises(ConfigError, match=message):
        run(recipe, tmp_path)


def test_a_mixture_that_was_opened_without_the_split_is_refused(root, tmp_path):
    recipe = made(root)
    with pytest.raises(ValueError, match=r"data\.validation holds out episodes, but the mixture has none"):
        train(recipe, small.mixture(root / "one"), tmp_path)


def test_a_data_set_without_a_unit_has_an_error_and_one_with_a_unit_says_it():
    from anyvla.robot.space import Group
    from anyvla.training.validation import name_error

    assert name_error(build(Group, {"name": "left arm", "size": 3, "kind": "position", "unit": "m"})) == (
        "validation.left_arm_cm"
    )
    assert name_error(build(Group, {"name": "turn", "size": 3, "kind": "rotation", "rotation": "axis_angle"})) == (
        "validation.turn_deg"
    )
