"""The learning rate of each step, as a pure function of configuration, step and number of steps."""

from __future__ import annotations

import math

from anyvla.training.optim import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of step `step` (from 0) of `steps`. At `steps` it would be `config.final_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    begin = _decay_begin(config, steps)
    progress = min(1.0, max(0, step - begin) / max(1, steps - begin))
    return config.final_lr + (config.lr - config.final_lr) * _remaining(config, progress)


def _remaining(config: OptimConfig, progress: float) -> float:
    """Return how much of the way from the peak to the final rate is left, from 1 to 0."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "wsd" and config.wsd.shape == "1-sqrt":
        return 1 - math.sqrt(progress)
    return 1 - progress


def _decay_begin(config: OptimConfig, steps: int) -> int:
    """Return the last step with the peak rate."""
    if config.schedule != "wsd":
        return config.warmup_steps
    decay = config.wsd.decay_steps
    decay = round(config.wsd.decay_share * steps) if decay is None else decay
    return max(config.warmup_steps, steps - max(1, decay))


def describe_endless_warmup(config: OptimConfig, steps: int) -> str | None:
    """Return a warning if the learning rate still rises at the last of `steps` steps; None if it does not."""
    if config.warmup_steps < max(2, steps):
        return None
    return (
        f"training.optim.warmup_steps is {config.warmup_steps} and training.steps is {steps}: the learning rate rises "
        f"until the end, to {learning_rate(config, steps - 1, steps):.3g} of {config.lr:g}. Give fewer, such as "
        f"--training.optim.warmup_steps {steps // 10}"
    )


def describe_other_steps(config: OptimConfig, done: int, before: int, after: int) -> str:
    """Describe the learning rates if a run of `before` steps is resumed after `done` for `after` in all.

    Constant rates and `wsd` before its decay depend on no number of steps, so that the result is the one of a run that
    had them from the start.
    """
    what = f"training.steps was {before} and is {after}: from step {done + 1} on the learning rate "
    if config.schedule == "constant":
        return what + "stays as it is, as in a run that had them from the start"
    first = min(_decay_begin(config, before), _decay_begin(config, after))
    if done <= first + 1:
        begin = f", whose decay begins after step {_decay_begin(config, after)}" if config.schedule == "wsd" else ""
        return what + f"follows the schedule of {after} steps{begin}, as in a run that had them from the start"
    return (
        what + f"follows the schedule of {after} steps ({config.schedule}), so the result differs from that of a run "
        "that had them from the start"
        + (
            ": its decay had begun. Resume from a checkpoint before it for the same result"
            if config.schedule == "wsd"
            else ". The schedules constant and wsd can be made longer without that"
        )
    )
