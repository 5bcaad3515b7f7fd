"""Which keys of a recipe may change when a run resumes, each with the reason.

A `*` is one item of a list or one key of a mapping, a `**` at the end the key before it and everything below. A key
without a rule is refused, and a test fails until it gets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

FREE, ROUNDING, FUTURE, FIXED = "free", "rounding", "future", "fixed"


class Rule(NamedTuple):
    """The verdict on a key, and the reason for it."""

    verdict: str  # FREE, ROUNDING, FUTURE or FIXED
    reason: str


_FREE: Mapping[str, str] = {  # changes no weight
    "name": "names the run",
    "benchmark": "is where policies are evaluated; the demonstrations are compared by their contents",
    "environment.**": "is about evaluating; the demonstrations are compared by their contents",
    "collect.**": "made the demonstrations, which are compared by their contents",
    "evaluation.**": "is read after training",
    "stages": "are recipes of their own",
    "data.workers": "batches are a function of the seed and the step",
    "data.worker_timeout_s": "ends a run, but changes no batch",
    "data.cache_gb": "frames are the same, decoded once or often",
    "data.root": "is a place; the data there are compared by their contents",
    "data.missing": "the data sets that are found are compared by their contents",
    "data.sources.*.path": "is a place; the data there are compared by their contents",
    "data.sources.*.format.list": "is a place; the data there are compared by their contents",
    "data.validation.windows": "only measures; the episodes that are held out stay the same",
    "training.gradient_checkpointing": "computes the same bits twice",
    "training.shard": "computes the same numbers, in parts",
    "training.features_gb": "features are the same, computed once or often, but for the order of sums",
    "training.log_every": "only reads",
    "training.spikes.**": "only reads",
    "training.track": "only shows",
    "training.track.**": "only shows",
    "training.track_project": "only shows",
    "training.without_gradient": "ends a run, but changes no weight",
    "training.checkpoint_every": "only reads",
    "training.keep.**": "only says what stays on the disk",
    "training.validate_every": "only reads",
    "training.evaluate.**": "only plays",
    "training.best": "only says what stays on the disk",
}
_ROUNDING: Mapping[str, str] = {  # the same function of the same batches, with sums in another order or precision
    "training.accumulate": "sums in another order, and other dropout, which is that of a part of a batch",
    "training.device": "sums in another order; with precision auto, perhaps in another precision",
    "training.compile": "fuses operations, which then round once",
    "training.precision": "computes in another precision; weights and optimizer state are float32 in each",
}
_FUTURE: Mapping[str, str] = {  # the steps so far are the same, later ones may not be
    "training.steps": "the learning rate follows the schedule of the new number from here on",
}
_FIXED: Mapping[str, str] = {  # another run
    "model.**": "is another model, or another scaling of its inputs and outputs",
    "data.sources": "is another number of data sets, whose shares differ",
    "data.sources.*.format.**": "reads other numbers from the same files",
    "data.sources.*.embodiment.**": "gives the numbers another meaning",
    "data.sources.*.weight": "changes which windows are sampled",
    "data.sources.*.cameras.**": "changes the images",
    "data.sources.*.rotation": "changes the actions",
    "data.sources.*.frame": "changes the actions",
    "data.sources.*.hz": "changes the steps",
    "data.sources.*.per_task": "selects other episodes",
    "data.sources.*.scale": "selects other episodes",
    "data.sources.*.subset_seed": "selects other episodes",
    "data.sources.*.leave_out.**": "selects other episodes",
    "data.sources.*.instruction": "changes the instructions",
    "data.sources.*.unlabeled": "selects other episodes",
    "data.preset": "is another mixture",
    "data.views.**": "changes the images",
    "data.temperature": "changes which windows are sampled",
    "data.validation.**": "holds out other episodes",
    "training.batch_size": "changes the batches",
    "training.seed": "changes the batches and the noise",
    "training.init_from": "is where the first weights come from",
    "training.statistics": "is another scaling of actions and proprio",
    "training.optim.**": "changes the updates; what the optimizer has accumulated fits the old settings",
    "training.augment.**": "changes the images",
    "training.ema.**": "changes the average, which depends on all steps so far",
}
RULES: Mapping[str, Rule] = {
    pattern: Rule(verdict, reason)
    for verdict, table in ((FREE, _FREE), (ROUNDING, _ROUNDING), (FUTURE, _FUTURE), (FIXED, _FIXED))
    for pattern, reason in table.items()
}


def find_rule(key: str) -> Rule | None:
    """Return the rule for a dotted key; None if there is none."""
    return next((rule for pattern, rule in RULES.items() if matches(pattern, key)), None)


def may_change(key: str) -> bool:
    """Return whether a key may change when a run resumes."""
    rule = find_rule(key)
    return rule is not None and rule.verdict != FIXED


def matches(pattern: str, key: str) -> bool:
    """Return whether a dotted key is one of those that a pattern of `RULES` describes."""
    wanted, given = pattern.split("."), key.split(".")
    if wanted[-1] == "**":
        wanted.pop()
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))
