"""What the status page shows, gathered so that nothing slow or broken holds it up."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, TypedDict

from sqlalchemy import Connection, select

from doma import __version__
from doma.cache.store import CacheStore
from doma.columns.model import Overview as Columns
from doma.core.errors import DomaError
from doma.core.url import redacted
from doma.db.engine import Database
from doma.db.tables import events
from doma.doors.endpoint import Site
from doma.monitor.metrics import Metrics
from doma.store.file import FileStore
from doma.store.http import HttpStore
from doma.store.memory import MemoryStore
from doma.store.protocol import CanSpace, Space, Store

EVENTS = 20
PATIENCE = 0.2
"""Seconds that a store may take to tell its space; later its answer waits for the next look."""
WINDOW = 30.0
"""Seconds over which rates are taken."""

_COUNTED = {"doma_received_bytes_total": "received", "doma_sent_bytes_total": "sent"}


class Place(TypedDict):
    """One endpoint."""

    name: str
    store: str
    """Its kind of store in words, without credentials."""
    writable: bool
    doors: Mapping[str, str]
    """``https``, ``flight`` … to the address there."""
    space: Mapping[str, int] | None
    """``used`` and ``available`` bytes."""


class Snapshot(TypedDict):
    """The state of the system at one moment, as the page and its JSON have it."""

    version: str
    started: float
    """Unix seconds, as ``at``."""
    at: float
    url: str
    endpoints: list[Place]
    services: Mapping[str, str]
    """Name to URL."""
    traffic: Mapping[str, Mapping[str, float | None]]
    """Endpoint (empty: services) to requests, refused, failed, received, sent, and rates per second."""
    cache: Mapping[str, Mapping[str, Any]]
    """Endpoint to :class:`doma.cache.stats.Stats`."""
    columns: Mapping[str, Any] | None
    """:class:`doma.columns.model.Overview`; None without column delivery."""
    events: list[dict[str, Any]]
    """The youngest ones, youngest first."""
    trouble: str
    """What could not be asked, and why; empty: nothing."""


class Overview:
    """Makes snapshots.

    Args:
        site: The endpoints.
        url: Of this server.
        services: Name to URL.
        metrics: Where requests are counted.
        db: Where the events are.
        doors: Gives the addresses of an endpoint.
        columns: Gives the column requests; None: there is no column delivery.
        clock: Unix seconds.
        ticks: Seconds that only grow.
    """

    def __init__(
        self,
        site: Site,
        url: str,
        services: Mapping[str, str],
        metrics: Metrics,
        db: Database,
        *,
        doors: Callable[[str], Mapping[str, str]] = lambda name: {},
        columns: Callable[[], Awaitable[Columns]] | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._site, self._url, self._services, self._metrics, self._db = site, url, services, metrics, db
        self._doors, self._columns, self._clock, self._ticks = doors, columns, clock, ticks
        self._started = clock()
        self._asked: dict[str, asyncio.Future[Space]] = {}
        self._space: dict[str, dict[str, int] | None] = {}
        self._past: deque[tuple[float, dict[str, dict[str, float]]]] = deque()

    async def now(self) -> Snapshot:
        """The present state; what is slow or broken is left out."""
        await self._look_at_space()
        stores = {name: endpoint.store for name, endpoint in self._site.endpoints.items()}
        columns: Columns | None = None
        happened: list[dict[str, Any]] = []
        trouble = ""
        try:
            happened = await self._db.look(_youngest)
            columns = await self._columns() if self._columns is not None else None
        except DomaError as e:
            trouble = e.message
        return {
            "version": __version__,
            "started": self._started,
            "at": self._clock(),
            "url": self._url,
            "endpoints": [
                {
                    "name": name,
                    "store": _words(store),
                    "writable": self._site.endpoints[name].writable,
                    "doors": self._doors(name),
                    "space": self._space.get(name),
                }
                for name, store in stores.items()
            ],
            "services": self._services,
            "traffic": self._traffic(),
            "cache": {n: asdict(s.stats()) for n, s in stores.items() if isinstance(s, CacheStore)},
            "columns": None if columns is None else asdict(columns),
            "events": happened,
            "trouble": trouble,
        }

    async def _look_at_space(self) -> None:
        """Ask every store that is not still busy with the last question; a stuck disk gets just one."""
        for name, endpoint in self._site.endpoints.items():
            if name not in self._asked and isinstance(endpoint.store, CanSpace):
                self._asked[name] = asyncio.ensure_future(endpoint.store.space())
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=PATIENCE)
        for name, answer in tuple(self._asked.items()):
            if answer.done() and self._asked.pop(name, None) is not None:
                failed = answer.cancelled() or isinstance(answer.exception(), DomaError)
                self._space[name] = None if failed else asdict(answer.result())

    def _traffic(self) -> dict[str, dict[str, float | None]]:
        now, counts = self._ticks(), self._counts()
        while self._past and self._past[0][0] < now - WINDOW:
            self._past.popleft()
        since, before = self._past[0] if self._past else (now, counts)
        if not self._past or now - self._past[-1][0] >= 1:
            self._past.append((now, counts))

        def rate(name: str, *what: str) -> float | None:
            return (
                sum(counts[name][w] - before[name][w] for w in what) / (now - since) if now > since else None
            )

        return {
            name: {
                **numbers,
                "requests_per_second": rate(name, "requests"),
                "bytes_per_second": rate(name, "received", "sent"),
            }
            for name, numbers in counts.items()
        }

    def _counts(self) -> dict[str, dict[str, float]]:
        blank = dict.fromkeys(("requests", "refused", "failed", "received", "sent"), 0.0)
        counts = {name: dict(blank) for name in (*self._site.endpoints, "")}
        for sample in (s for family in self._metrics.collect() for s in family.samples):
            row = counts.get(sample.labels.get("endpoint", ""), blank)
            if sample.name == "doma_requests_total":
                row["requests"] += sample.value
                # 499 is a client that went away: neither side's mistake.
                status = int(sample.labels["status"])
                row["refused"] += sample.value if 400 <= status < 499 else 0
                row["failed"] += sample.value if status >= 500 else 0
            elif sample.name in _COUNTED:
                row[_COUNTED[sample.name]] += sample.value
        return counts


def _words(store: Store) -> str:
    match store:
        case CacheStore():
            return f"cache of {redacted(store.place('/').origin)}"
        case FileStore():
            return "folder"
        case MemoryStore():
            return "memory"
        case HttpStore():
            return "https server"
        case _:
            return type(store).__name__


def _youngest(tx: Connection) -> list[dict[str, Any]]:
    rows = tx.execute(select(events).order_by(events.c.id.desc()).limit(EVENTS))
    return [dict(row) for row in rows.mappings()]
