"""`anyvla doctor policy CHECKPOINT --dataset PATH`: check that a served policy predicts what it learned.

Recorded episodes are replayed through the server (codec, mapping, resize, session, execute), and its answers are
compared with the chunks that training computes on the same frames. Where they differ, known faults are applied to the
recorded observations, sessions and actions, and the one whose chunks match the served ones is named.
Without --server, the server of this checkpoint is started here. With --client, your own robot-side code is checked too.
The exit status is 0 if all answers are equal to training's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyvla.cli.common import ProgressBar, console
from anyvla.config import ConfigError, build

if TYPE_CHECKING:
    from anyvla.doctor.clients import PolicyClient
    from anyvla.doctor.played import Played
    from anyvla.policy import VLA
    from anyvla.serving.mapping import Translator

PROTOCOL = "vla-eval"  # unless --protocol names another one
ADDRESS = "ANYVLA_SERVER"  # the variable that names the server to the user's own client


def main(argv: list[str]) -> int:
    """Print the report (or, with --json, one JSON object). Return 0 if the answers are those of training."""
    parser = argparse.ArgumentParser(
        prog="anyvla doctor policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder such as outputs/quickstart, or a checkpoint folder")
    parser.add_argument("--dataset", required=True, metavar="PATH", help="recorded episodes of the policy's robot")
    parser.add_argument(
        "--source", type=Path, metavar="FILE.yaml", help="keys of a source as in a recipe's data.sources, except path"
    )
    parser.add_argument("--server", metavar="URL", help="a running server (default: start one of the checkpoint here)")
    parser.add_argument("--protocol", help=f"of the server (default: {PROTOCOL})")
    parser.add_argument("--mapping", metavar="FILE|NAME", help="keys of the client, as of anyvla serve")
    parser.add_argument("--api-key-file", type=Path, help="file with the key of --server (or $ANYVLA_API_KEY)")
    parser.add_argument(
        "--client", metavar="MODULE:FUNCTION",
        help=f"your code: function(observation) returns a chunk or an action; ${ADDRESS} is the server's address",
    )  # fmt: skip
    parser.add_argument("--robot", help="the robot to examine, if the data shows several")
    parser.add_argument("--episodes", type=int, default=3, help="recorded episodes to replay (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each episode, at most (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, help="of equal actions, in ranges (default: by the precision)")
    parser.add_argument("--quick", action="store_true", help="don't list the faults that would not have been noticed")
    parser.add_argument("--device", default="auto", help="device of the policy: cpu, cuda or auto (default)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the report and the chunks there")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint contains")
    options = parser.parse_args(argv)
    for name, least in (("episodes", 1), ("steps", 2), ("tolerance", 0)):
        if (given := getattr(options, name)) is not None and given < least:
            raise ConfigError(f"--{name} {given} is too small: give at least {least}")
    _check_unused(options)
    options.protocol = options.protocol or PROTOCOL
    return _run(options)


def _check_unused(options: argparse.Namespace) -> None:
    """Raise ConfigError for an option that would change nothing beside the others."""
    if options.api_key_file is not None:
        if options.server is None:
            raise ConfigError("--api-key-file is the key of --server, and none is given: the doctor's own needs no key")
        if options.client is not None:
            raise ConfigError("--api-key-file has no effect with --client: your code gives the key of the server")
    if options.client is not None and options.server is not None:
        for option, given in (("--mapping", options.mapping), ("--protocol", options.protocol)):
            if given is not None:
                raise ConfigError(
                    f"{option} has no effect with both --client and --server: your code knows the server's protocol "
                    "and keys; leave it away, or leave --server away and the doctor starts one"
                )
    if options.mapping is not None:
        from anyvla.serving.protocols.registry import find_protocol, load_protocol

        name = find_protocol(options.protocol or PROTOCOL)
        if (reason := load_protocol(name).unused_options.get("mapping")) is not None:
            raise ConfigError(f"--mapping has no effect with --protocol {name}: {reason}")


def _run(options: argparse.Namespace) -> int:
    from anyvla.checkpoint.files import checkpoint_of
    from anyvla.doctor.clients import RefusedError, replay_through
    from anyvla.doctor.examination import examine
    from anyvla.doctor.refusals import explain_refusal
    from anyvla.doctor.report import Report, write_report
    from anyvla.doctor.wire_clients import check_protocol
    from anyvla.policy import VLA
    from anyvla.training.device import pick_device

    if options.client is None:
        check_protocol(options.protocol)
    checkpoint = checkpoint_of(options.run)
    vla = VLA.load(checkpoint, pick_device(options.device), trust_remote_code=options.trust_remote_code)
    episodes, instructions = _read_episodes(vla, checkpoint, options)
    robot = vla.layout.names.index(episodes[0].recording.robot)
    execute = vla.config.execute
    report = Report(str(checkpoint), options.dataset, options.protocol, options.client)
    with _opened(vla, robot, options) as (client, address, translator):
        report.server = address
        dims = vla.robots[robot].embodiment.action.size
        with ProgressBar("replay") as bar:
            try:
                served = replay_through(client, episodes, execute, dims, bar)
            except RefusedError as error:
                hint = explain_refusal(vla, robot, episodes[error.episode], error)
                raise ValueError(f"the served path refused a recorded observation: {error}.{hint}") from None
    with ProgressBar("compare") as bar:
        report.examination = examine(
            vla, robot, episodes, served, execute=execute, whole_chunks=bool(client.whole_chunks),
            convert=_converter(translator), tolerance=options.tolerance, instructions=instructions,
            thorough=not options.quick, progress=bar,
        )  # fmt: skip
    if options.out is not None:
        write_report(options.out, report, served)
    if options.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        from anyvla.cli.doctor.policy_report import print_report

        print_report(report)
    return 0 if report.examination.equal else 1


def _read_episodes(vla: VLA, checkpoint: Path, options: argparse.Namespace) -> tuple[list[Played], Sequence[str]]:
    """Return the episodes to replay, of one robot, and instructions of the data."""
    from anyvla.checkpoint.files import CONFIG, read_document
    from anyvla.cli.open_loop import open_given
    from anyvla.data.training.mixture import DataConfig
    from anyvla.doctor.played import choose_episodes, list_instructions, read_episodes

    trained = build(DataConfig, read_document(checkpoint).get("data", {}), where=f"{checkpoint / CONFIG}, data")
    robots = [r.embodiment for r in vla.robots]
    if options.robot is not None and options.robot not in vla.layout.names:
        raise ConfigError(f"--robot {options.robot}: the policy has {', '.join(vla.layout.names)}")
    mixture = open_given(options.dataset, options.source, trained, robots, None)
    recordings = choose_episodes(robots, mixture, options.episodes, options.robot)
    episodes = read_episodes(recordings, options.steps, vla.config.execute)
    return episodes, list_instructions(mixture)


@contextlib.contextmanager
def _opened(
    vla: VLA, robot: int, options: argparse.Namespace
) -> Iterator[tuple[PolicyClient, str | None, Translator | None]]:
    """Yield the client, the address of the server, and the translator whose convention the answers have."""
    from anyvla.doctor.clients import load_function
    from anyvla.doctor.local_server import serving
    from anyvla.doctor.observation_writer import ObservationWriter
    from anyvla.doctor.wire_clients import connected
    from anyvla.serving.access import read_key
    from anyvla.serving.mapping import Translator
    from anyvla.serving.mapping_files import choose_mapping
    from anyvla.serving.protocols.registry import find_protocol, load_protocol

    embodiment, protocol = vla.robots[robot].embodiment, find_protocol(options.protocol)
    mapping = choose_mapping(options.mapping, embodiment, protocol, load_protocol(protocol).keys)
    translator = Translator(mapping, embodiment, reads_proprio=vla.config.proprio != "none")
    with contextlib.ExitStack() as opened:
        if options.server is None:
            address = opened.enter_context(serving(vla, translator, protocol))
        else:
            address = options.server
        if options.client is not None:
            os.environ[ADDRESS] = address
            yield load_function(options.client), address, None
            return
        key = read_key(options.api_key_file, os.environ) if options.server is not None else None
        writer = ObservationWriter(mapping, embodiment)
        client, facts = opened.enter_context(connected(protocol, address, writer, key))
        if options.server is not None:
            from anyvla.doctor.identity import check_server

            for note in check_server(facts, vla, robot, address):
                console.print(note, soft_wrap=True, style="yellow")
        yield client, address, translator


def _converter(translator: Translator | None) -> Any:
    """Return the function that converts actions (..., A) to the client's convention."""
    if translator is None:  # the user's client returns actions of the data's robot
        return lambda actions: actions
    return translator.their_actions
