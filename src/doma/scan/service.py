"""What one can ask of a scan service: plan, run, explain, cancel, statistics, list.

All methods are synchronous and safe to call from several threads; none may run on the event loop, because
files are read through it.

Source: scan.md §2 and §4.
"""

import dataclasses
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from doma.auth.gate import Gate
from doma.auth.model import Identity, Verb
from doma.core.config import Scan
from doma.core.errors import BadQuery, Cancelled, LimitExceeded, NotFound, PreconditionFailed, TooManyRequests
from doma.scan.catalog import Catalog, unified
from doma.scan.execute import Job, Stats
from doma.scan.groups import Group
from doma.scan.model import Query, parse
from doma.scan.opener import Counted, Opener
from doma.scan.plan import FileRef, Part, Planned, Ticket, can_skip, owner_of, seal, unseal
from doma.scan.source import Named, Source, open_source

log = logging.getLogger(__name__)

KEPT_OPEN = 8
"""Files that stay open between queries, with their footers."""
KEPT_FACTS = 1024
KEPT_STATS = 256
BUSY_HINT = 1.0


class Verifies(Protocol):
    """Turns a token into an identity (:class:`doma.auth.verifier.Verifier`)."""

    async def verify(self, token: str) -> Identity:
        """Raises InvalidToken, IssuerUnavailable."""


class Run:
    """A running scan part: an iterator of batches that must be closed; closing twice is harmless."""

    def __init__(
        self, job: Job, stats: Stats, batches: Iterator[pa.RecordBatch], done: Callable[[], None]
    ) -> None:
        self.schema = job.result
        self.compression = job.query.options.compression
        self.stats = stats
        self._batches = batches
        self._done: Callable[[], None] | None = done

    def __iter__(self) -> "Run":
        return self

    def __next__(self) -> pa.RecordBatch:
        if self._done is None:
            raise StopIteration
        try:
            return next(self._batches)
        except BaseException:  # a cancellation, too: undone, and raised on
            self.close()
            raise

    def close(self) -> None:
        """Stop reading, give back files and the place in the queue."""
        done, self._done = self._done, None
        if done is not None:
            try:
                cast("Any", self._batches).close()
            finally:
                done()

    def __del__(self) -> None:
        self.close()


@dataclasses.dataclass(slots=True)
class _Record:
    """A scan as others can ask about it."""

    owner: str
    stats: Stats = dataclasses.field(default_factory=Stats)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    running: int = 0


