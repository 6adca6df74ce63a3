"""What was done with one open file: filled by the doors and the cache, told by the monitoring streams.

One record for each file opened over root://, and one for each client and object over HTTP, which ends after
30 s without a request.

Source: cache contract §10; monitoring contract §3 and §5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from operator import mul
from typing import Protocol


@dataclass(slots=True)
class Sizes:
    """Sizes of one kind of operation, and what the f-stream wants of them."""

    count: int = 0
    total: int = 0
    """Bytes."""
    least: float = inf
    most: int = 0
    squares: float = 0.0
    """Sum of the squares of the sizes."""

    def add(self, size: int) -> None:
        """Count one operation of so many bytes."""
        self.count += 1
        self.total += size
        self.squares += float(size) * size
        if size < self.least:
            self.least = size
        if size > self.most:
            self.most = size

    def extend(self, sizes: Sequence[int]) -> None:
        """Count several operations, at least one."""
        self.count += len(sizes)
        self.total += sum(sizes)
        self.squares += float(sum(map(mul, sizes, sizes)))
        self.least = min(self.least, *sizes)
        self.most = max(self.most, *sizes)


@dataclass(slots=True)
class Cached:
    """Where the bytes of one open file came from; the cache fills it."""

    hit: int = 0
    miss: int = 0
    bypass: int = 0
    stored: int = 0
    """Bytes written to the cache's disk."""
    prefetch: int = 0
    repair: int = 0
    bad_pages: int = 0
    retries: int = 0
    wait_origin: float = 0.0
    """Seconds."""
    held: int = 0
    """Pages of 4 KiB that the cache has of the file at the close."""
    accesses: int = 1
    """How often it was opened since the cache has it."""
    remotes: list[str] = field(default_factory=list)
    """``host:port`` of the origins that gave bytes."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who opened it and how; holds no secret."""

    protocol: str
    """``xroot``, ``https`` or ``http``."""
    host: str
    session: int
    """A number of this server's own for the connection or login."""
    name: str = ""
    """Local user name that the client states."""
    pid: int = 0
    app: str = ""
    release: str = ""
    info: str = ""
    issuer: str = ""
    subject: str = ""
    vo: str = ""
    groups: tuple[str, ...] = ()
    ipv6: bool = False
    token: str = ""
    """The token's ``jti``."""


@dataclass(slots=True)
class Opened:
    """One open file."""

    client: Client
    path: str
    """With the endpoint's name in front: ``/cache/a/b``."""
    size: int
    """Bytes, at the open."""
    writing: bool
    since: float
    """Unix seconds."""
    reads: Sizes = field(default_factory=Sizes)
    """read and pgread, and single ranges over HTTP."""
    readvs: Sizes = field(default_factory=Sizes)
    """readv and multi-range: bytes of each request."""
    segments: Sizes = field(default_factory=Sizes)
    """Elements of each readv."""
    writes: Sizes = field(default_factory=Sizes)
    cached: Cached | None = None
    """Of a caching endpoint."""
    first_byte: float = 0.0
    """Seconds from the open to the first byte answered."""
    outcome: str = ""
    """``complete``, ``partial`` or ``error:<code>``, once closed."""

    @property
    def lfn(self) -> str:
        """The path within its endpoint, which collectors sort files by: ``/store/…``, ``/user/…``."""
        return "/" + self.path[1:].partition("/")[2]


class Observer(Protocol):
    """Who is told of open files; on the event loop, in microseconds, and never raises.

    ``opened`` comes once for each :class:`Opened`, ``closed`` once after it. The numbers in between are read
    from the record itself.
    """

    def opened(self, file: Opened) -> None: ...

    def closed(self, file: Opened, *, forced: bool = False) -> None:
        """``forced``: the connection was lost while it was open."""

    def left(self, session: int) -> None:
        """A client's connection has ended; all its files were closed."""
