"""root:// connections that reach a worker are handed to the main process.

The streams of a session must meet in one process, and the kernel deals connections out to all of them.
Nothing was read yet, so the socket itself is passed, over a pair of sockets made when the worker is started.

Source: unix(7), ``SCM_RIGHTS``; §4 (bind) of the project's root:// contract.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

from doma.net.exchange import Address
from doma.net.hub import Hub

log = logging.getLogger(__name__)

_TURNS = 64
"""Connections taken at one wake-up."""


class Giver:
    """The worker's end; its :meth:`give` is the listener's ``root``."""

    def __init__(self, fd: int) -> None:
        self._pair = socket.socket(fileno=fd)
        self._pair.setblocking(False)

    def give(self, sock: socket.socket, peer: Address, hub: Hub) -> None:
        """Pass a connection on; if that cannot be done it is closed, and its client tries again."""
        try:
            socket.send_fds(self._pair, [b"\0"], [sock.fileno()])
        except OSError as e:
            log.warning("a root:// connection from %s cannot be handed over: %s", peer[0], e)
        finally:
            sock.close()


class Taker:
    """The main process's end of one worker.

    Args:
        take: Serves a connection.
    """

    def __init__(self, take: Callable[[socket.socket], None]) -> None:
        self._take = take
        self._mine, self.theirs = socket.socketpair()
        self._mine.setblocking(False)
        asyncio.get_running_loop().add_reader(self._mine, self._look)

    def close(self) -> None:
        """The worker has ended."""
        if self._mine.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._mine)
            self._mine.close()
        self.theirs.close()

    def _look(self) -> None:
        for _ in range(_TURNS):
            try:
                said, found, _, _ = socket.recv_fds(self._mine, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                said, found = b"", []
            for fd in found:
                self._take(socket.socket(fileno=fd))
            if not said:
                self.close()
                return
