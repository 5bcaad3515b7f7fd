"""`anyvla serve RUN --protocol NAME`: serve a policy to existing clients (`anyvla list protocols`)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.acting_robot import choose_acting_robot
from anyvla.cli.common import console
from anyvla.cli.recipe_help import KeyParser
from anyvla.cli.stopping import stoppable_in_libraries
from anyvla.config import ConfigError, build, override, read_options

if TYPE_CHECKING:
    from anyvla.policy import VLA
    from anyvla.serving.limits import ServerLimits
    from anyvla.serving.mapping import Translator
    from anyvla.serving.protocols.base import ServerProtocol
    from anyvla.serving.tls import TlsFiles
    from anyvla.serving.transports.base import Server

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Reserve the port, load the policy, and serve until the process is stopped."""
    parser = KeyParser(prog="anyvla serve", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run folder such as outputs/quickstart, or a checkpoint folder")
    parser.add_argument(
        "--protocol", default="vla-eval", help="of the clients: anyvla list protocols (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, help="default: as the protocol's clients expect; 0: any free port")
    parser.add_argument("--api-key-file", type=Path, help="file with the key of the clients (or $ANYVLA_API_KEY)")
    parser.add_argument("--no-auth", action="store_true", help="let other machines use the server without a key")
    parser.add_argument("--tls-cert", type=Path, help="PEM file of the certificate and its chain: clients need TLS")
    parser.add_argument("--tls-key", type=Path, help="PEM file of the certificate's private key")
    parser.add_argument("--status-port", type=int, help="/healthz, /readyz and /metrics at a port of their own")
    parser.add_argument("--log-format", choices=["text", "json"], default="text", help="default: %(default)s")
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning"],
        default="info",
        help="debug: a line for each request; info: for those with a fault (default)",
    )
    parser.add_argument(
        "--mapping", metavar="FILE|NAME", help="keys of the client: a YAML file, or a name of `anyvla list mappings`"
    )
    parser.add_argument("--instruction", help="for clients that send none, as openpi's for ALOHA")
    parser.add_argument("--limits", type=Path, help="YAML file of limits; --limits.NAME VALUE sets one")
    parser.add_argument("--robot", help="the robot to serve, if the policy has several")
    parser.add_argument("--execute", type=int, help="actions of a chunk to execute (default: as trained)")
    parser.add_argument(
        "--implausible",
        choices=["error", "warn"],
        help="if proprio or committed actions are far from the data (default: as trained)",
    )
    parser.add_argument("--device", default="auto", help="device of the policy: cpu, cuda or auto (default)")
    parser.add_keys("anyvla.serving.limits:ServerLimits", "limits", heading="Limits")
    options, others = parser.parse_known_args(argv)
    from anyvla.serving.protocols.registry import find_protocol, load_protocol

    name = find_protocol(options.protocol)
    with stoppable_in_libraries():  # it imports PyTorch
        protocol = load_protocol(name)  # first, as it may need a package that is not installed
    for option, reason in protocol.unused_options.items():
        if getattr(options, option) is not None:
            raise ConfigError(f"--{option} has no effect with --protocol {name}: {reason}")
    from anyvla.serving.access import check_exposure, read_key
    from anyvla.serving.listening import bind, check_open_files
    from anyvla.serving.policy_service import PolicyService
    from anyvla.serving.request_log import configure_logging
    from anyvla.serving.supervised import SupervisedServer
    from anyvla.serving.transports.websocket import WebsocketServer

    configure_logging(options.log_format, options.log_level)
    limits = _limits(options.limits, others)
    check_open_files(limits)
    key, tls = read_key(options.api_key_file, os.environ), _tls(options, protocol, name)
    sockets = bind(options.host, protocol.port if options.port is None else options.port)
    status_sockets = [] if options.status_port is None else bind(options.host, options.status_port, "--status-port")
    check_exposure([s.getsockname()[0] for s in sockets], key, options.no_auth)
    vla, translator = _load(options, limits, name, protocol)
    service = PolicyService(vla, translator, options.execute, limits)
    context = None if tls is None else tls.make_context()
    status = WebsocketServer(service, None, key, context) if status_sockets else None
    server = SupervisedServer(service, protocol(service).make_server(key, tls), status, status_sockets)
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = protocol.scheme if tls is None else protocol.scheme_tls
    title = f"{name}: {service.robot.name} at {scheme}://{host}:{sockets[0].getsockname()[1]}"

    def announce() -> None:
        if options.log_format == "json":
            log.info("%s", title)
        else:
            console.print(f"{title}, Ctrl-C to stop", soft_wrap=True)

    unanswered = asyncio.run(_serve(server, sockets, options.host, announce))
    if unanswered:
        console.print(f"stopped; {unanswered} requests were not answered within {limits.drain_seconds:g} s")
    service.close(0.1 if unanswered else 1.0)  # a policy that still computes ends with the process
    return 0


def _load(
    options: argparse.Namespace, limits: ServerLimits, protocol_name: str, protocol: type[ServerProtocol]
) -> tuple[VLA, Translator]:
    """Return the policy, and the translator between the client and the robot. Raises ConfigError."""
    from anyvla.checkpoint.files import checkpoint_of
    from anyvla.data.threads import compute_alone
    from anyvla.policy import VLA
    from anyvla.serving.mapping import Translator
    from anyvla.serving.mapping_files import choose_mapping
    from anyvla.text import check_instruction
    from anyvla.training.device import pick_device

    compute_alone()  # the policy computes in a thread of its own
    vla = VLA.load(checkpoint_of(options.run), pick_device(options.device))
    vla.implausible = options.implausible or vla.implausible
    robot = choose_acting_robot(vla, options.robot, options.execute)
    mapping = choose_mapping(options.mapping, robot, protocol_name, protocol.keys)
    if options.instruction is not None:
        mapping = dataclasses.replace(mapping, default_instruction=check_instruction(options.instruction))
    return vla, Translator(mapping, robot, limits, reads_proprio=vla.config.proprio != "none")


def _tls(options: argparse.Namespace, protocol: type[ServerProtocol], name: str) -> TlsFiles | None:
    """Return the certificate of the options, which is checked. Raises ConfigError."""
    from anyvla.serving.tls import TlsFiles

    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ConfigError("--tls-cert and --tls-key belong together: the certificate and its private key, in PEM")
    if not protocol.scheme_tls:
        raise ConfigError(f"clients of {name} know no TLS: use a tunnel (SSH, WireGuard) instead of --tls-cert")
    tls = TlsFiles(options.tls_cert, options.tls_key)
    tls.make_context()
    return tls


async def _serve(server: Server, sockets: Sequence[socket.socket], host: str, ready: Callable[[], None]) -> int:
    """Serve until SIGINT or SIGTERM. Return the number of requests that were not answered."""
    from anyvla.serving.listening import explain_bind_error

    loop, port = asyncio.get_running_loop(), sockets[0].getsockname()[1]  # gRPC closes the sockets
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, server.stop)

    try:
        return await server.run(sockets, ready)
    except OSError as error:
        raise explain_bind_error(error, host, port) from None


def _limits(file: Path | None, others: Sequence[str]) -> ServerLimits:
    """Return the limits of a file, overridden by the options `--limits.NAME VALUE`. Raises ConfigError."""
    from anyvla.serving.limits import ServerLimits

    unknown = [o for o in others if o.startswith("--") and not o.startswith("--limits.")]
    if unknown:
        raise ConfigError(f"there is no option {unknown[0]}; anyvla serve --help lists all")
    keys = {} if file is None else read_options(file)
    return build(ServerLimits, override({"limits": keys}, others)["limits"], where=str(file or "--limits"))
