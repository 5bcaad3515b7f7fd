"""A proxy that loses connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class LossyProxy:
    """Passes connections on, and ends one instead of passing an answer on when `loses(answers so far)`."""

    def __init__(self, port: int, loses: Callable[[int], bool]) -> None:
        self._port, self._loses, self.answers = port, loses, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if from_server:
                    self.answers += 1
                    if self._loses(self.answers):
                        break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
