import dataclasses
import errno
import itertools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.config import ConfigError, build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace
from anyvla.training import batches, checkpoint, loop, meter
from anyvla.training.config import TrainingConfig
from anyvla.training.errors import TrainingError
from anyvla.training.loop import train
from anyvla.training.resume import check_same_data
from tests.small import NANO, embodiment, episode, mixture, model, recipe

MODEL = model({"name": "policy_head", "window": 2}, {"name": "lstm", "hidden": 32, "layers": 1})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    return mixture(root)


def config(**keys):
    defaults = {"steps": 12, "batch_size": 4, "log_every": 2, "checkpoint_every": 5, "augment": {"shift": 2}}
    return build(TrainingConfig, {**defaults, "optim": {"lr": 1e-3, "warmup_steps": 2}, **keys})


def run(dataset, folder, training=None, **keys):
    return train(recipe(MODEL, training or config()), dataset, folder, **keys)


def weights(checkpoint):
    return VLA.load(checkpoint).state_dict()


def test_training_lowers_the_loss_and_logs_every_line(dataset, tmp_path):
    training = config(steps=60, log_every=10, batch_size=8, optim={"lr": 3e-3, "warmup_steps": 2})
    final = run(dataset, tmp_path, training)
    lines = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert set(lines[0]["parts"]) == {"position", "gripper"}
    assert {p.name for p in final.iterdir()} >= {
        "config.yaml",
        "model.safetensors",
        "statistics.json",
        "README.md",
    }
    assert not list((tmp_path / "train").glob("step-*"))


def test_a_killed_run_resumes_from_its_last_checkpoint(dataset, tmp_path):
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


class Overflow(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(lambda total: total * float("nan"), "loss nan, gradient norm nan"), (Overflow.apply, r"loss \d.*norm (inf|nan)")],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(dataset, tmp_path, monkeypatch, fault, message):
    original, calls = VLA.loss, []

    def loss(self, batch, generator):
        calls.append(1)
        given = original(self, batch, generator)
        return dataclasses.replace(given, total=fault(given.total)) if len(calls) == 8 else given

    monkeypatch.setattr(VLA, "loss", loss)
    with pytest.raises(TrainingError, match=rf"step 8: {message}.*last good checkpoint is .*step-00000005"):
        run(dataset, tmp_path)
    assert len(calls) > 8  # it looks for the cause
    assert checkpoint.read_step(tmp_path / "train" / "step-00000005") == 5


def test_a_batch_must_split_into_equal_parts():
    with pytest.raises(ConfigError, match="batch_size 5 must be a multiple of accumulate 2"):
        config(batch_size=5, accumulate=2)


@pytest.mark.parametrize(
    ("backbone", "trained"),
    [
        ({"train": {"vision": False, "embeddings": False}}, ("language", "projector")),
        ({"train": {"vision": False, "projector": False, "language": False, "embeddings": False}}, ()),
        ({"lora": {"rank": 2}}, ("lora", "vision", "projector")),
    ],
)
def test_frozen_parts_stay_as_they_were_and_all_others_move(dataset, tmp_path, backbone, trained):
    """Decay and momentum included: three steps at a high rate."""
    if "lora" in backbone:
        pytest.importorskip("peft")
    structure = model(backbone={**NANO, **backbone})
    training = config(steps=3, optim={"lr": 0.01, "warmup_steps": 0, "weight_decay": 0.5})
    torch.manual_seed(training.seed)
    built = VLA(structure, dataset.robots())
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    parts = {p: part for part, of in parameters_by_part(built.backbone).items() for p in of}
    kind = {name: "lora" if "lora_" in name else parts.get(p, "policy") for name, p in built.named_parameters()}
    after = VLA.load(train(recipe(structure, training), dataset, tmp_path))
    moved = {name for name, p in after.named_parameters() if not torch.equal(p, before[name])}
    assert {kind[name] for name in moved} == {"policy", *trained}
    assert {name for name in before if kind[name] == "policy" and before[name].any()} <= moved


def test_every_module_is_in_training_mode_at_every_step(dataset, tmp_path, monkeypatch):
    original, modes = VLA.loss, []

    def loss(self, *args):
        modes.append({name for name, module in self.named_modules() if not module.training})
        return original(self, *args)

    monkeypatch.setattr(VLA, "loss", loss)
    run(dataset, tmp_path, config(steps=3, checkpoint_every=1))
    assert modes == [set(), set(), set()]


