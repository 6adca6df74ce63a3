"""Files in memory: for tests, and for what need not survive."""

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from doma.core.checksum import hasher
from doma.core.errors import AlreadyExists, Conflict, LimitExceeded, NotFound, Refused, StorageFull
from doma.core.paths import checked, parent
from doma.store.notes import LIMIT
from doma.store.protocol import Buffer, Space, Stat
from doma.store.quota import Held, Quota
from doma.store.writing import Tally, check_move, check_replaceable, check_span, check_target, check_version


class MemoryFile:
    """One version of a file: a :class:`~doma.store.protocol.Reader` and a ``Hot`` at once."""

    __slots__ = ("_data", "_stat")

    def __init__(self, stat: Stat, data: bytes) -> None:
        self._stat = stat
        self._data = data

    @property
    def stat(self) -> Stat:
        return self._stat

    async def read(self, start: int, stop: int) -> Buffer:
        check_span(self._stat, start, stop)
        return memoryview(self._data)[start:stop]

    async def close(self) -> None:
        pass

    def view(self, start: int, stop: int) -> memoryview | None:
        return memoryview(self._data)[start:stop]

    def fileno(self, start: int, stop: int) -> int | None:
        return None

    def known(self, algorithm: str) -> str | None:
        """The stored checksum."""
        return self._stat.checksums.get(algorithm)

    def hashed(self, algorithm: str) -> "MemoryFile":
        """The same file, with one more checksum stored."""
        digest = hasher(algorithm)
        digest.update(self._data)
        sums = {**self._stat.checksums, algorithm: digest.hexdigest()}
        return MemoryFile(replace(self._stat, checksums=sums), self._data)

    def moved(self, path: str) -> "MemoryFile":
        """The same version under another name."""
        return MemoryFile(replace(self._stat, path=path), self._data)


