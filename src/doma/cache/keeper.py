"""Keeps the index of a cache folder true: writes what changed once a second, looks at the disk when in doubt.

A thread of its own, because both wait for the disk. After an end without warning every folder is looked
through once, at leisure; a folder in which a damaged record was met is looked through again.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from doma.cache.entry import Entry
from doma.cache.extents import PAGE
from doma.cache.freshness import fresh_until, parse
from doma.cache.index import Index, Row
from doma.cache.record import Record
from doma.cache.shelf import Item, Shelf
from doma.cache.usage import Usage
from doma.core.errors import StorageUnavailable

log = logging.getLogger(__name__)

_EVERY = 1.0
"""Seconds between two writes."""
_REST = 0.002
"""Seconds of rest after each folder of a walk, there are at most 256: others want the interpreter too."""


class Keeper:
    """The index and what it does not know yet.

    Args:
        shelf: The folder.
        usage: Told what objects take by the index, and on disk.
        shown: Origin and path there to the path in the cache.
        loaded: Whether an object is in memory: then only who wrote it knows what it takes.
    """

    def __init__(
        self,
        shelf: Shelf,
        usage: Usage,
        shown: Callable[[str, str], str],
        loaded: Callable[[str], bool],
    ) -> None:
        self.index = Index(shelf.root / "index.db")
        self._shelf = shelf
        self._shown = shown
        self._usage = usage
        self._loaded = loaded
        self._pending: dict[str, Entry | None] = {}
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._counted = threading.Event()
        self._damaged = False
        self.looked = threading.Event()
        """Set once the index is known to agree with the disk."""
        self._thread = threading.Thread(target=self._run, name="cache-index", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Write down everything and end; blocks. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self.flush()
        except sqlite3.Error as e:
            log.warning("%s: cannot be written: %s", self._shelf.root / "index.db", e)
            self.index.close(clean=False)
        else:
            self.index.close(clean=True)

    def note(self, entry: Entry) -> None:
        """Something about an object changed."""
        self._pending[entry.record.key] = entry

    def gone(self, key: str) -> None:
        """An object is no longer here."""
        self._pending[key] = None

    def flush(self) -> None:
        """Write down what changed; blocks.

        Raises:
            sqlite3.Error: the disk is full or broken; it is tried again at the next.
        """
        with self._writing:
            if not self._pending:
                return
            pending, self._pending = self._pending, {}
            try:
                gone = [key for key, entry in pending.items() if entry is None]
                self.index.put([_row(entry) for entry in pending.values() if entry is not None], gone)
                self.index.shrink()
            except sqlite3.Error:
                self._pending = pending | self._pending
                raise
            self._usage.measure()

    def settle(self) -> None:
        """Write down what is known now, once everything was counted; blocks."""
        self._counted.wait()
        try:
            self.flush()
        except sqlite3.OperationalError as e:
            log.warning("%s: cannot be written: %s", self._shelf.root / "index.db", e)

    def total(self) -> int:
        """Allocated bytes of the whole folder by what is known now; blocks.

        Raises:
            StorageUnavailable: the index cannot be read; it is being made anew.
        """
        return self._usage.agree(self._sum)

    def _sum(self) -> int:
        self.settle()
        try:
            return self.index.total()
        except sqlite3.DatabaseError as e:
            self._damaged = True
            self._wake.set()
            raise StorageUnavailable(
                f"{self._shelf.root}: the index is damaged and is made anew; try later"
            ) from e

    def _run(self) -> None:
        look = not self.index.clean
        while not self._stop.is_set():
            self._wake.clear()
            try:
                if self._damaged:
                    self.index.remake()
                    look, self._damaged = True, False
                if not self._counted.is_set():
                    self._usage.found(self.index.total())
                    self._usage.measure()
                    self._counted.set()
                    self._sweep()
                if look:
                    self._walk(self._shelf.folders())
                    look = False
                    with suppress(StorageUnavailable):  # damaged meanwhile: made and counted anew
                        self.total()
                if not self._stop.is_set():
                    self.looked.set()
                self._walk(self._shelf.take_suspects())
                self.flush()
            except sqlite3.OperationalError as e:  # the disk is full, or broken
                log.warning("%s: cannot be written: %s", self._shelf.root / "index.db", e)
            except sqlite3.DatabaseError:
                self._damaged = True
            self._counted.set()
            self._wake.wait(_EVERY)

    def _walk(self, folders: list[str]) -> None:
        """Bring the index in line with the disk and clear away what no record names."""
        for folder in folders:
            if self._stop.is_set():
                return
            self.flush()
            known, rows, change = self.index.keys(folder), [], 0
            for item, record in self._shelf.walk(folder):
                before = known.pop(item.key, None)
                if before != item.used and item.key not in self._pending and not self._loaded(item.key):
                    rows.append(self._row_of(item, record))
                    change += item.used - (before or 0)
            # What is not there any more; what just came may have been missed by the listing.
            lost = [key for key in known if key not in self._pending and not self._shelf.has(key)]
            self.index.put(rows, lost)
            self._usage.found(change - sum(known[key] for key in lost))
            time.sleep(_REST)

    def _sweep(self) -> None:
        """Clear away layouts of versions that are gone."""
        for folder in self._shelf.folders():
            if self._stop.is_set():
                return
            self._shelf.sweep(folder)

    def _row_of(self, item: Item, record: Record) -> Row:
        said = parse(record.cache_control)
        return Row(
            item.key,
            self._shown(record.origin, record.path),
            record.vo,
            record.size,
            min(record.size, self._shelf.held(record) * PAGE),
            item.used,
            item.accessed,
            fresh_until(said, record.validated, record.age, record.lifetime, record.key),
            record.shown_version,
        )


def _row(entry: Entry) -> Row:
    record, pages = entry.record, entry.fetcher.pages
    return Row(
        record.key,
        entry.fetcher.place.shown,
        record.vo,
        record.size,
        min(record.size, pages.held * PAGE),
        entry.used + PAGE,
        entry.accessed,
        entry.expires,
        record.shown_version,
    )
