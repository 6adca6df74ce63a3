"""Kept-alive connections by origin: at most so many to each, timed out by one sweep for all."""

import asyncio
import socket
import ssl as tls
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from doma.core.errors import BadRequest, DomaError, Forbidden, StorageUnavailable, TimedOut
from doma.core.url import Origin
from doma.net.wire import Connection

BUFFER = 256 << 10
"""The read buffer that all connections of a pool share."""
FRESH = 3.0
"""Seconds of disuse after which a connection is not trusted with a request that must not be repeated."""

TRIES = 2
"""Times that one address is connected to: a busy XRootD 5.5 resets now and then what it has just accepted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client grants a server. Seconds, unless said."""

    connect: float = 10
    first_byte: float = 30
    idle: float = 30
    keep: float = 15
    """Life of an unused connection; less than servers' own, so that few are found closed."""
    first_again: float = float("inf")
    """Wait for the first byte on a kept connection; then a fresh one is tried, and given all the time."""
    go_on: float = 2
    """Wait for ``100 Continue`` before the body is sent anyway."""
    connections: int = 16
    """To one origin."""
    redirects: int = 8


Allow = Callable[[str, str], bool]
"""Whether one may connect: host name and address, ``("se.cern.ch", "192.0.2.7")``."""


class Pool:
    """Connections of one event loop.

    Args:
        ssl: Context for https; None: the system's authorities, made at first use.
        limits: Times and counts.
        allow: Judges each address before it is connected to; None: all are fine.
    """

    def __init__(self, ssl: tls.SSLContext | None, limits: Limits, allow: Allow | None) -> None:
        self._ssl = ssl
        self._limits = limits
        self._allow = allow
        self._buffer = memoryview(bytearray(BUFFER))
        self._free: dict[Origin, deque[Connection]] = {}
        self._slots: dict[Origin, asyncio.Semaphore] = {}
        self._all: dict[Connection, Origin] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self, origin: Origin, *, repeatable: bool, fresh: bool = False) -> Connection:
        """A connection for one request; :meth:`give` it back when its answer is over.

        Args:
            origin: Whom to talk to.
            repeatable: The request can be sent again if the connection turns out to be dead.
            fresh: The kept ones have proved bad: they are closed.
        """
        if self._closed:
            raise StorageUnavailable(f"{origin}: the client is closed")
        slot = self._slots.setdefault(origin, asyncio.Semaphore(self._limits.connections))
        await slot.acquire()
        try:
            now = asyncio.get_running_loop().time()
            free = self._free.setdefault(origin, deque())
            while free:
                connection = free.pop()  # The one used last: the others may grow old and go.
                limit = self._limits.keep if repeatable else FRESH
                if connection.usable and not fresh and now - connection.since < limit:
                    return connection
                connection.abort()
            return await self._connect(origin)
        except BaseException:  # a cancellation, too: undone, and raised on
            slot.release()
            raise

    def give(self, connection: Connection) -> None:
        """Take back a connection, whole or broken."""
        origin = self._all[connection]
        self._slots[origin].release()
        if connection.usable and not self._closed:
            connection.since = asyncio.get_running_loop().time()
            self._free[origin].append(connection)
        else:
            connection.abort()

    async def close(self) -> None:
        """Close all connections, running ones too. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [connection.closed for connection in self._all]
        for connection in tuple(self._all):
            connection.fail(StorageUnavailable(f"{connection.name}: the client was closed"))
        if waiting:
            await asyncio.wait(waiting, timeout=2)

    async def _connect(self, origin: Origin) -> Connection:
        try:
            async with asyncio.timeout(self._limits.connect):
                return await self._reach(origin)
        except TimeoutError as e:
            raise StorageUnavailable(
                f"{origin}: no connection within {self._limits.connect:g} s; is the server up?"
            ) from e
        except tls.SSLCertVerificationError as e:
            raise StorageUnavailable(
                f"{origin}: its certificate is not trusted ({e.verify_message}); give the right CA file"
            ) from e
        except UnicodeError as e:
            raise BadRequest(f"{origin}: its host is no name that can be looked up") from e
        except (OSError, tls.SSLError) as e:
            why = e.strerror or str(e) or type(e).__name__
            raise StorageUnavailable(f"{origin}: cannot be connected ({why}); is the server up?") from e

    async def _reach(self, origin: Origin) -> Connection:
        """Connect to the first address that answers. Resolved once: what was judged is what is connected."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        good = [a for a in addresses if self._allow is None or self._allow(origin.host, a)]
        if not good:
            raise Forbidden(f"{origin}: its address is not allowed here; the operator can allow it")
        problem: OSError | None = None
        for address in good:
            for _ in range(TRIES):
                try:
                    return await self._open(origin, address)
                except ConnectionResetError as e:
                    problem = e
                except tls.SSLError:
                    raise
                except OSError as e:
                    problem = e
                    break
        assert problem is not None
        raise problem

    async def _open(self, origin: Origin, address: str) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(str(origin), self._buffer, self._limits.idle),
            address,
            origin.port,
            ssl=self._context() if origin.scheme == "https" else None,
            server_hostname=origin.host if origin.scheme == "https" else None,
        )
        self._all[connection] = origin
        connection.closed.add_done_callback(partial(self._forget, connection))
        self._watch()
        return connection

    def _context(self) -> tls.SSLContext:
        if self._ssl is None:
            self._ssl = tls.create_default_context()
            self._ssl.set_alpn_protocols(["http/1.1"])
        return self._ssl

    def _forget(self, connection: Connection, _: object) -> None:
        origin = self._all.pop(connection, None)
        free = self._free.get(origin) if origin else None
        if free and connection in free:
            free.remove(connection)

    def _watch(self) -> None:
        """Keep one timer as long as there are connections."""
        if self._timer is None and not self._closed:
            limits = self._limits
            pause = min(1.0, limits.first_byte / 4, limits.idle / 4, limits.keep / 4)
            self._timer = asyncio.get_running_loop().call_later(pause, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._all):
            if connection.deadline < now:
                connection.fail(_late(connection.name))
        for free in self._free.values():
            while free and now - free[0].since > self._limits.keep:
                free.popleft().abort()
        if self._all:
            self._watch()


def _late(name: str) -> DomaError:
    return TimedOut(f"{name}: nothing came for too long; the server or the network stands still")
