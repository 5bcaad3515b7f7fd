import dataclasses
import errno
import json
import logging

import pytest
import torch
from safetensors import SafetensorError
from small import embodiment, episode, mixture, model

from anyvla.actions.space import ActionSpace
from anyvla.config import ConfigError, build, to_dict
from anyvla.data.canonical import Robot
from anyvla.data.formats.lerobot_writer import write_dataset
from anyvla.data.mixture import DataConfig
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA, VLAConfig
from anyvla.training.loop import TrainingConfig, TrainingError, pick_precision, train
from anyvla.training.optim import OptimConfig, learning_rate
from anyvla.training.resume import check_same

MODEL = model({"name": "policy_head", "window": 2}, {"name": "lstm", "hidden": 32, "layers": 1})

SECTIONS = {"model": VLAConfig, "data": DataConfig, "training": TrainingConfig}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    return mixture(root)


def config(**keys):
    defaults = {"steps": 12, "batch_size": 4, "log_every": 2, "checkpoint_every": 5, "augment": {"shift": 2}}
    return build(TrainingConfig, {**defaults, "optim": {"lr": 1e-3, "warmup_steps": 2}, **keys})


def document(training):
    return {"name": "small", "model": to_dict(MODEL), "data": {}, "training": to_dict(training)}


def run(dataset, folder, training=None, **keys):
    training = training or config()
    recipe = keys.pop("recipe", None) or document(training)
    return train(MODEL, training, dataset, dataset.robots(), folder, recipe, **keys)


def weights(checkpoint):
    return VLA.load(checkpoint).state_dict()


def test_training_lowers_the_loss_and_logs_every_line(dataset, tmp_path):
    training = config(steps=60, log_every=10, batch_size=8, optim={"lr": 3e-3, "warmup_steps": 2})
    checkpoint = run(dataset, tmp_path, training)
    lines = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert set(lines[0]["parts"]) == {"position", "gripper"}
    assert {p.name for p in checkpoint.iterdir()} >= {
        "config.yaml",
        "model.safetensors",
        "statistics.json",
        "README.md",
    }
    assert not list((tmp_path / "train").glob("step-*"))


def test_resume_is_exact(dataset, tmp_path):
    straight = run(dataset, tmp_path / "straight")
    seen = []
    with pytest.raises(Interrupted, match="stopped after 6 of 12 steps"):
        run(dataset, tmp_path / "resumed", progress=lambda p: seen.append(p.step), stop=lambda: len(seen) >= 3)
    resumed = run(dataset, tmp_path / "resumed", progress=lambda p: seen.append(p.step))
    one, other = weights(straight), weights(resumed)
    assert all(torch.equal(one[k], other[k]) for k in one)

    def log(name):
        lines = (tmp_path / name / "train" / "log.jsonl").read_text().splitlines()
        return [{k: json.loads(line)[k] for k in ("step", "loss", "lr", "grad_norm")} for line in lines]

    assert log("straight") == log("resumed")


