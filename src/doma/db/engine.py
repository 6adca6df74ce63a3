"""The database: plain transaction functions, run whole in a worker thread.

A transaction is a function ``work(tx) -> T`` over a SQLAlchemy Core connection. It may run more than once
(a serialization failure or a busy SQLite file is retried), so it changes nothing but rows. SQLite has one
writer thread and a few read-only connections that do not queue behind it; PostgreSQL has a pool.

Refused: an async driver (2-5 times the CPU) and an ORM (design.md §4).
"""

import asyncio
import json
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from doma.core.errors import (
    ConfigError,
    Conflict,
    DomaError,
    MissingExtra,
    ServiceUnavailable,
    StorageFull,
    StorageUnavailable,
)

T = TypeVar("T")

BUSY = 30.0
"""Seconds that a SQLite writer waits for another process, and anybody for a pooled connection."""
ATTEMPTS = 6
READERS = 4
POSTGRES_THREADS = 8

_SERIALIZATION = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available


class Database:
    """SQLite or PostgreSQL behind two doors: :meth:`run` writes, :meth:`look` only reads.

    Args:
        url: ``sqlite:////absolute/file.db`` or ``postgresql+psycopg://user@host/name``.

    Raises:
        ConfigError: the URL is not one of these.
        MissingExtra: PostgreSQL without its driver.
    """

    def __init__(self, url: str) -> None:
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.place = self.url.database if self.is_sqlite else self.url.render_as_string(hide_password=True)
        self.after_commit: list[Callable[[], None]] = []
        """Called after write transactions, in the thread that committed; must neither wait nor raise."""
        if self.is_sqlite:
            self._write = _sqlite(self.url, read_only=False)
            self._read = _sqlite(self.url, read_only=True)
            writers, readers = 1, READERS
        else:
            self._write = self._read = _postgres(self.url)
            writers = readers = POSTGRES_THREADS
        self._writers = ThreadPoolExecutor(writers, "db-write")
        self._readers = ThreadPoolExecutor(readers, "db-read")

    def run_sync(self, work: Callable[[Connection], T], *, tell: bool = True) -> T:
        """Run one write transaction in this thread: committed as a whole, or not at all.

        Args:
            work: The transaction.
            tell: Call :attr:`after_commit`; not needed where the caller tells whom it concerns.

        Raises:
            Conflict: a constraint does not hold.
            StorageUnavailable, StorageFull, ConfigError: the database cannot be used; the message says why.
        """
        result = self._repeated(partial(self._transaction, work))
        for hook in tuple(self.after_commit) if tell else ():
            hook()
        return result

    def look_sync(self, work: Callable[[Connection], T]) -> T:
        """Run one read-only transaction in this thread; it sees one moment of the database."""
        return self._repeated(partial(self._glance, work))

    async def run(self, work: Callable[[Connection], T], *, tell: bool = True) -> T:
        """:meth:`run_sync` in the writer's thread. Cancelling the caller does not undo the transaction."""
        return await self._hop(self._writers, partial(self.run_sync, work, tell=tell))

    async def look(self, work: Callable[[Connection], T]) -> T:
        """:meth:`look_sync` in a reader's thread."""
        return await self._hop(self._readers, partial(self.look_sync, work))

    def migrate(self) -> None:
        """Bring the tables to the newest revision; see :func:`doma.db.schema.upgrade`."""
        from doma.db import schema  # Alembic is needed once, at start

        self._repeated(partial(self._transaction, schema.upgrade))

    def close(self) -> None:
        """Wait for running transactions and close every connection. Idempotent."""
        self._writers.shutdown()
        self._readers.shutdown()
        self._write.dispose()
        self._read.dispose()

    async def _hop(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(pool, call)
        except RuntimeError as e:  # the pool is shut down
            raise ServiceUnavailable(f"{self.place}: the database is closed") from e
        return await future

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        with self._write.begin() as tx:
            return work(tx)

    def _glance(self, work: Callable[[Connection], T]) -> T:
        with self._read.connect() as tx:
            if not self.is_sqlite:
                tx.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            return work(tx)

    def _repeated(self, call: Callable[[], T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return call()
            except PoolTimeout as e:
                raise StorageUnavailable(f"{self.place}: every connection is busy; try again later") from e
            except DBAPIError as e:
                if attempt == ATTEMPTS or not _transient(e):
                    raise self._translated(e) from e
            time.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311 - jitter is no secret

    def _translated(self, e: DBAPIError) -> DomaError:
        cause = e.orig
        text = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        if isinstance(e, IntegrityError):
            return Conflict(f"{self.place}: {text}", constraint=True)
        code = _sqlite_code(cause)
        if code == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == "53100":
            return StorageFull(f"{self.place}: no space left for the database; free some and try again")
        if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            return ConfigError(f"{self.place}: {text}; restore the file from a copy or name another one")
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
            return ConfigError(f"{self.place}: {text}; its directory must exist and be writable")
        return StorageUnavailable(f"{self.place}: the database does not answer: {text}")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as e:
        raise ConfigError(
            "database.url: this is no database URL; use sqlite:////dir/file.db or postgresql+psycopg://…"
        ) from e
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"database.url: {backend!r} is not supported; use sqlite or postgresql+psycopg")
    if not parsed.database or parsed.database.startswith((":memory:", "file:")):
        raise ConfigError(
            "database.url: SQLite needs a file that several connections share: sqlite:////dir/file.db"
        )
    return parsed.set(drivername="sqlite+pysqlite")


_dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))


def _sqlite(url: URL, *, read_only: bool) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=READERS if read_only else 1,
        max_overflow=0,
        pool_timeout=BUSY,
        connect_args={"timeout": BUSY, "check_same_thread": False},
        json_serializer=_dumps,
    )

    def opened(connection: sqlite3.Connection, record: Any) -> None:
        # We say BEGIN ourselves: the driver's own habit begins too late, after the first read.
        connection.isolation_level = None
        # NORMAL survives a killed process; only a power cut may lose the last commits, never tear them.
        rest = "query_only=ON" if read_only else "synchronous=NORMAL"
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", rest):
            connection.execute(f"PRAGMA {pragma}").close()

    def begun(connection: Connection) -> None:
        # IMMEDIATE: a writer that begins by reading could otherwise not be promoted and would fail.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", opened)
    event.listen(engine, "begin", begun)
    return engine


def _postgres(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            pool_size=POSTGRES_THREADS,
            max_overflow=POSTGRES_THREADS,
            pool_timeout=BUSY,
            pool_pre_ping=True,
            json_serializer=_dumps,
            connect_args={} if "connect_timeout" in url.query else {"connect_timeout": 10},
        )
    except (ModuleNotFoundError, NoSuchModuleError) as e:
        raise MissingExtra(
            "database.url: PostgreSQL needs its driver; install the extra: pip install 'doma-hep[postgres]'"
        ) from e


def _sqlite_code(cause: BaseException | None) -> int | None:
    """The primary result code of SQLite (the extended ones carry it in the low byte)."""
    code = getattr(cause, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _transient(e: DBAPIError) -> bool:
    if getattr(e.orig, "sqlstate", None) in _SERIALIZATION:
        return True
    return _sqlite_code(e.orig) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