def test_progress_counts_valid_steps_and_shares_of_time(dataset, tmp_path, monkeypatch):
    """The clock advances by a second whenever it is read: before and after each batch, and for each line."""
    seconds = itertools.count()
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    original, valid = batches.make_batches, []

    def counted(*args, **keys):
        for batch in original(*args, **keys):
            valid.append(int(batch.step_mask.sum()))
            yield batch

    monkeypatch.setattr(loop, "make_batches", counted)
    shown = []
    run(dataset, tmp_path, config(steps=5, log_every=2), progress=shown.append)
    assert [p.elapsed_s for p in shown] == [5, 10, 13]
    assert [p.wait_share for p in shown] == [2 / 5, 2 / 5, 1 / 3]
    assert min(valid) < 2 * 4  # some windows are short
    rates = [sum(valid[:2]) / 5, sum(valid[2:4]) / 5, valid[4] / 3]
    assert [p.samples_per_s for p in shown] == pytest.approx(rates)


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_half_one(dataset, tmp_path, monkeypatch):
    original = VLA.save

    def save(self, folder, recipe=None):
        original(self, folder, recipe)
        if (tmp_path / "train" / "step-00000005").is_dir():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(VLA, "save", save)
    with pytest.raises(OSError, match="No space left on device") as error:
        run(dataset, tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "train").glob("step-*")] == ["step-00000005"]
    monkeypatch.undo()
    assert run(dataset, tmp_path) == tmp_path / "checkpoint"


@pytest.mark.parametrize(("cache_gb", "warned"), [(1.0, False), (1e-6, True)])
def test_a_cache_too_small_for_the_frames_is_reported_with_a_sufficient_size(
    dataset, tmp_path, caplog, cache_gb, warned
):
    train(recipe(MODEL, config(steps=1), cache_gb=cache_gb), dataset, tmp_path)
    assert ("--data.cache_gb 0.1 keeps all" in caplog.text) == warned


def test_a_run_of_an_earlier_version_resumes_if_its_statistics_match_the_data(dataset, tmp_path):
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
    check_same_data(step, robots)
    other = dataclasses.replace(robots[0].statistics, action=robots[0].statistics.action | {"mean": [0.0] * 4})
    with pytest.raises(ConfigError, match=r"was trained on other data \(small ffffffffffff, now small 2-"):
        check_same_data(step, [dataclasses.replace(robots[0], statistics=other)])


def test_training_names_dims_that_rest_or_never_vary(tmp_path, caplog):
    """The notes are logged and in the model card, and acting can command all that was recorded."""

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
    notes = [
        "action group 'position', dim 1 never varies in this data (0.25): it is not learned, and acting writes 0.25",
        "action group 'position', dim 2 rests most of the time: q01 to q99 (0 to 0) would cut off its motion, so it is "
        "scaled by 0 to 100",
    ]
    assert [text for text in caplog.messages if text.startswith("action group")] == notes
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "## Dims" in card
    assert all(f"- {text}\n" in card for text in notes)
    vla = VLA.load(checkpoint)
    ends = vla.action_normalizer.denormalize(torch.ones(1, 1, 4), torch.zeros(1, dtype=torch.int64))[0, 0]
    assert (ends[1], ends[2]) == (0.25, 100)


def test_data_whose_actions_never_vary_is_refused(dataset, tmp_path, monkeypatch):
    [robot] = dataset.robots()
    flat = {key: [0.5] * 4 for key in robot.statistics.action}
    arm = dataclasses.replace(
        robot.embodiment,
        action=build(ActionSpace, {"groups": [{"name": "joints", "size": 4, "kind": "joints"}]}),
    )
    still = Robot(arm, dataclasses.replace(robot.statistics, action=flat))
    monkeypatch.setattr(Mixture, "robots", lambda self: [still])
    with pytest.raises(ConfigError, match="no action of robot 'small' ever varies in this data"):
        run(dataset, tmp_path / "run")


def test_data_that_changes_while_training_runs_is_reported(tmp_path, caplog):
    root = tmp_path / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    run(mixture(root), tmp_path / "untouched")
    assert "changed while training ran" not in caplog.text
    [path] = root.glob("data/**/*.parquet")
    run(mixture(root), tmp_path / "run", progress=lambda _: path.touch())
    assert f"1 files of the data changed while training ran, {path} first" in caplog.text
