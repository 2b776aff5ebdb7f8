"""A proxy on this machine whose connections can be cut, as a network or a load balancer cuts them."""

from __future__ import annotations

import contextlib
import socket
import threading


class CuttingProxy:
    """Passes TCP connections on to a local port, each with what it first asked for, until they are cut.

    Args:
        port: to which it passes them on.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[tuple[bytes, socket.socket, socket.socket]] = []
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()
        self.cut(b"")

    def seen_with(self, words: bytes) -> int:
        """Connections so far whose first request has these words."""
        return sum(words in asked for asked, _, _ in self._connections)

    def open_with(self, words: bytes) -> int:
        """Those that are open."""
        return sum(words in asked and near.fileno() >= 0 for asked, near, _ in self._connections)

    def cut(self, words: bytes) -> int:
        """Cut them, without a word to either side; returns how many were open."""
        with self._lock:
            wanted = [c for c in self._connections if words in c[0] and c[1].fileno() >= 0]
            for _, near, far in wanted:
                _close(near, far)
        return len(wanted)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        """One connection: its first request is looked at, then bytes go both ways until a side ends."""
        with contextlib.suppress(OSError):
            asked = near.recv(65536)
            far = socket.create_connection(("127.0.0.1", self._port))
            far.sendall(asked)
            self._connections.append((asked, near, far))
            back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
            back.start()
            self._pass_on(near, far)
            back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with self._lock:
            _close(source, target)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        end.close()
