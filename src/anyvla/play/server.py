"""Serve the page and its live connection: one websocket for each visit, static files for everything else."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import mimetypes
import queue
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Response

import anyvla.report
from anyvla.play.messages import LONGEST, CommandError, read_command, write_message
from anyvla.play.outbox import Outbox
from anyvla.play.visit_pool import VisitPool

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
STYLE = Path(anyvla.report.__file__).parent / "templates" / "report.css"  # so that all pages of anyvla look alike
LIVE = "/live"
_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}


class PageServer:
    """Serves pages until `stop` is called."""

    def __init__(self, pool: VisitPool, visits: int, hosts: Sequence[str] | None) -> None:
        """`visits`: at most so many at once. `hosts`: names by which browsers may address the server; None: any."""
        self._pool, self._visits, self._hosts = pool, visits, hosts
        self._files = _read_files()
        self._open = 0
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None] = lambda: None) -> None:
        """Listen at bound sockets until `stop`. Raises the error of a simulator or policy that cannot be used."""
        preparing = asyncio.create_task(asyncio.to_thread(self._pool.prepare))
        preparing.add_done_callback(self._end_if_failed)
        async with contextlib.AsyncExitStack() as stack:
            for bound in sockets:
                await stack.enter_async_context(
                    serve(
                        self._visit,
                        sock=bound,
                        process_request=self._answer,
                        max_size=LONGEST,
                        compression=None,
                        server_header=None,
                        logger=_quiet(),
                    )
                )
            ready()
            await self._stopping.wait()
        await asyncio.to_thread(self._pool.stop)
        if self._failure is not None:
            raise self._failure
        await preparing

    def _end_if_failed(self, preparing: asyncio.Task[None]) -> None:
        if not preparing.cancelled() and preparing.exception() is not None:
            self._failure = preparing.exception()
            self.stop()

    def _answer(self, connection: ServerConnection, request: Any) -> Response | None:
        """Return an HTTP answer, or None for a page that gets its live connection."""
        path, headers = request.path.partition("?")[0], request.headers
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        if len(hosts) != 1 or (self._hosts is not None and _strip_port(hosts[0]) not in self._hosts):
            # A page of another site may give its own name the address of this machine.
            return _respond(http.HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"This server has another name.\n")
        if path == LIVE:
            if [origin.partition("://")[2] for origin in origins] != hosts:
                return _respond(http.HTTPStatus.FORBIDDEN, "text/plain", b"Only this server's own page may connect.\n")
            return None
        if path not in self._files:
            return _respond(http.HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.\n")
        return _respond(http.HTTPStatus.OK, *self._files[path])

    async def _visit(self, connection: ServerConnection) -> None:
        if self._open >= self._visits:
            await connection.close(CloseCode.TRY_AGAIN_LATER, "busy")
            return
        self._open += 1
        try:
            await self._serve_visit(connection)
        except ConnectionClosed:
            return
        except Exception as error:
            log.exception("a visit failed")
            with contextlib.suppress(ConnectionClosed):
                await connection.send(write_message("failed", text=str(error)[-400:]))
        finally:
            self._open -= 1

    async def _serve_visit(self, connection: ServerConnection) -> None:
        while not self._pool.is_ready:
            await connection.send(write_message("starting"))
            await asyncio.sleep(0.1)
            if connection.close_code is not None or self._stopping.is_set():
                return
        await connection.send(write_message("hello", **self._pool.describe()))
        outbox = Outbox(asyncio.get_running_loop())
        visit, robots = await asyncio.to_thread(self._pool.open, outbox.post_text, outbox.post_picture)
        sending = asyncio.create_task(_send(connection, outbox))
        try:
            async for data in connection:
                try:
                    visit.command(read_command(data))
                except CommandError as error:
                    await connection.send(write_message("error", text=str(error)))
                except queue.Full:
                    await connection.close(CloseCode.POLICY_VIOLATION, "too many commands")
        finally:
            sending.cancel()
            await asyncio.shield(asyncio.to_thread(self._pool.close, visit, robots))


async def _send(connection: ServerConnection, outbox: Outbox) -> None:
    with contextlib.suppress(ConnectionClosed):
        try:
            while True:
                for message in await outbox.take():
                    await connection.send(message)
        except OverflowError:
            connection.transport.abort()


def _read_files() -> dict[str, tuple[str, bytes]]:
    """Return the type and the content of each file by its path."""
    files = {f"/{path.name}": path for path in PAGE.iterdir() if path.is_file()}
    files |= {"/": PAGE / "index.html", "/report.css": STYLE}
    return {path: (_guess_type(file), file.read_bytes()) for path, file in files.items()}


def _guess_type(path: Path) -> str:
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _respond(status: http.HTTPStatus, kind: str, body: bytes) -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, body)


def _strip_port(host: str) -> str:
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host


def _quiet() -> logging.Logger:
    """Return a logger for websockets that is silent about the faults of clients."""
    logger = logging.getLogger("anyvla.play.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
