"""The training loop: batches in order, one optimizer step each, a log line now and then, exact resume."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from anyvla.config import to_dict
from anyvla.data.fingerprints import find_edited
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.files.folder_lock import lock_folder
from anyvla.histories.base import History
from anyvla.interrupted import Interrupted
from anyvla.representations.codec_report import check_codec
from anyvla.training import checkpoint
from anyvla.training.action_tokens import ActionTokens
from anyvla.training.agreement import check_same_data
from anyvla.training.batches import StalledData, make_batches
from anyvla.training.checks import check_actions_vary, check_batch_size, describe_robot_dims, train_in_float32
from anyvla.training.config import TrainingConfig, TrainingRecipe
from anyvla.training.device import pick_own_device, pick_precision
from anyvla.training.features import keeping_features
from anyvla.training.gradients import Gradients
from anyvla.training.idle_weights import IdleWeights
from anyvla.training.joining import join_measurements
from anyvla.training.keeping import CheckpointKeeper
from anyvla.training.layers import prepare_layers
from anyvla.training.log import TrainingLog
from anyvla.training.measurements import Measurement, Measurements, PlannedMeasurement, choose_best
from anyvla.training.meter import Meter, Progress
from anyvla.training.parts import describe_parts, freeze_parts
from anyvla.training.pinning import pin_ahead
from anyvla.training.preflight import check_before_data
from anyvla.training.processes import EndedElsewhere, Processes
from anyvla.training.profile import profiled
from anyvla.training.resume import share_checkpoint_to_resume
from anyvla.training.schedules import describe_endless_warmup
from anyvla.training.sharded_gradients import ShardedGradients
from anyvla.training.sharding import shard
from anyvla.training.spans import span
from anyvla.training.spikes import SpikeLog
from anyvla.training.start import cache_advice, describe_run, report_decoding
from anyvla.training.state import TrainingState
from anyvla.training.step import OptimizerStep
from anyvla.training.tracking.tracking import Tracking
from anyvla.training.validation import name_numbers, open_validation
from anyvla.training.warm_start.start import Start, find_origin
from anyvla.worker_pool import WorkerDied

logger = logging.getLogger(__name__)


def train(
    recipe: TrainingRecipe,
    mixture: Mixture,
    run: Path,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = logger.info,
    stop: Callable[[], bool] = lambda: False,
    measurements: Sequence[PlannedMeasurement] = (),
    profile: int | None = None,
    features: Path | None = None,
    processes: Processes | None = None,
) -> Path:
    """Train, or resume the training in `run`. Return `run/checkpoint`, which keeps the recipe.

    `mixture` is the opened data of the recipe. `say` gets lines for people before the first step and while the first
    frames are decoded. `measurements` start with the policy; their numbers are logged. `profile`: the number of
    steps to profile into `run/profile`, which changes no result. `features`: a folder in which several trainings keep
    the features of frozen vision towers. `processes`: those of this training, each of which calls this function;
    the first one writes the run, measures and calls `progress` and `say`. None: there is only this process.

    Raises ConfigError if the checkpoint in `run` is of another recipe, if `training.init_from` cannot be used, if
    `training.best` is not measured or if the processes differ, CodecError unless `run/codec` is the codec of the
    representation, fitted to this data, TrainingError if the loss or the gradients are not finite, StalledData or
    WorkerDied if the workers fail, Interrupted if `stop()` returns true in any process, EndedElsewhere or LostProcess
    if another process fails or dies.
    """
    processes = processes or Processes.single()
    check_before_data(recipe, run, processes)
    model, config, data = recipe.model, recipe.training, recipe.data
    device, origin = pick_own_device(config.device, processes), find_origin(recipe, run)
    robots = mixture.robots()
    check_same_data({robot.embodiment.name: robot.statistics.fingerprint for robot in robots}, processes)
    begun, complete = share_checkpoint_to_resume(run, recipe, robots, processes)
    if complete:
        return run / "checkpoint"
    start = Start(recipe, run, robots, begun, origin)
    space, actions = mixture.layout.embodiment.action, model.normalization.action
    fingerprint = None if begun is not None else mixture.fingerprint
    if start.codec == run / "codec":  # else it is the checkpoint's own
        check_codec(start.codec, model.representation, model.chunk, space, actions, fingerprint)
    check_actions_vary(start.robots, model.normalization)
    groups = mixture.layout.embodiment.action.groups
    names = {} if data.validation is None else name_numbers(groups)
    names = names | {name: higher for m in measurements for name, higher in m.names.items()}
    best = choose_best(names, config.best) if processes.is_main else None
    for note in describe_robot_dims(start.robots, model.normalization):
        logger.warning("%s", note)
    if warning := describe_endless_warmup(config.optim, config.steps):
        logger.warning("%s", warning)
    torch.manual_seed(config.seed)
    history: History = model.history.build()
    window = WindowConfig(
        window=history.window,
        whole=history.carries_state,
        chunk=model.chunk,
        stride=model.execute,
        view=model.view,
        cache_gb=data.cache_gb / max(1, data.workers),
    )
    windows = WindowDataset(mixture, window)  # bad data is reported before a model is loaded
    check_batch_size(config.batch_size, sum(windows.sizes))
    vla = start.build_policy(say).to("cpu" if config.shard else device)
    freeze_parts(config.optim.parts, vla)
    precision = pick_precision(config.precision, device)
    train_in_float32(vla, precision)
    vla.train()
    if advice := cache_advice(vla, windows, data.cache_gb, data.workers):
        logger.warning("%s", advice)
    say(describe_run(vla, device, precision, windows, processes))
    optim = config.optim
    for note in describe_parts(optim.parts, vla, lr=optim.lr, weight_decay=optim.weight_decay, steps=config.steps):
        say(note)
    if config.shard:
        shard(vla, processes, device)
    state = TrainingState(vla, optim, config.ema, precision, processes)
    first_step = checkpoint.restore(begun, state) if begun is not None else 0
    prepare_layers(vla, recomputed=config.gradient_checkpointing, compiled=config.compile)
    make = partial(make_batches, first_step, windows, config, model.view, data.workers, data.worker_timeout_s)
    tokens = ActionTokens.of(vla)
    (run / "train").mkdir(parents=True, exist_ok=True)
    rows, main, ahead = processes.split(config.batch_size), processes.is_main, range(first_step, config.steps)
    with (
        processes.only_main(partial(lock_folder, run)),
        contextlib.closing(pin_ahead(make(stop, rows=rows, tokens=tokens), device)) as batches,
        contextlib.closing(TrainingLog(run / "train" / "log.jsonl" if main else None, first_step)) as log,
        contextlib.closing(Tracking(recipe, run, first_step, log, say)),
        keeping_features(recipe, vla, run, features, say, processes),
        contextlib.closing(profiled(ahead, profile if main else None, vla, run, say)) as steps,
    ):
        make_gradients = ShardedGradients if state.writers.count > 1 else Gradients
        gradients = make_gradients(vla, processes)  # from here on, no process reads the checkpoint that it resumes from
        keeper = CheckpointKeeper(run, state, to_dict(recipe), config, begun, processes, start.record)
        measured: list[Measurement] = []
        if main:
            measured += [*open_validation(recipe, mixture, vla, window), *(of.start(vla) for of in measurements)]
        take_step = OptimizerStep(state, config, device, windows.describe, gradients)
        meter = Meter(device, precision, processes, compiled=config.compile)
        spikes = SpikeLog(config.spikes, run / "train" / "spikes.jsonl", first_step, windows.describe, processes)
        measured = join_measurements(measured, state.writers)
        weights = state.acting_weights
        measure = Measurements(measured, config.steps, best, keeper, log, meter, say, weights, state.writers)
        idle = IdleWeights(vla, len(mixture.datasets), config.without_gradient, processes)
        keeper.begin(measured=best is not None)
        measure.resume(first_step)
        for step in steps:
            first = report_decoding(windows, say) if step == first_step else contextlib.nullcontext()
            try:
                with meter.waiting(), first:
                    batch = next(batches)
                asked = processes.count > 1 and stop()
                count, samples, stops = processes.sum(vla.count_elements(batch), int(batch.step_mask.sum()), asked)
            except (StalledData, WorkerDied, EndedElsewhere, Interrupted) as error:
                if step:
                    keeper.save_alone(step)
                if stop():
                    raise Interrupted(_stopped(step, config)) from error
                raise
            meter.flops.count_once(partial(take_step.count_flops, batch))
            result = take_step(batch, step, keeper.newest, count)
            done = step + 1
            idle.look(batch, last=done == config.steps)
            meter.count(samples)
            if done % config.log_every == 0 or done == config.steps:
                line = Progress.of(done, config.steps, result, meter.read())
                with span("log"):
                    log.write(line.as_line())
                    progress(line)
            spikes.look(done, result.loss, batch)
            if result.overflowed:
                log.write({"step": done, "overflowed_at_scale": result.overflowed})
            with span("measure"):
                measure(done)
            stopping = bool(stops) if processes.count > 1 else stop()
            if done < config.steps and (keeper.is_due(done) or stopping):
                with span("checkpoint"):
                    keeper.save(done, last_chance=stopping)
                if stopping:
                    processes.wait_for_all()
                    raise Interrupted(_stopped(done, config))
        if changed := find_edited([Path(d.root) for d in mixture.datasets]):
            logger.warning(
                "%d files of the data changed while training ran, %s first: the policy may have learned from both, and "
                "its fingerprint is that of the data before",
                len(changed),
                changed[0],
            )
        return keeper.finish(config.steps)


def _stopped(step: int, config: TrainingConfig) -> str:
    return f"stopped after {step} of {config.steps} steps; run the same command to resume"
