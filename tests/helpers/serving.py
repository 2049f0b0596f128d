"""Servers on the loopback address, for stand-ins and for tests that nothing is asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port until the block ends; gives the address to the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def counting() -> Iterator[tuple[str, list[object]]]:
    """Take connections without an answer; gives the address and the list of who connected to the block."""
    calls: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_count, args=(server, calls), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls


@contextmanager
def silent() -> Iterator[str]:
    """Take connections and never answer; gives the address to the block."""
    # The system takes them for a socket that listens. Nobody reads what is asked.
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """Answer each connection with these bytes, whatever it asks, and close it; gives the address to the block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer, args=(server, content), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _answer(server: socket.socket, content: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(content)


def _count(server: socket.socket, calls: list[object]) -> None:
    while True:
        try:
            connection, peer = server.accept()
        except OSError:
            return
        calls.append(peer)
        connection.close()
