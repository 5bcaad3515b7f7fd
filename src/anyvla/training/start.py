"""Describe a training run before its first step: its device, its weights, the memory that its frames take."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import torch

from anyvla.backbones.images.pixels import Pixels
from anyvla.data.training.window import WindowDataset
from anyvla.policy import VLA
from anyvla.training.processes import Processes

_PATIENCE = 5.0  # seconds without a first batch before a line is printed, and between two lines


def describe_run(
    vla: VLA, device: torch.device, precision: torch.dtype, windows: WindowDataset, processes: Processes
) -> str:
    """Return the processes, the device of the first one, the precision, the numbers of weights, and the data's size."""
    trained = sum(p.numel() for p in vla.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in vla.parameters() if not p.requires_grad)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    kind = str(precision).removeprefix("torch.")
    autocast = "" if precision == torch.float32 else " (autocast)"
    episodes = sum(len(d) for d in windows.mixture.datasets)
    machines = len(set(processes.hosts))
    where = f" on {machines} machines" if machines > 1 else ""
    several = f"{processes.count} processes{where}; " if processes.count > 1 else ""
    return (
        f"{several}device {device} ({name}); precision {kind}{autocast}; {trained:,} trained weights, "
        f"{frozen:,} frozen; {sum(windows.sizes):,} windows of {episodes:,} episodes"
    )


def cache_advice(vla: VLA, windows: WindowDataset, cache_gb: float, workers: int) -> str | None:
    """Return the remedies if the decoded frames do not fit into the cache, the cheapest first; None if they fit.

    A smaller view costs nothing where the backbone scales the images down anyway.
    """
    copies = max(1, workers)  # each worker decodes for itself
    needed = windows.decoded_gb * copies
    if needed <= cache_gb:
        return None
    height, width = windows.image_size
    seen = _backbone_size(vla)
    advice = [f"--data.cache_gb {needed + 0.1:.1f} keeps all of them in memory{_free(needed)}"]
    if seen is not None and seen[0] * seen[1] < height * width:
        smaller = needed * seen[0] * seen[1] / (height * width)
        fits = "" if smaller <= cache_gb else f", with --data.cache_gb {smaller + 0.1:.1f}{_free(smaller)}"
        advice.insert(
            0,
            f"--model.view.size '[{seen[0]}, {seen[1]}]', the size to which the backbone scales them anyway, takes "
            f"{smaller:.2g} GB{fits}",
        )
    return (
        f"the decoded frames of {height}x{width} take {needed:.1f} GB"
        + (f" in {copies} workers" if copies > 1 else "")
        + f" and data.cache_gb is {cache_gb:g}: frames that do not fit are decoded at each use, which "
        f"is slower. The cheapest remedy first: " + "; ".join(advice)
    )


@contextlib.contextmanager
def report_decoding(windows: WindowDataset, say: Callable[[str], None]) -> Iterator[None]:
    """Say every few seconds how far the first batch is, as long as it is being made within the context."""
    made, begin = threading.Event(), time.perf_counter()

    def watch() -> None:
        while not made.wait(_PATIENCE):
            done, asked = windows.episodes_read()
            spent = time.perf_counter() - begin
            count = f", {done} of {asked} episodes decoded" if asked else ""
            say(f"making the first batch: {spent:.0f} s{count}")

    watcher = threading.Thread(target=watch, name="first batch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        made.set()
        watcher.join()


def _backbone_size(vla: VLA) -> tuple[int, int] | None:
    """Return the largest size (height, width) to which the backbone scales images; None if it has no fixed one."""
    sizes = [(m.size[0] * m.tiles, m.size[1] * m.tiles) for m in vla.modules() if isinstance(m, Pixels)]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _free(needed: float) -> str:
    """Return a note if the machine has less memory than that."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError, AttributeError):  # not on this system
        return ""
    return "" if needed < free else f" (more than the {free:.1f} GB that are free here)"
