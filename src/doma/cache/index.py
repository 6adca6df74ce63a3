"""What lies in a cache folder, as a table: who goes first, how much is below a path, what is pinned.

The records on disk are the truth about objects; this file beside them saves reading a million of them. It is
written once a second, so a killed process leaves it a moment behind: after such an end the folder is walked
once in the background (``Keeper``). A damaged file is made anew. Pins live here and nowhere else.

Source: cache contract §7 (purge, pins, holdings), C8.
"""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from doma.cache.shelf import remove
from doma.core.errors import StorageUnavailable

log = logging.getLogger(__name__)

_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
  key TEXT PRIMARY KEY, path TEXT NOT NULL, vo TEXT NOT NULL, size INT NOT NULL, held INT NOT NULL,
  used INT NOT NULL, accessed REAL NOT NULL, expires REAL NOT NULL, version TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_access ON objects (accessed);
CREATE INDEX IF NOT EXISTS by_expiry ON objects (expires);
CREATE INDEX IF NOT EXISTS by_vo ON objects (vo, accessed);
CREATE INDEX IF NOT EXISTS by_path ON objects (path);
CREATE TABLE IF NOT EXISTS pins (
  path TEXT, owner TEXT, key TEXT NOT NULL, until REAL NOT NULL, size INT NOT NULL,
  PRIMARY KEY (path, owner)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pins_by_key ON pins (key, until);
CREATE INDEX IF NOT EXISTS pins_by_end ON pins (until);
COMMIT;
"""
_FIELDS = "key, path, vo, size, held, used, accessed, expires, version"
_BATCH = 500
"""Rows that are read under the lock at one time."""
_SPARE = 256
"""Pages (of 4 KiB) without use that the file may have."""
_SHRINK = 2048
"""Pages that are given back at one time, in some 10 ms."""
_JOURNAL = 512 << 10
"""Bytes of the journal after which it is written back, and to which it is cut when it was longer."""


class Row(NamedTuple):
    """One object."""

    key: str
    path: str
    """In the cache's name space."""
    vo: str
    """Whose request brought it; empty: nobody's known."""
    size: int
    held: int
    """Bytes of its pages that are here."""
    used: int
    """Allocated bytes of record and pages."""
    accessed: float
    """Unix seconds; 0: first in line for the purge."""
    expires: float
    """When it has to be validated, Unix seconds."""
    version: str


@dataclass(frozen=True, slots=True)
class Pin:
    """A file that stays until an instant."""

    path: str
    owner: str
    """``issuer#subject`` of who pinned it."""
    until: float
    """Unix seconds."""
    size: int
    """Bytes of the file when it was pinned."""


@dataclass(slots=True)
class _Pinned:
    """Sums over all pins, kept so that one more pin does not have to count those there are."""

    owners: dict[str, tuple[int, int]]
    """Pins and bytes of each owner."""
    everybodys: int
    """Bytes of what is pinned, a file of several owners once."""

    def add(self, owner: str, pins: int, size: int) -> None:
        """Count an owner's pins, or with minus signs count them no more."""
        before = self.owners.get(owner, (0, 0))
        self.owners[owner] = before[0] + pins, before[1] + size
        if not self.owners[owner][0]:
            del self.owners[owner]


class Index:
    """The table of one cache folder; its methods block for a moment: call them in threads.

    Args:
        path: The file; made if it is missing or damaged.

    Raises:
        StorageUnavailable: the disk is full or cannot be written; also by what a command has written down.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._pinned: _Pinned | None = None
        """None: to be counted."""
        self.clean = False
        """Whether it knows everything; else the disk has to be looked at."""
        try:
            self._db = self._open()
            self.clean = self._meta("clean") == "1"
            self._set("clean", "0")
        except sqlite3.OperationalError as e:
            if not path.is_dir():  # the disk is full or may not be written: no reason to forget pins
                raise StorageUnavailable(f"{path}: cannot be used: {e}; make room or repair it") from e
            self.remake()
        except sqlite3.DatabaseError:
            self.remake()

    def remake(self) -> None:
        """Begin anew with nothing, because the file is damaged."""
        log.error("%s: is damaged; it is made anew, pins are lost", self._path)
        with self._lock:
            if hasattr(self, "_db"):
                self._db.close()
            for suffix in ("", "-wal", "-shm"):
                remove(self._path.with_name(self._path.name + suffix))
            self._db, self._pinned = self._open(), None

    def close(self, *, clean: bool) -> None:
        """Close the file; ``clean`` says that it knows everything. Idempotent."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            if clean:
                self._set("clean", "1")
            self._db.close()

    def total(self) -> int:
        """Allocated bytes of all objects."""
        return int(self._value("SELECT coalesce(sum(used), 0) FROM objects"))

    def count(self) -> int:
        """How many objects there are."""
        return int(self._value("SELECT count(*) FROM objects"))

    def put(self, rows: Iterable[Row], gone: Iterable[str] = ()) -> None:
        """Write down objects, and that others have gone."""
        with self._lock, self._db:
            self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?,?,?,?,?)", rows)
            self._db.executemany("DELETE FROM objects WHERE key = ?", ((key,) for key in gone))

    def shrink(self) -> None:
        """Give some of what rows left behind back to the disk, if it is much."""
        with self._lock:
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            if free > max(_SPARE, pages // 4):
                self._db.executescript(
                    f"PRAGMA incremental_vacuum({_SHRINK}); PRAGMA wal_checkpoint(TRUNCATE)"
                )

    def first(self, keys: Iterable[str]) -> None:
        """Put objects first in line for the purge."""
        with _answered(self._path), self._lock, self._db:
            self._db.executemany("UPDATE objects SET accessed = 0 WHERE key = ?", ((key,) for key in keys))

    def after(self, key: str) -> Row | None:
        """The object behind a key in the order of keys; None: that was the last."""
        return next(self._rows("key > ? ORDER BY key LIMIT 1", (key,)), None)

    def note(self, name: str, value: str) -> None:
        """Keep a short text under a name."""
        self._set(f"note {name}", value)

    def noted(self, name: str) -> str:
        """What was kept under a name; empty: nothing."""
        with self._lock:
            return self._meta(f"note {name}")

    def used_below(self, top: str) -> int:
        """Allocated bytes of the objects at and below a path."""
        where, values = _below(top)
        return int(self._value(f"SELECT coalesce(sum(used), 0) FROM objects WHERE {where}", values))  # noqa: S608

    def used_by(self, vo: str) -> int:
        """Allocated bytes of what a VO's requests brought."""
        return int(self._value("SELECT coalesce(sum(used), 0) FROM objects WHERE vo = ?", (vo,)))

    def first_in_line(self) -> Iterator[Row]:
        """What was given up by command."""
        return self._rows("accessed = 0", ())

    def expired(self, now: float) -> Iterator[Row]:
        """What has to be validated, the longest overdue first."""
        return self._rows("expires < ? ORDER BY expires", (now,))

    def oldest(self, before: float | None = None) -> Iterator[Row]:
        """Everything, the longest unread first; ``before``: only what was last read before that instant."""
        if before is None:
            return self._rows("accessed > 0 ORDER BY accessed", ())
        return self._rows("accessed > 0 AND accessed < ? ORDER BY accessed", (before,))

    def oldest_below(self, top: str) -> Iterator[Row]:
        """Everything at and below a path, the longest unread first."""
        where, values = _below(top)
        return self._rows(f"{where} ORDER BY accessed", values)

    def oldest_of(self, vo: str) -> Iterator[Row]:
        """Everything that a VO's requests brought, the longest unread first."""
        return self._rows("vo = ? ORDER BY accessed", (vo,))

    def below(self, top: str, after: str = "", limit: int = -1) -> list[Row]:
        """Objects at and below a path in the order of their names, those behind ``after``."""
        where, values = _below(top)
        return list(self._rows(f"{where} AND path > ? ORDER BY path LIMIT ?", (*values, after, limit)))

    def keys(self, prefix: str) -> dict[str, int]:
        """Used bytes by key of the objects whose key begins so."""
        with self._lock:
            found = self._db.execute(
                "SELECT key, used FROM objects WHERE key >= ? AND key < ?", (prefix, prefix + "g")
            )
            return dict(found.fetchall())

    # Pins.

    def pin(self, pin: Pin, key: str) -> None:
        """Pin, or change until when."""
        with self._pins_change() as sums:
            self._drop(sums, "path = ? AND owner = ?", (pin.path, pin.owner))
            sums.everybodys += max(0, pin.size - self._largest(key))
            sums.add(pin.owner, 1, pin.size)
            row = (pin.path, pin.owner, key, pin.until, pin.size)
            self._db.execute("INSERT INTO pins VALUES (?, ?, ?, ?, ?)", row)

    def unpin(self, path: str, owner: str | None) -> int:
        """Take one owner's pin of a path away, or everybody's; how many there were."""
        with self._pins_change() as sums:
            return self._drop(sums, "path = ? AND (owner = ? OR ? IS NULL)", (path, owner, owner))

    def pins(
        self,
        now: float,
        owner: str | None = None,
        top: str = "/",
        after: str = "",
        limit: int | None = None,
    ) -> list[Pin]:
        """Pins that count, by path; of one owner, or of all."""
        where, values = _below(top)
        sql = (
            f"SELECT path, owner, until, size FROM pins WHERE {where}"  # noqa: S608
            " AND until > ? AND (owner = ? OR ? IS NULL) AND path > ? ORDER BY 1, 2 LIMIT ?"
        )
        most = -1 if limit is None else limit
        with self._lock:
            return [Pin(*row) for row in self._db.execute(sql, (*values, now, owner, owner, after, most))]

    def pinned_bytes(self, now: float, owner: str, but: str) -> tuple[int, int, int]:
        """How many pins an owner has, the bytes of these and of everybody's; without one object.

        What has expired is taken away.
        """
        with self._pins_change() as sums:
            self._drop(sums, "until <= ?", (now,))
            pins, size = self._db.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM pins WHERE key = ? AND +owner = ?", (but, owner)
            ).fetchone()
            count, mine = sums.owners.get(owner, (0, 0))
            return count - pins, mine - size, sums.everybodys - self._largest(but)

    def pinned(self, now: float) -> set[str]:
        """Keys of what must stay."""
        with self._lock:
            return {key for (key,) in self._db.execute("SELECT key FROM pins WHERE until > ?", (now,))}

    def is_pinned(self, key: str, now: float) -> bool:
        """Whether an object must stay."""
        sql = "SELECT count(*) FROM pins WHERE key = ? AND until > ?"
        return bool(self._value(sql, (key, now)))

    @contextlib.contextmanager
    def _pins_change(self) -> Iterator[_Pinned]:
        """One transaction on the pins, with the sums to keep; what fails has them counted anew."""
        with _answered(self._path), self._lock:
            with self._db:
                sums, self._pinned = self._pinned or self._counted(), None
                yield sums
            self._pinned = sums

    def _drop(self, sums: _Pinned, where: str, values: Sequence[object]) -> int:
        """Take pins away, from the sums as well; how many there were."""
        gone = self._db.execute(f"SELECT key, owner, size FROM pins WHERE {where}", values).fetchall()  # noqa: S608
        largest = {key: self._largest(key) for key, _, _ in gone}
        self._db.execute(f"DELETE FROM pins WHERE {where}", values)  # noqa: S608
        for _, owner, size in gone:
            sums.add(owner, -1, -size)
        sums.everybodys -= sum(before - self._largest(key) for key, before in largest.items())
        return len(gone)

    def _counted(self) -> _Pinned:
        found = self._db.execute("SELECT owner, count(*), sum(size) FROM pins GROUP BY owner")
        owners = {owner: (count, size) for owner, count, size in found}
        sql = "SELECT coalesce(sum(s), 0) FROM (SELECT max(size) s FROM pins GROUP BY key)"
        return _Pinned(owners, int(self._value(sql)))

    def _largest(self, key: str) -> int:
        """Bytes that an object is pinned with; 0: it is not."""
        return int(self._value("SELECT coalesce(max(size), 0) FROM pins WHERE key = ?", (key,)))

    def _rows(self, where: str, values: Sequence[object]) -> Iterator[Row]:
        with self._lock:
            found = self._db.cursor().execute(f"SELECT {_FIELDS} FROM objects WHERE {where}", values)  # noqa: S608
        while True:
            with self._lock:
                rows = found.fetchmany(_BATCH)
            if not rows:
                return
            yield from map(Row._make, rows)

    def _value(self, sql: str, values: Sequence[object] = ()) -> int | str:
        with self._lock:
            (value,) = self._db.execute(sql, values).fetchone()
        found: int | str = value
        return found

    def _meta(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def _set(self, name: str, value: str) -> None:
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False, timeout=10)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA journal_size_limit = {_JOURNAL}")
            db.execute(f"PRAGMA wal_autocheckpoint = {_JOURNAL // 4096}")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db


@contextlib.contextmanager
def _answered(path: Path) -> Iterator[None]:
    """A refusal of the disk as an error for who gave the command."""
    try:
        yield
    except sqlite3.OperationalError as e:
        raise StorageUnavailable(f"{path}: cannot be written: {e}; make room and try again") from e


def _below(top: str) -> tuple[str, tuple[str, ...]]:
    """At and below a path by whole components, as a condition that the index on paths serves."""
    clean = top.rstrip("/")
    if not clean:
        return "1", ()
    return "(path = ? OR (path > ? AND path < ?))", (clean, clean + "/", clean + "0")
