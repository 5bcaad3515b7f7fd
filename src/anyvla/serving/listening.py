"""Reserve the address of a server before a policy is loaded, with errors that suggest a fix."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys

from anyvla.config import ConfigError
from anyvla.serving.limits import ServerLimits

_OTHER_FILES = 64  # of a process that serves


def bind(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Return a socket for each address of the host, bound and not listening yet.

    Raises ConfigError that names the `option` which sets the port.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"{option} {port}: ports are 0 to 65535; 0 takes any that is free")
    if not host.strip():
        raise ConfigError("--host is empty: give an address of this machine; 127.0.0.1 is for this machine only")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, ValueError) as error:  # ValueError: a name that cannot be one
        raise ConfigError(f"--host {host}: there is no such host ({error}); --host 127.0.0.1 is this machine") from None
    with contextlib.ExitStack() as opened:
        sockets = []
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            new = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                new.bind((address[0], port, *address[2:]))
            except OSError as error:
                raise explain_bind_error(error, host, port, option) from None
            port = new.getsockname()[1]  # all addresses get the free port of the first
            sockets.append(new)
        opened.pop_all()
    return sockets


def check_open_files(limits: ServerLimits) -> None:
    """Raise ConfigError for more connections than the process may have open files."""
    if sys.platform == "win32":
        return
    import resource

    needed = limits.connections + limits.handshakes + _OTHER_FILES
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > allowed != resource.RLIM_INFINITY:
        raise ConfigError(
            f"{limits.connections} connections and {limits.handshakes} handshakes need {needed} open files, and this "
            f"process may have {allowed}: lower --limits.connections, or raise `ulimit -n`"
        )


def explain_bind_error(error: OSError, host: str, port: int, option: str = "--port") -> ConfigError:
    """Return an error with a suggestion for a server that can't listen."""
    if error.errno == errno.EADDRINUSE:
        text = f"port {port} is in use: stop the program that has it, or give another {option} (0: any that is free)"
    elif error.errno in (errno.EACCES, errno.EPERM):
        text = f"you may not use port {port}: ports below 1024 need root; give {option} 8000, for instance"
    elif error.errno == errno.EADDRNOTAVAIL:
        text = f"--host {host} is no address of this machine; 127.0.0.1 is, and 0.0.0.0 means all of its addresses"
    else:
        text = f"cannot listen at {host}, port {port}: {error.strerror}"
    return ConfigError(text)
