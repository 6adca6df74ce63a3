"""Relays between a cache and its origin: they count what the origin sends, and can pretend that it hangs.

Each runs in a process of its own and moves bytes by ``splice``, without a copy. It costs every cache alike,
and nothing of it is counted as a server's.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

PIPE = 1 << 20
_F_SETPIPE_SZ = 1031


@dataclass(frozen=True)
class Relay:
    """A running relay.

    Args:
        port: Where the cache finds its origin.
        count: Bytes that the origin has sent, heads included, ever growing.
    """

    port: int
    count: Any

    @property
    def sent(self) -> int:
        return int(self.count.value)


@contextmanager
def relay(origin: int) -> Iterator[Relay]:
    """A relay to a port of this machine; port 0: it takes connections and requests and never answers."""
    spawn = multiprocessing.get_context("spawn")
    count = spawn.Value("q", 0)
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(origin, count, there), daemon=True)
    process.start()
    try:
        yield Relay(here.recv(), count)
    finally:
        process.kill()
        process.join()


def _serve(origin: int, count: Any, ready: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    ready.send(listener.getsockname()[1])
    held = []
    while True:
        near, _ = listener.accept()
        if not origin:
            held.append(near)
            continue
        far = socket.create_connection(("127.0.0.1", origin))
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_move, args=(near, far, None), daemon=True).start()
        threading.Thread(target=_move, args=(far, near, count), daemon=True).start()


def _move(source: socket.socket, target: socket.socket, count: Any) -> None:
    """Carry bytes in one direction until the source ends."""
    import fcntl

    out, into = os.pipe()
    try:
        fcntl.fcntl(into, _F_SETPIPE_SZ, PIPE)
        while moved := os.splice(source.fileno(), into, PIPE):
            if count is not None:
                with count.get_lock():
                    count.value += moved
            while moved:
                moved -= os.splice(out, target.fileno(), moved)
    except (OSError, ValueError):
        pass  # one of them has gone
    finally:
        os.close(out)
        os.close(into)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