def test_a_killed_run_goes_on_from_its_last_checkpoint(dataset, tmp_path):
    straight = run(dataset, tmp_path / "straight")

    def die(progress):
        if progress.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "killed", progress=die)
    left = tmp_path / "killed" / "train"
    (left / "step-00000008.tmp").mkdir()  # a checkpoint that was being written
    with (left / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')  # and a torn line
    killed = run(dataset, tmp_path / "killed")
    one, other = weights(straight), weights(killed)
    assert all(torch.equal(one[k], other[k]) for k in one)
    steps = [json.loads(line)["step"] for line in (left / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_is_left_alone(dataset, tmp_path):
    checkpoint = run(dataset, tmp_path)
    before = (checkpoint / "model.safetensors").stat().st_mtime_ns
    assert run(dataset, tmp_path) == checkpoint
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == before


def test_accumulation_changes_no_result(dataset, tmp_path):
    whole = config(steps=3, precision="float32")  # on any hardware: the sums of bfloat16 depend on their order
    split = config(steps=3, precision="float32", accumulate=2)
    one, other = weights(run(dataset, tmp_path / "a", whole)), weights(run(dataset, tmp_path / "b", split))
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=2e-5, rtol=1e-3)


def test_a_checkpoint_of_another_recipe_or_other_data_is_refused(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"made by another recipe \(training.optim.lr: 0.001 there, 0.1 now"):
        run(dataset, tmp_path / "run", config(optim={"lr": 0.1, "warmup_steps": 2}))
    write_dataset(tmp_path / "other", embodiment(), [episode(9, seed=9)])
    with pytest.raises(ConfigError, match="was trained on other data"):
        run(mixture(tmp_path / "other"), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_before_the_update(dataset, tmp_path, monkeypatch):
    honest, calls = VLA.loss, []

    def loss(self, batch, generator):
        calls.append(1)
        given = honest(self, batch, generator)
        return dataclasses.replace(given, total=given.total * (float("nan") if len(calls) == 8 else 1.0))

    monkeypatch.setattr(VLA, "loss", loss)
    with pytest.raises(TrainingError, match=r"step 8: loss nan, .*last good checkpoint is .*step-00000005"):
        run(dataset, tmp_path)
    left = weights(tmp_path / "train" / "step-00000005")
    assert all(torch.isfinite(v).all() for v in left.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_result(dataset, tmp_path, workers):
    """Nor do they when a run goes on with another number of them."""
    training = config(steps=4, checkpoint_every=2, augment={"shift": 2, "hue": 0.1})
    straight = run(dataset, tmp_path / "thread", training)
    with pytest.raises(Interrupted):
        run(dataset, tmp_path / "workers", training, stop=lambda: True)
    resumed = run(dataset, tmp_path / "workers", training, workers=workers)
    one, other = weights(straight), weights(resumed)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_schedule_warms_up_and_ends_at_its_final_rate():
    optim = OptimConfig(lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(optim, s, 100) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = OptimConfig(lr=1.0, warmup_steps=10, schedule="constant")
    assert learning_rate(constant, 99, 100) == 1.0


def test_precision_is_what_was_asked_or_what_the_hardware_has():
    cpu = torch.device("cpu")
    assert pick_precision("bfloat16", cpu) == torch.bfloat16
    assert pick_precision("float32", cpu) == torch.float32
    assert pick_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ConfigError, match="batch_size 5 must be a multiple of accumulate 2"):
        config(batch_size=5, accumulate=2)


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_half_one(dataset, tmp_path, monkeypatch):
    honest = VLA.save

    def save(self, folder, recipe=None):
        honest(self, folder, recipe)
        if (tmp_path / "train" / "step-00000005").is_dir():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(VLA, "save", save)
    with pytest.raises(OSError, match="No space left on device") as error:
        run(dataset, tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "train").glob("step-*")] == ["step-00000005"]
    monkeypatch.undo()
    assert run(dataset, tmp_path) == tmp_path / "checkpoint"


@pytest.mark.parametrize(("cache_gb", "told"), [(1.0, False), (1e-6, True)])
def test_a_cache_that_cannot_hold_the_frames_is_told_with_the_setting_that_can(
    dataset, tmp_path, caplog, cache_gb, told
):
    run(dataset, tmp_path, config(steps=1), cache_gb=cache_gb)
    assert ("--data.cache_gb 0.1 keeps all" in caplog.text) == told


def test_a_run_of_an_earlier_version_goes_on_if_its_numbers_are_those_of_the_data(dataset, tmp_path):
    """Its fingerprint covered heads and tails of files only, and cannot be compared."""
    with pytest.raises(Interrupted):
        run(dataset, tmp_path / "run", stop=lambda: True)
    [step] = (tmp_path / "run/train").glob("step-*")
    path = step / "statistics.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    for vector in (kept["small"]["action"], kept["small"]["proprio"]):
        del vector["low"], vector["high"]
    kept["small"]["fingerprint"] = "f" * 64
    path.write_text(json.dumps(kept), encoding="utf-8")
    robots = dataset.robots()
    check_same(step, document(config()), robots, SECTIONS)
    other = dataclasses.replace(robots[0].statistics, action=robots[0].statistics.action | {"mean": [0.0] * 4})
    with pytest.raises(ConfigError, match=r"was trained on other data \(small ffffffffffff, now small 2-"):
        check_same(step, document(config()), [dataclasses.replace(robots[0], statistics=other)], SECTIONS)


def test_training_names_dims_that_rest_or_never_vary(tmp_path, caplog):
    """Before the first step, and in the model card; what was recorded can be commanded."""

    def still(of, index):
        actions = of.actions.copy()
        actions[:, 1], actions[:, 2] = 0.25, 0.0
        if not index:
            actions[5, 2] = 100.0
        return dataclasses.replace(of, actions=actions)

    root = tmp_path / "dataset"
    write_dataset(root, embodiment(), [still(episode(60, seed=i), i) for i in range(4)])
    with caplog.at_level(logging.WARNING):
        checkpoint = run(mixture(root), tmp_path / "run", config(steps=2))
    told = [
        "action group 'position', dim 1 never varies in this data (0.25): it is not learned, and acting writes 0.25",
        "action group 'position', dim 2 rests most of the time: q01 to q99 (0 to 0) would cut off its motion, so it is "
        "scaled by 0 to 100",
    ]
    assert [text for text in caplog.messages if text.startswith("action group")] == told
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "## Dims" in card
    assert all(f"- {text}\n" in card for text in told)
    vla = VLA.load(checkpoint)
    ends = vla.action.denormalise(torch.ones(1, 1, 4), torch.zeros(1, dtype=torch.int64))[0, 0]
    assert (ends[1], ends[2]) == (0.25, 100)


def test_data_whose_actions_never_vary_teaches_nothing(dataset, tmp_path):
    [robot] = dataset.robots()
    flat = {key: [0.5] * 4 for key in robot.statistics.action}
    arm = dataclasses.replace(
        robot.embodiment,
        action=build(ActionSpace, {"groups": [{"name": "joints", "size": 4, "kind": "joints"}]}),
    )
    still = Robot(arm, dataclasses.replace(robot.statistics, action=flat))
    with pytest.raises(ConfigError, match="no action of robot 'small' ever varies in this data"):
        train(MODEL, config(), dataset, [still], tmp_path / "run", document(config()))


def test_data_that_changes_while_training_runs_is_told(tmp_path, caplog):
    root = tmp_path / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    run(mixture(root), tmp_path / "untouched")
    assert "changed while training ran" not in caplog.text
    [path] = root.glob("data/**/*.parquet")
    run(mixture(root), tmp_path / "run", progress=lambda _: path.touch())
    assert f"1 files of the data changed while training ran, {path} first" in caplog.text
