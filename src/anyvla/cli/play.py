"""`anyvla play`: a page on which you instruct a simulated robot and watch it obey."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.common import console
from anyvla.config import ConfigError

if TYPE_CHECKING:
    from anyvla.play.checkpoints import PlayedCheckpoint
    from anyvla.play.visit_pool import VisitPool

_EPILOG = """\
Without a checkpoint, a small policy that comes with anyvla acts: Meta-World's drawer, window, door and button.
On another machine: anyvla play there, and here ssh -L 8600:localhost:8600 MACHINE; then open http://localhost:8600
"""


def main(argv: list[str]) -> int:
    """Reserve the port, serve the page, and start the simulator and the policies behind it."""
    parser = argparse.ArgumentParser(
        prog="anyvla play",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", nargs="?", type=Path, help="a run folder such as outputs/quickstart, or a checkpoint")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a second policy, side by side on the same starts")
    parser.add_argument("--benchmark", help="such as metaworld/half-open (default: the recipe's)")
    parser.add_argument("--python", help="the Python interpreter that has the simulator (default: this one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8600, help="default: %(default)s; 0: any free port")
    parser.add_argument("--no-auth", action="store_true", help="let other machines open the page (see --host)")
    parser.add_argument("--visits", type=int, default=2, help="pages that may be open at once (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="device of the policies: cpu, cuda or auto (default)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that the checkpoint contains or names; read it first"
    )
    options = parser.parse_args(argv)
    try:
        import websockets  # noqa: F401
    except ImportError:
        raise ImportError('the page needs websockets: pip install "anyvla[serve]"') from None
    from anyvla.serving.listening import bind

    if options.visits < 1:
        raise ConfigError(f"--visits {options.visits}: one page at least must be able to open")
    sockets = bind(options.host, options.port)
    exposed = [s for s in sockets if not ipaddress.ip_address(s.getsockname()[0].partition("%")[0]).is_loopback]
    if options.no_auth and not exposed:
        raise ConfigError(
            "--no-auth lets other machines open the page, and they can't reach it: give --host 0.0.0.0, too, or leave "
            "--no-auth away"
        )
    if exposed and not options.no_auth:
        raise ConfigError(
            f"other machines could move the robot at {exposed[0].getsockname()[0]}: allow everyone with --no-auth, or "
            "leave --host away and forward the port with ssh -L (see --help)"
        )
    pool = _build_pool(options)
    asyncio.run(_serve(pool, sockets, options.visits, None if exposed else ("127.0.0.1", "localhost", "[::1]")))
    return 0


def _build_pool(options: argparse.Namespace) -> VisitPool:
    from anyvla.cli.evaluate import find_code
    from anyvla.evaluation.suites import name_suite
    from anyvla.play.checkpoints import choose_suite
    from anyvla.play.visit_pool import VisitPool

    played = [_read(options.run)]
    if options.against is not None:
        played.append(_read(options.against))
    name = choose_suite(played, options.benchmark)
    settings = played[0].recipe.get("environment", {}) if name == played[0].benchmark else {}
    if not options.trust_remote_code and (code := find_code(name, settings, options.benchmark, ())):
        raise ConfigError(f"{played[0].name} would make the simulator run {code}: read it, then --trust-remote-code")
    spec, _, suite = name_suite(name, settings, options.python)
    return VisitPool(spec, suite, name, played, options.device, options.trust_remote_code)


def _read(run: Path | None) -> PlayedCheckpoint:
    """Read a checkpoint without PyTorch; None is the one that comes with anyvla."""
    from anyvla.play.checkpoints import SHIPPED, read_checkpoint

    if run is None:
        return read_checkpoint(SHIPPED, "The policy that comes with anyvla")
    if not run.is_dir():
        raise ConfigError(f"there is no folder {run}: give a run folder such as outputs/quickstart, or a checkpoint")
    folder = run
    if not (run / "config.yaml").is_file():
        from anyvla.checkpoint.files import checkpoint_of

        folder = run / "checkpoint" if (run / "checkpoint").is_dir() else checkpoint_of(run)
    return read_checkpoint(folder, str(run))


async def _serve(pool: VisitPool, sockets: Sequence[socket.socket], visits: int, hosts: Sequence[str] | None) -> None:
    from anyvla.play.server import PageServer
    from anyvla.serving.listening import explain_bind_error

    server = PageServer(pool, visits, hosts)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, server.stop)
    host, port = sockets[0].getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        await server.run(sockets, lambda: console.print(f"open {address} in a browser; Ctrl-C to stop", soft_wrap=True))
    except OSError as error:
        raise explain_bind_error(error, host, port) from None