class MemoryStore:
    """A store in a dictionary.

    Args:
        capacity: Bytes that all files and running uploads may hold together; None: no limit.
        quota: Limits of what may lie below some paths; of this store alone.
        clock: For modification times.
    """

    def __init__(
        self,
        capacity: int | None = None,
        *,
        quota: Quota | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._quota = quota
        self._capacity = capacity
        self._clock = clock
        self._files: dict[str, MemoryFile] = {}
        self._dirs: dict[str, float] = {"/": clock()}
        self._serial = itertools.count(1)
        self._pending = 0
        self._notes: dict[str, dict[str, str]] = {}

    async def stat(self, path: str) -> Stat:
        return self._there(checked(path))

    async def list(self, path: str) -> AsyncIterator[Stat]:
        path = checked(path)
        if not self._there(path).is_dir:
            raise Conflict(f"{path}: this is a file; only a directory can be listed")
        for child in sorted(self._children(path)):
            if (found := self._find(child)) is not None:
                yield found

    async def open(self, path: str) -> MemoryFile:
        path = checked(path)
        if self._there(path).is_dir:
            raise Conflict(f"{path}: this is a directory; open a file below it")
        return self._files[path]

    def peek(self, path: str) -> MemoryFile | None:
        return self._files.get(path)

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> "MemoryUpload":
        path = checked(path)
        self._check_parents(path)
        check_replaceable(path, self._find(path), if_version=if_version, if_absent=if_absent)
        old = self._find(path)
        held = Held(self._quota, path, size or 0, old.size if old else 0)
        upload = MemoryUpload(self, Tally(path, size, checksums), held, if_version, if_absent)
        try:
            self.reserve(path, size or 0)
        except StorageFull:
            held.end()
            raise
        return upload

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        path = checked(path)
        there = self._there(path)
        check_version(path, there, version)
        if not there.is_dir:
            del self._files[path]
            self._notes.pop(path, None)
            self._count(path, -there.size)
            return
        if path == "/":
            raise Refused("/: the top of a store cannot be deleted; delete what lies below")
        if not recursive and any(self._children(path)):
            raise Conflict(f"{path}: the directory is not empty; delete recursively or empty it first")
        for name in [f for f in self._files if f.startswith(path + "/")]:
            self._count(name, -self._files.pop(name).stat.size)
        for name in [d for d in self._dirs if d == path or d.startswith(path + "/")]:
            del self._dirs[name]
        for name in [n for n in self._notes if n == path or n.startswith(path + "/")]:
            del self._notes[name]

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        source, target = checked(source), checked(target)
        moving, there = self._there(source), self._find(target)
        check_move(source, target)
        if not self._is_dir(parent(target)):
            raise Conflict(f"{target}: its directory does not exist; make it first")
        check_target(target, moving, there, overwrite)
        self._count_move(source, target, there)
        self._notes.pop(target, None)
        for name in [n for n in self._notes if n == source or n.startswith(source + "/")]:
            self._notes[target + name[len(source) :]] = self._notes.pop(name)
        if not moving.is_dir:
            self._files[target] = self._files.pop(source).moved(target)
            return there is not None
        for name in [f for f in self._files if f.startswith(source + "/")]:
            new = target + name[len(source) :]
            self._files[new] = self._files.pop(name).moved(new)
        for name in [d for d in self._dirs if d == source or d.startswith(source + "/")]:
            self._dirs[target + name[len(source) :]] = self._dirs.pop(name)
        return there is not None

    async def link(self, source: str, target: str, *, version: str) -> Stat:
        source, target = checked(source), checked(target)
        file = self._files.get(source)
        if file is None:
            raise NotFound(f"{source}: there is no such file to be linked; name one")
        check_version(source, file.stat, version)
        check_replaceable(target, self._find(target), if_version=None, if_absent=True)
        self._make_parents(target)
        if self._quota is not None:
            self._quota.add(self._quota.weigh(target, file.stat.size), check=target)
        self._files[target] = file.moved(target)
        return self._files[target].stat

    async def make_dir(self, path: str) -> None:
        path = checked(path)
        if self._find(path) is not None:
            raise AlreadyExists(f"{path}: there is already a file or directory of this name")
        if not self._is_dir(parent(path)):
            raise Conflict(f"{path}: its parent is not a directory; make that first")
        self._dirs[path] = self._clock()

    async def checksum(self, path: str, algorithm: str) -> str:
        file = await self.open(path)
        if (known := file.known(algorithm)) is not None:
            return known
        hashed = file.hashed(algorithm)
        if self._files.get(file.stat.path) is file:
            self._files[file.stat.path] = hashed
        return hashed.stat.checksums[algorithm]

    async def space_at(self, path: str) -> Space:
        whole = await self.space()
        said = self._quota.space(checked(path)) if self._quota is not None else None
        return whole if said is None else Space(said.used, min(said.available, whole.available))

    async def annotations(self, path: str) -> Mapping[str, str]:
        return dict(self._notes.get(self._there(checked(path)).path, {}))

    async def annotate(self, path: str, changes: Mapping[str, str | None]) -> None:
        path = self._there(checked(path)).path
        notes = {**self._notes.get(path, {}), **changes}
        kept = {name: value for name, value in notes.items() if value is not None}
        size = len(json.dumps(kept))
        if size > LIMIT:
            raise LimitExceeded(f"{path}: its own properties would take {size} bytes, {LIMIT} are kept")
        self._notes[path] = kept

    async def space(self) -> Space:
        used = self._used()
        return Space(used, max(0, (self._capacity if self._capacity is not None else 1 << 62) - used))

    async def close(self) -> None:
        pass

    def reserve(self, path: str, more: int) -> None:
        """Set bytes of a running upload aside (negative: give them back). Raises StorageFull."""
        if more > 0 and self._capacity is not None and self._used() + more > self._capacity:
            raise StorageFull(f"{path}: the store holds at most {self._capacity} bytes; delete something")
        self._pending += more

    def publish(self, upload: "MemoryUpload", checksums: Mapping[str, str], data: bytes) -> Stat:
        """Put a finished upload in its place, all at once."""
        path = upload.tally.path
        check_replaceable(path, self._find(path), if_version=upload.if_version, if_absent=upload.if_absent)
        self._make_parents(path)
        old = self._find(path)
        self._count(path, len(data) - (old.size if old else 0))
        version = f"{next(self._serial):x}-{len(data):x}"
        stat = Stat(path, len(data), version, self._clock(), checksums=checksums, upload=upload.named)
        self._files[path] = MemoryFile(stat, data)
        self._notes.pop(path, None)
        return stat

    def _make_parents(self, path: str) -> None:
        self._check_parents(path)
        above = parent(path)
        while above not in self._dirs:
            self._dirs[above] = self._clock()
            above = parent(above)

    def _count(self, path: str, size: int) -> None:
        if self._quota is not None:
            self._quota.add(self._quota.weigh(path, size))

    def _count_move(self, source: str, target: str, there: Stat | None) -> None:
        if self._quota is None:
            return
        changes = dict.fromkeys(self._quota.prefixes, 0)
        moves = [
            (name, file.stat.size)
            for name, file in self._files.items()
            if name == source or name.startswith(source + "/")
        ]
        for name, size in moves:
            for prefix in self._quota.weigh(name, size):
                changes[prefix] -= size
            for prefix in self._quota.weigh(target + name[len(source) :], size):
                changes[prefix] += size
        for prefix, size in self._quota.weigh(target, there.size if there else 0).items():
            changes[prefix] -= size
        self._quota.add(changes, check=target)

    def _used(self) -> int:
        return self._pending + sum(file.stat.size for file in self._files.values())

    def _is_dir(self, path: str) -> bool:
        return path in self._dirs

    def _find(self, path: str) -> Stat | None:
        if path in self._files:
            return self._files[path].stat
        made = self._dirs.get(path)
        return None if made is None else Stat(path, 0, f"d{made}", made, is_dir=True)

    def _there(self, path: str) -> Stat:
        found = self._find(path)
        if found is None:
            raise NotFound(f"{path}: no such file or directory")
        return found

    def _children(self, path: str) -> Sequence[str]:
        return [
            name for name in itertools.chain(self._files, self._dirs) if name != "/" and parent(name) == path
        ]

    def _check_parents(self, path: str) -> None:
        if path == "/":
            raise Conflict("/: this is a directory; write to a name below it")
        above = parent(path)
        while above not in self._dirs:
            if above in self._files:
                raise Conflict(f"{path}: {above} is a file, nothing can lie below it")
            above = parent(above)


class MemoryUpload:
    """A write under way in a :class:`MemoryStore`."""

    def __init__(
        self, store: MemoryStore, tally: Tally, held: Held, if_version: str | None, if_absent: bool
    ) -> None:
        self._store = store
        self._held = held
        self.tally = tally
        self.if_version = if_version
        self.if_absent = if_absent
        self.named = ""
        self._parts: list[bytes] = []
        self._reserved = tally.size or 0
        self._open = True

    def tag(self, upload: str) -> None:
        self.named = upload

    async def write(self, data: Buffer) -> None:
        self.feed(memoryview(data))

    def feed(self, data: memoryview) -> bool:
        if not self._open:
            raise Conflict(f"{self.tally.path}: this upload is over; begin a new one")
        self.tally.expect(len(data))
        self._held.cover(self.tally.written + len(data))
        if (more := self.tally.written + len(data) - self._reserved) > 0:
            self._store.reserve(self.tally.path, more)
            self._reserved += more
        self._parts.append(bytes(data))
        self.tally.add(self._parts[-1])
        return True

    async def commit(self) -> Stat:
        if not self._open:
            raise Conflict(f"{self.tally.path}: this upload is over; begin a new one")
        try:
            return self._store.publish(self, self.tally.finish(), b"".join(self._parts))
        finally:
            await self.abort()

    async def abort(self) -> None:
        if self._open:
            self._open = False
            self._parts.clear()
            self._held.end()
            self._store.reserve(self.tally.path, -self._reserved)