class ScanService:
    """Scans over the files of some endpoints.

    Args:
        openers: Endpoint name to its files.
        verifier: Of the tokens that callers bring.
        gates: Endpoint name to its policy; the same names.
        config: Limits.
        clock: Unix seconds.
        key: Signs tickets; services that share it take each other's. Empty: one for this process.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        verifier: Verifies,
        gates: Mapping[str, Gate],
        config: Scan,
        clock: Callable[[], float] = time.time,
        *,
        key: bytes = b"",
    ) -> None:
        self.verifier = verifier
        self.catalog = Catalog(openers, gates)
        self._config = config
        self._clock = clock
        self._key = key or secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._running = 0
        self._closed = False
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._open: OrderedDict[tuple[FileRef, str | None], tuple[Source, Counted]] = OrderedDict()
        self._facts: OrderedDict[tuple[FileRef, str | None], tuple[pa.Schema, int]] = OrderedDict()

    def plan(self, query: Query, identity: Identity | None) -> Planned:
        """Check a query against its data and sign a ticket for each file.

        Raises:
            BadQuery, UnknownColumn, NotFound, Unauthenticated, Forbidden, CorruptFile, LimitExceeded.
        """
        files = tuple(self.catalog.find(query.dataset, identity))
        scan = secrets.token_hex(8)
        owner, expires = owner_of(identity), self._clock() + self._config.ticket_life
        record = self._record(scan, owner)
        facts = [self._fact(ref, query.options.tree, record) for ref in files]
        job = self._job(query, files, [schema for schema, _ in facts])
        known = query.where is None and query.limit is None
        # A limit counts over all files in order: one part, so that one reader counts.
        ranges = [(0, len(files))] if query.limit is not None else [(n, n + 1) for n in range(len(files))]
        parts = []
        for start, stop in ranges:
            ticket = Ticket(scan, query.text, files, start, stop, owner, expires)
            rows = sum(rows for _, rows in facts[start:stop]) if known else -1
            parts.append(Part(seal(ticket, self._key), rows, tuple(f.name for f in files[start:stop])))
        return Planned(scan, job.result, tuple(parts), sum(rows for _, rows in facts) if known else -1)

    def run(self, ticket: bytes, identity: Identity | None) -> Run:
        """Begin the scan part of a ticket. Rights are checked again, with the caller's present token.

        Raises:
            BadRequest, PreconditionFailed, Forbidden: the ticket. TooManyRequests: all places are taken.
        """
        opened = unseal(ticket, self._key, owner_of(identity), self._clock())
        for ref in opened.files:
            self.catalog.gates[ref.endpoint].decide(identity, Verb.READ, ref.path)
        query = parse(opened.query)
        record = self._enter(opened)
        try:
            schemas = [self._fact(ref, query.options.tree, record)[0] for ref in opened.files]
            job = self._job(query, opened.files, schemas)
        except BaseException:  # a cancellation, too: undone, and raised on
            self._leave(record)
            raise
        batches = self._batches(job, opened, record)
        return Run(job, record.stats, batches, lambda: self._leave(record))

    def explain(self, query: Query, identity: Identity | None) -> dict[str, Any]:
        """What a scan would read: files, row groups, those that statistics rule out, columns, bytes."""
        files = self.catalog.find(query.dataset, identity)
        job = self._job(query, tuple(files), [self._fact(ref, query.options.tree, None)[0] for ref in files])
        wanted = [*job.cut_columns, *job.kept_columns]
        rows = []
        for ref in files:
            with self._source(ref, query.options.tree, None) as source:
                held = set(source.schema.names)
                groups = source.groups([c for c in wanted if c in held])
                skipped = [
                    g
                    for g in groups
                    if query.where is not None and can_skip(query.where, _bounds_of(source, g, held))
                ]
                there = [c for c in wanted if c in held]
                estimate = sum(source.size(g, there) for g in groups if g not in skipped)
                rows.append(
                    {
                        "file": ref.name,
                        "rows": source.rows,
                        "groups": len(groups),
                        "groups_skipped": len(skipped),
                        "bytes_in_memory_at_most": estimate,
                        "passthrough": False,
                    }
                )
        return {"files": rows, "cut_columns": job.cut_columns, "other_columns": job.kept_columns}

    def stats(self, scan: str, identity: Identity | None) -> dict[str, Any]:
        """What a scan of one's own has done. Raises NotFound."""
        record = self._own(scan, identity)
        return {**dataclasses.asdict(record.stats), "running": record.running}

    def cancel(self, scan: str, identity: Identity | None) -> None:
        """Stop a scan of one's own, within one row group. Idempotent. Raises NotFound."""
        self._own(scan, identity).stop.set()

    def datasets(self, identity: Identity | None) -> list[str]:
        """Names that the identity may scan, at the top of each endpoint."""
        return self.catalog.listed(identity)

    @property
    def running(self) -> int:
        """Scan parts under way."""
        return self._running

    def close(self) -> None:
        """Stop everything and close all files."""
        with self._lock:
            self._closed = True
            records = list(self._records.values())
            sources, self._open = list(self._open.values()), OrderedDict()
        for record in records:
            record.stop.set()
        for source, _ in sources:
            source.close()

    def _job(self, query: Query, files: tuple[FileRef, ...], schemas: list[pa.Schema]) -> Job:
        names = [ref.name for ref in files]
        try:
            return Job(query, unified(list(zip(names, schemas, strict=True))), self._config.memory)
        except BadQuery as e:
            # the query's text says where in it, this says of what
            e.message = f"{query.dataset}: {e.message}"
            raise

    def _batches(self, job: Job, ticket: Ticket, record: _Record) -> Iterator[pa.RecordBatch]:
        stats, options = record.stats, job.query.options
        left = job.query.limit
        sent = 0
        for ref in ticket.files[ticket.start : ticket.stop]:
            if left == 0:
                return
            with self._source(ref, options.tree, record) as source:
                stats.files += 1
                for batch in job.rows_of(source, ref.name, stats):
                    if record.stop.is_set():
                        raise Cancelled(f"{ref.name}: the scan was cancelled")
                    kept = batch if left is None else batch.slice(0, left)
                    left = None if left is None else left - kept.num_rows
                    sent += kept.nbytes
                    if options.max_bytes is not None and sent > options.max_bytes:
                        raise LimitExceeded(
                            f"{ref.name}: the answer exceeds max_bytes ({options.max_bytes}); ask for less"
                        )
                    stats.rows_sent += kept.num_rows
                    stats.batches += 1
                    yield kept
                    if left == 0:
                        return

    def _fact(self, ref: FileRef, tree: str | None, record: _Record | None) -> tuple[pa.Schema, int]:
        """Schema and rows of a file version, kept."""
        with self._lock:
            found = self._facts.get((ref, tree))
            if found is not None:
                self._facts.move_to_end((ref, tree))
                return found
        with self._source(ref, tree, record) as source:
            found = source.schema, source.rows
        with self._lock:
            self._facts[ref, tree] = found
            while len(self._facts) > KEPT_FACTS:
                self._facts.popitem(last=False)
        return found

    @contextmanager
    def _source(self, ref: FileRef, tree: str | None, record: _Record | None) -> Iterator[Source]:
        """A file, from those kept open if it is the same version; kept open again afterwards."""

        def count(size: int) -> None:
            if record is not None:
                record.stats.bytes_read += size
                if record.stop.is_set():
                    raise Cancelled(f"{ref.name}: the scan was cancelled")

        opener = self.catalog.openers[ref.endpoint]
        with self._lock:
            kept = self._open.pop((ref, tree), None)
        if kept is not None and not _current(opener, ref, kept[0]):
            kept = None
        source, meter = kept or _opened(opener, ref, tree, count)
        meter.count = count
        try:
            yield source
        except BaseException:  # a cancellation, too: undone, and raised on
            source.close()
            raise
        meter.count = _unmetered
        self._put_back((ref, tree), source, meter)

    def _put_back(self, key: tuple[FileRef, str | None], source: Source, meter: Counted) -> None:
        gone = [source]
        with self._lock:
            if key not in self._open and not self._closed:
                self._open[key] = source, meter
                gone.clear()
            while len(self._open) > KEPT_OPEN:
                gone.append(self._open.popitem(last=False)[1][0])
        for old in gone:
            old.close()

    def _record(self, scan: str, owner: str) -> _Record:
        with self._lock:
            record = self._records.setdefault(scan, _Record(owner))
            self._records.move_to_end(scan)
            idle = [name for name, r in self._records.items() if not r.running and name != scan]
            for name in idle[: max(len(self._records) - KEPT_STATS, 0)]:
                del self._records[name]
        return record

    def _enter(self, ticket: Ticket) -> _Record:
        record = self._record(ticket.scan, ticket.owner)
        with self._lock:
            if self._running >= self._config.concurrency:
                raise TooManyRequests(
                    f"scan: {self._running} scans are running, the limit is {self._config.concurrency};"
                    f" try again in {BUSY_HINT:g} s",
                    retry_after=BUSY_HINT,
                )
            self._running += 1
            record.running += 1
            if record.running == 1:
                record.stop.clear()
        return record

    def _leave(self, record: _Record) -> None:
        with self._lock:
            self._running -= 1
            record.running -= 1
            idle = not self._running
        if idle:  # Arrow's pool keeps what a scan needed; the server lives longer
            pa.default_memory_pool().release_unused()

    def _own(self, scan: str, identity: Identity | None) -> _Record:
        with self._lock:
            record = self._records.get(scan)
        if record is None or record.owner != owner_of(identity):
            raise NotFound(f"scan {scan[:40]!r}: no scan of yours has this number")
        return record


def _opened(
    opener: Opener, ref: FileRef, tree: str | None, count: Callable[[int], None]
) -> tuple[Source, Counted]:
    """This version of a file as a source, with the meter of its bytes."""
    file, stat = opener.open(ref.path)
    meter = Counted(file, count)
    if stat.version != ref.version:
        meter.close()
        raise PreconditionFailed(f"{ref.name}: was replaced since the scan was planned; plan it again")
    try:
        return open_source(Named(ref.name, cast("BinaryIO", meter), stat.size), tree), meter
    except BaseException:  # a cancellation, too: undone, and raised on
        meter.close()
        raise


def _current(opener: Opener, ref: FileRef, source: Source) -> bool:
    """Whether a source that was kept open is still the file of that name; closed if not."""
    try:
        same = opener.stat(ref.path).version == ref.version
    except BaseException:  # a cancellation, too: undone, and raised on
        source.close()
        raise
    if not same:
        source.close()
    return same


def _bounds_of(source: Source, group: Group, held: set[str]) -> Callable[[str], tuple[int, int] | None]:
    return lambda column: source.bounds(group, column) if column in held else None


def _unmetered(size: int) -> None:
    """Counts nothing: nobody scans."""
