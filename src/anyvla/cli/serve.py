"""`anyvla serve CHECKPOINT --protocol vla-eval`: a policy server that existing clients can talk to."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path

import yaml

from anyvla.cli.common import console
from anyvla.config import ConfigError, build


def main(argv: list[str]) -> int:
    """Load, check, listen until it is stopped."""
    parser = argparse.ArgumentParser(prog="anyvla serve", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, as outputs/quickstart, or a checkpoint folder")
    parser.add_argument("--protocol", choices=["vla-eval"], default="vla-eval", help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: any that is free")
    parser.add_argument("--mapping", type=Path, help="a YAML file: which of the client's keys is which camera or state")
    parser.add_argument("--robot", help="which of the policy's robots, if it has several")
    parser.add_argument("--execute", type=int, help="actions of a chunk before predicting again (default: as trained)")
    parser.add_argument(
        "--implausible",
        choices=["error", "warn"],
        help="proprio far outside of the training data (default: as trained)",
    )
    parser.add_argument("--device", default="auto", help="where the policy runs: cpu, cuda, auto (default)")
    options = parser.parse_args(argv)
    try:
        import websockets  # noqa: F401
    except ImportError:
        raise ImportError('a server needs websockets: pip install "anyvla[serve]"') from None
    from anyvla.policy import VLA
    from anyvla.serving.mapping import DEFAULTS, ClientMapping, Translator
    from anyvla.serving.vlaeval import Server
    from anyvla.training.loop import pick_device

    checkpoint = options.run / "checkpoint" if (options.run / "checkpoint").is_dir() else options.run
    vla = VLA.load(checkpoint, pick_device(options.device))
    vla.implausible = options.implausible or vla.implausible
    robots = {r.embodiment.name: r.embodiment for r in vla.robots}
    name = options.robot or next(iter(robots))
    if name not in robots or (options.robot is None and len(robots) > 1):
        raise ConfigError(f"which robot? --robot one of {', '.join(robots)}")
    mapping = DEFAULTS.get(name, ClientMapping())
    if options.mapping is not None:
        mapping = build(
            ClientMapping, yaml.safe_load(options.mapping.read_text(encoding="utf-8")) or {}, where=str(options.mapping)
        )
    if options.execute is not None and not 1 <= options.execute <= vla.config.chunk:
        raise ConfigError(f"--execute {options.execute}: the policy predicts {vla.config.chunk} actions at once")
    server = Server(vla, Translator(mapping, robots[name]), options.execute)

    def ready(port: int) -> None:
        console.print(f"{options.protocol}: {name} at ws://{options.host}:{port}, Ctrl-C ends it")

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve(options.host, options.port, ready))
    server.batcher.close()
    return 0
