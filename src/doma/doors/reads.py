"""Reads over HTTP, which knows no open files: joined to one for each client and object.

It is opened by the first request and closed when nothing was asked for ``monitor.idle`` seconds.

Source: §10 of the cache contract.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from doma.auth.model import Identity
from doma.monitor.opens import Cached, Client, Observer, Opened

MOST = 20_000
"""Sessions that are open at one time; beyond, the one that was still for longest is closed."""


LONGEST = 200
"""Characters that are kept of what a client says of itself."""


class Asked(NamedTuple):
    """Who asks over HTTP, as far as a request tells."""

    host: str
    tls: bool = True
    program: str = ""
    """``User-Agent``."""
    info: str = ""
    """A job's name: ``X-Pelican-JobId``."""


@dataclass(slots=True, eq=False)
class Reading:
    """One open file of an HTTP client."""

    file: Opened
    identity: Identity | None
    last: float
    """Unix seconds of the last request."""
    ended: bool = False

    def add(self, size: int, ranges: int) -> None:
        """Count one answer of so many bytes in so many ranges."""
        if ranges == 1:
            self.file.reads.add(size)
            return
        self.file.readvs.add(size)
        self.file.segments.add(ranges)


class HttpReads:
    """The open files of HTTP clients.

    Args:
        observer: Told of each.
        idle: Seconds.
        clock: Unix seconds.
        all: Whether reads count that go through no cache.
    """

    def __init__(
        self, observer: Observer, idle: float, *, clock: Callable[[], float], all: bool = True
    ) -> None:
        self._observer = observer
        self.all = all
        self._idle = idle
        self._clock = clock
        self._open: OrderedDict[tuple[str, Asked, int], Reading] = OrderedDict()
        self._clients: dict[tuple[Asked, int], tuple[Client, int]] = {}
        self._next = 1

    def of(self, asked: Asked, identity: Identity | None, path: str, size: int, *, cached: bool) -> Reading:
        """The open file of a client and path, to which the door adds what it answers.

        Args:
            asked: Who asks.
            identity: By which token.
            path: With the endpoint's name in front.
            size: Bytes of the file.
            cached: Whether it is read through a cache.
        """
        now = self._clock()
        if len(asked.program) > LONGEST or len(asked.info) > LONGEST:
            asked = asked._replace(program=asked.program[:LONGEST], info=asked.info[:LONGEST])
        key = (path, asked, id(identity))
        known = self._open.get(key)
        if known is not None:
            known.last = now
            self._open.move_to_end(key)
            return known
        while len(self._open) >= MOST:
            self._close(next(iter(self._open)))
        file = Opened(self._client(asked, identity), path, size, writing=False, since=now)
        if cached:
            file.cached = Cached()
        reading = self._open[key] = Reading(
            file, identity, now
        )  # which holds the identity: its id is its own
        self._observer.opened(file)
        return reading

    async def run(self) -> None:
        """Close what is still, until cancelled."""
        while True:
            await asyncio.sleep(max(0.05, self._idle / 4))
            self.sweep()

    def sweep(self) -> None:
        """Close what nothing was asked of for the idle time."""
        end = self._clock() - self._idle
        for key in [key for key, reading in self._open.items() if reading.last <= end]:
            self._close(key)

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._close(next(iter(self._open)))

    def _client(self, asked: Asked, identity: Identity | None) -> Client:
        key = (asked, id(identity))
        client, users = self._clients.get(key, (None, 0))
        if client is None:
            client = _described(asked, identity, -self._next)
            self._next += 1
        self._clients[key] = (client, users + 1)
        return client

    def _close(self, key: tuple[str, Asked, int]) -> None:
        reading = self._open.pop(key)
        reading.ended = True
        file = reading.file
        if not file.outcome:
            file.outcome = "complete" if file.reads.total + file.readvs.total >= file.size else "partial"
        self._observer.closed(file)
        client, users = self._clients[key[1:]]
        if users > 1:
            self._clients[key[1:]] = (client, users - 1)
        else:
            del self._clients[key[1:]]
            self._observer.left(client.session)


def _described(asked: Asked, identity: Identity | None, session: int) -> Client:
    program, _, release = asked.program.partition(" ")[0].partition("/")
    client = Client(
        "https" if asked.tls else "http",
        asked.host,
        session,
        pid=-session,  # tells clients of one name apart, as a process number does
        app=program,
        release=release,
        info=asked.info,
        ipv6=":" in asked.host,
    )
    if identity is None:
        return client
    return replace(
        client,
        name=identity.subject,
        issuer=identity.issuer,
        subject=identity.subject,
        vo=identity.vo,
        groups=identity.groups,
        token=identity.jti,
    )
