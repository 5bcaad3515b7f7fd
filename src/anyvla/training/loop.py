"""The training loop: batches in order, one optimizer step each, a log line now and then, exact resume."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyvla.config import ConfigError, to_dict
from anyvla.data.fingerprints import find_edited
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.files import durable
from anyvla.files.documents import DocumentError, parse_json
from anyvla.files.folder_lock import lock_folder
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.representations.codec_report import check_codec
from anyvla.training import checkpoint
from anyvla.training.batches import StalledData, make_batches
from anyvla.training.card import format_model_card
from anyvla.training.checks import check_actions_vary, check_trained_weights, describe_robot_dims
from anyvla.training.config import TrainingConfig, TrainingRecipe
from anyvla.training.launchers import check_one_process
from anyvla.training.optim import build_optimizer, learning_rate
from anyvla.training.randomness import seed_generators
from anyvla.training.resume import find_checkpoint_to_resume
from anyvla.training.start import cache_advice, describe_run, report_decoding
from anyvla.types import Batch
from anyvla.worker_pool import WorkerDied

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot continue. The message says why, where the last good checkpoint is and what to try."""


@plain_dataclass(frozen=True)
class Progress:
    """One log line."""

    step: int
    steps: int
    loss: float
    parts: Mapping[str, float]
    lr: float
    grad_norm: float
    samples_per_s: float  # windows x valid steps
    wait_share: float  # of the time, waiting for data
    elapsed_s: float  # this run of the process


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one. Raises ConfigError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"the device {name!r} cannot be used here ({reason}): use auto or cpu; anyvla doctor says what this "
            "machine has"
        ) from None
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast type. On CPUs without bfloat16 instructions, bfloat16 is slower than float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def train(
    recipe: TrainingRecipe,
    mixture: Mixture,
    run: Path,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = logger.info,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train, or resume the training in `run`. Return `run/checkpoint`, which keeps the recipe.

    `mixture` is the opened data of the recipe. `say` gets lines for people before the first step and while the first
    frames are decoded.

    Raises ConfigError if the checkpoint in `run` is of another recipe or if a launcher started several processes,
    CodecError unless `run/codec` is the codec of the representation, fitted to this data, TrainingError if the loss or
    the gradients are not finite, StalledData or WorkerDied if the workers fail, Interrupted if `stop()` returns true.
    """
    check_one_process()
    model, config, data = recipe.model, recipe.training, recipe.data
    device, robots = pick_device(config.device), mixture.robots()
    final = run / "checkpoint"
    begun, complete = find_checkpoint_to_resume(run, recipe, robots)
    if complete:
        return final
    space, actions = mixture.layout.embodiment.action, model.normalization.action
    fingerprint = None if begun is not None else mixture.fingerprint
    check_codec(run / "codec", model.representation, model.chunk, space, actions, fingerprint)
    check_actions_vary(robots, model.normalization)
    for note in describe_robot_dims(robots, model.normalization):
        logger.warning("%s", note)
    torch.manual_seed(config.seed)
    window = WindowConfig(
        window=model.history.build().window,
        chunk=model.chunk,
        stride=model.execute,
        view=model.view,
        cache_gb=data.cache_gb / max(1, data.workers),
    )
    windows = WindowDataset(mixture, window)  # bad data is reported before a model is loaded
    vla = VLA(model, robots, codec=run / "codec").to(device)
    check_trained_weights(vla)
    vla.train()
    if advice := cache_advice(vla, windows, data.cache_gb, data.workers):
        logger.warning("%s", advice)
    say(describe_run(vla, device, pick_precision(config.precision, device), windows))
    optim = build_optimizer(config.optim, vla)
    start = checkpoint.restore(begun, vla, optim) if begun is not None else 0
    (run / "train").mkdir(parents=True, exist_ok=True)
    with (
        lock_folder(run),
        contextlib.closing(
            make_batches(start, windows, config, model.view, data.workers, data.worker_timeout_s, stop)
        ) as batches,
        _open_log(run / "train" / "log.jsonl", start) as log,
    ):
        if begun == final:  # for more steps than it has; a failure before this leaves it in its place
            begun = checkpoint.reopen(final)
        trainer, meter, last = _Trainer(vla, optim, config, device), _Meter(), begun
        document = to_dict(recipe)

        def keep(folder: Path, step: int) -> Path:
            checkpoint.save(folder, vla, optim, step, document, format_model_card(vla, document, step))
            if last is not None:
                shutil.rmtree(last)
            return folder

        for step in range(start, config.steps):
            first = report_decoding(windows, say) if step == start else contextlib.nullcontext()
            try:
                with meter.waiting(), first:
                    batch = next(batches)
            except (StalledData, WorkerDied) as error:
                here = run / "train" / f"step-{step:08d}"
                if step and (last is None or last.name != here.name):
                    last = keep(here, step)
                if stop():
                    raise Interrupted(_stopped(step, config)) from error
                raise
            loss, parts, norm = trainer.step(batch, step, last)
            done = step + 1
            meter.samples += int(batch.step_mask.sum())
            if done % config.log_every == 0 or done == config.steps:
                rate = learning_rate(config.optim, step, config.steps)
                line = Progress(done, config.steps, loss, parts, rate, norm, *meter.read())
                log.write(json.dumps({key: value for key, value in vars(line).items() if key != "steps"}) + "\n")
                log.flush()
                progress(line)
            stopping = stop()
            if done < config.steps and (done % config.checkpoint_every == 0 or stopping):
                last = keep(run / "train" / f"step-{done:08d}", done)
                if stopping:
                    raise Interrupted(_stopped(done, config))
        if changed := find_edited([Path(d.root) for d in mixture.datasets]):
            logger.warning(
                "%d files of the data changed while training ran, %s first: the policy may have learned from both, and "
                "its fingerprint is that of the data before",
                len(changed),
                changed[0],
            )
        keep(final, config.steps)
    return final


def _stopped(step: int, config: TrainingConfig) -> str:
    return f"stopped after {step} of {config.steps} steps; run the same command to resume"


class _Trainer:
    """One optimizer step at a time."""

    def __init__(self, vla: VLA, optim: torch.optim.Optimizer, config: TrainingConfig, device: torch.device) -> None:
        self.vla, self.optim, self.config, self.device = vla, optim, config, device
        dtype = pick_precision(config.precision, device)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self.parameters = [p for group in optim.param_groups for p in group["params"]]

    def step(self, batch: Batch, step: int, last: Path | None) -> tuple[float, dict[str, float], float]:
        config = self.config
        for group in self.optim.param_groups:
            group["lr"] = learning_rate(config.optim, step, config.steps)
        self.optim.zero_grad(set_to_none=True)
        # a mean over the valid elements of the whole batch, however it is split
        count = float(self.vla.count_elements(batch))
        total, parts = 0.0, dict[str, float]()
        for number, piece in enumerate(_split(batch, config.accumulate, self.device)):
            generator = seed_generators(config.seed, step, number)
            with self.autocast:
                loss = self.vla.loss(piece, generator)
            (loss.total / max(1.0, count)).backward()
            share = float(loss.count) / max(1.0, count)
            total += float(loss.total.detach()) / max(1.0, count)
            parts = {k: parts.get(k, 0.0) + share * float(v) for k, v in loss.parts.items()}
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, config.optim.clip))
        if not (np.isfinite(total) and np.isfinite(norm)):
            where = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
            raise TrainingError(
                f"step {step + 1}: loss {total}, gradient norm {norm}; nothing was updated with it, {where}. "
                "Try a lower --training.optim.lr or --training.precision float32, and look for outliers in the data"
            )
        self.optim.step()
        return total, parts, norm


class _Meter:
    """Measures samples per second and the share of time spent waiting, since the last reading."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.samples, self.waited = 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def read(self) -> tuple[float, float, float]:
        now = time.perf_counter()
        spent = now - self.last
        reading = (self.samples / spent, self.waited / spent, now - self.begin)
        self.last, self.samples, self.waited = now, 0, 0.0
        return reading


def _split(batch: Batch, parts: int, device: torch.device) -> Iterator[Batch]:
    size = len(batch.instructions) // parts
    for begin in range(0, len(batch.instructions), size):
        piece: dict[str, Any] = {name: value[begin : begin + size] for name, value in vars(batch).items()}
        piece |= {name: value.to(device) for name, value in piece.items() if isinstance(value, torch.Tensor)}
        yield Batch(**piece)


def _open_log(path: Path, start: int) -> Any:
    """Open the log, without lines after the step to resume from."""
    lines = path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []
    kept = [line for line in lines if _logged_step(line) in range(1, start + 1)]
    durable.write(path, "".join(line + "\n" for line in kept))
    return path.open("a", encoding="utf-8")


def _logged_step(line: str) -> Any:
    """Return the step of a line of the log; None if the line is torn or damaged."""
    try:
        found = parse_json(line, "log")
    except DocumentError:
        return None
    return found.get("step") if isinstance(found, dict) else None
