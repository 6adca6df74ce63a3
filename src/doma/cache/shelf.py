"""The cache's folder: one record and one page file an object, under names made of hashes.

``objects/ab/<key>`` is the record (replaced by rename), ``objects/ab/<key>.<generation>`` the pages of the
version that the record names, ``layouts/ab/<key>-<generation>`` what is known of its columns (most have
none). The record's modification time is the object's last access. Opening an object
costs the same whether ten or ten million lie beside it; what has to know all of them asks the index.
"""

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from doma.cache.extents import PAGE
from doma.cache.pages import PageFile
from doma.cache.record import LARGEST, Record, decode, encode
from doma.core.errors import AlreadyRunning, StorageUnavailable

log = logging.getLogger(__name__)

_SETTLED = 60_000_000_000
"""Nanoseconds after which a file that no record names is surely not just being made."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object on disk."""

    key: str
    used: int
    """Allocated bytes of record, pages and layout."""
    accessed: float
    """Unix seconds."""


class Shelf:
    """The folder of one cache; at most one process holds it.

    Raises:
        AlreadyRunning: another process holds it.
        StorageUnavailable: the folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._layouts = root / "layouts"
        self._suspects: set[str] = set()
        try:
            self._objects.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StorageUnavailable(
                f"{root}: the cache folder cannot be used: {e.strerror}; check it"
            ) from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._lock)
            raise AlreadyRunning(
                f"{root}: another process holds this cache folder; stop it or choose another folder"
            ) from e
        os.utime(self._lock)
        self._began = os.fstat(self._lock).st_mtime_ns

    def close(self) -> None:
        """Let others have the folder. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def record(self, key: str) -> Record | None:
        """What is known of an object; None if nothing, or nothing that can be trusted."""
        try:
            with self._name(key).open("rb") as file:
                data = file.read(LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as e:
            log.warning("cache record %s cannot be read (%s); the object is fetched again", key, e)
            return None
        record = decode(data, key) if len(data) <= LARGEST else None
        if record is None:
            log.warning("cache record %s is damaged; the object is fetched again", key)
            self._suspects.add(key[:2])
        return record

    def write(self, record: Record, accessed: float) -> None:
        """Put a record in place of the one before it, in one step.

        Raises:
            OSError: the disk is full or broken; the former record stands.
        """
        name = self._name(record.key)
        name.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if name.is_dir():  # by another hand; nothing of ours is ever a directory
            shutil.rmtree(name, ignore_errors=True)
        temporary = name.with_name(f"{name.name}.{record.generation}.new")
        temporary.write_bytes(encode(record))
        os.utime(temporary, (accessed, accessed))
        temporary.rename(name)

    def pages(self, record: Record) -> PageFile:
        """The pages of the version that a record names; all missing if the file is gone or something else.

        Raises:
            OSError: the disk is full or broken.
        """
        name = self._pages(record.key, record.generation)
        name.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return PageFile(name, record.size)
        except OSError as e:
            if e.errno not in {errno.EISDIR, errno.ELOOP, errno.ENXIO}:
                raise
        log.warning("cache pages %s are not a file; they are fetched again", record.key)
        if name.is_dir() and not name.is_symlink():
            shutil.rmtree(name)
        else:
            name.unlink()
        return PageFile(name, record.size)

    def held(self, record: Record) -> int:
        """How many pages of an object are here."""
        try:
            count = -(-record.size // PAGE)
            with self._pages(record.key, record.generation).open("rb") as file:
                file.seek(count * (PAGE + 4))
                return file.read(count).count(1)
        except OSError:
            return 0

    def accessed(self, key: str) -> float:
        """When an object was last read, Unix seconds; 0 if it is first in line for the purge, or not here."""
        try:
            return os.stat(self._name(key)).st_mtime
        except OSError:
            return 0.0

    def touch(self, key: str, accessed: float) -> None:
        """Note the last access; an instant of 0 puts the object first in line for the purge."""
        with suppress(OSError):
            os.utime(self._name(key), (accessed, accessed))

    def drop(self, key: str, generation: str) -> None:
        """Take the pages of one version away, and what is known of its columns; who reads them keeps them.

        Idempotent.
        """
        with suppress(OSError):
            self._pages(key, generation).unlink()
        self.drop_layout(key, generation)

    def drop_layout(self, key: str, generation: str) -> None:
        """Take away what is known of a version's columns. Idempotent."""
        with suppress(OSError):
            self._layout(key, generation).unlink()

    def clear(self, keys: Iterable[str]) -> list[Record | None]:
        """Take objects away; their records, None for those that are not here. Blocks."""
        out = []
        for key in keys:
            record = self.record(key)
            if record is not None:
                self.forget(key)
                self.drop(key, record.generation)
            out.append(record)
        return out

    def used(self, record: Record) -> int:
        """Allocated bytes of an object's record, pages and layout."""
        pages = self._pages(record.key, record.generation)
        return _blocks(self._name(record.key)) + _blocks(pages) + self.layout(record.key, record.generation)

    def layout(self, key: str, generation: str) -> int:
        """Allocated bytes of what is known of a version's columns."""
        return _blocks(self._layout(key, generation))

    def beside(self) -> int:
        """Allocated bytes of what is no object's: the index, and the folders themselves. Blocks."""
        total = _blocks(self.root)
        for top in (self.root, self._objects, self._layouts):
            with suppress(OSError), os.scandir(top) as found:
                total += sum(_blocks(item.path) for item in found)
        return total

    def forget(self, key: str) -> None:
        """Take an object's record away. Idempotent."""
        with suppress(OSError):
            self._name(key).unlink()

    def has(self, key: str) -> bool:
        """Whether there is a record of an object."""
        return self._name(key).exists()

    def folders(self) -> list[str]:
        """The folders that objects may lie in; each begins the keys of what is in it."""
        return [f"{n:02x}" for n in range(256)]

    def take_suspects(self) -> list[str]:
        """Folders in which a damaged record was met since the last call."""
        found, self._suspects = self._suspects, set()
        return sorted(found)

    def walk(self, folder: str) -> Iterator[tuple[Item, Record]]:
        """Every object of a folder, in no order; clears away what a killed process left behind.

        Blocks; run it in a thread. Objects that come or go meanwhile may be missed or listed.
        """
        place = self._objects / folder
        old = max(self._began, time.time_ns() - _SETTLED)
        layouts = set(self._entries(self._layouts / folder))
        parts: dict[str, list[str]] = {}
        for name in self._entries(place):
            parts.setdefault(name.partition(".")[0], []).append(name)
        for key, files in parts.items():
            record = self.record(key) if key in files else None
            wanted = {key, f"{key}.{record.generation}"} if record else set()
            used, accessed = 0, 0.0
            for name in files:
                try:
                    found = os.lstat(place / name)
                except OSError:
                    continue
                if name in wanted:
                    used += found.st_blocks * 512
                    accessed = found.st_mtime if name == key else accessed
                elif max(found.st_mtime_ns, found.st_ctime_ns) < old:
                    remove(place / name)  # of a killed process, or of a record that was damaged
            if record:
                if f"{key}-{record.generation}" in layouts:
                    used += self.layout(key, record.generation)
                yield Item(key, used, accessed), record

    def sweep(self, folder: str) -> None:
        """Clear away the layouts that a former process left of versions that are gone. Blocks."""
        for name in self._entries(self._layouts / folder):
            key, _, generation = name.partition("-")
            path = self._layouts / folder / name
            with suppress(OSError):
                if path.stat().st_mtime_ns < self._began and not self._pages(key, generation).exists():
                    path.unlink()

    def _entries(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except OSError:
            return []

    def _name(self, key: str) -> Path:
        return self._objects / key[:2] / key

    def _pages(self, key: str, generation: str) -> Path:
        return self._objects / key[:2] / f"{key}.{generation}"

    def _layout(self, key: str, generation: str) -> Path:
        return self._layouts / key[:2] / f"{key}-{generation}"


def _blocks(path: Path | str) -> int:
    """Allocated bytes of a file or folder; 0 if it is not there."""
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def remove(path: Path) -> None:
    """Take away a file or folder, whatever it is. Idempotent."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
