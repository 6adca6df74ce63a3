"""Files on disk and on tape: the ``tape+file:///`` engine.

What is written lies on disk, is archived to tape by and by, and gives up its disk copy when the buffer is
full and nobody has pinned it. Then it is still listed, with its size, version and checksums, but must be
staged before it can be read (:mod:`doma.store.tape_requests`).

A content keeps its version for life, through eviction and recall. A deletion is decided by its row and then
carried out: what was deleted is never seen again, whatever is killed in between.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

from sqlalchemy import Connection

from doma.core.config import Tape
from doma.core.errors import ConfigError, DomaError, NotFound, OnTape, PreconditionFailed
from doma.core.paths import checked
from doma.db.engine import Database
from doma.store import tape_files as rows
from doma.store.file import FileReader
from doma.store.protocol import Buffer as Data
from doma.store.protocol import Hot, Locality, Space, Stat
from doma.store.tape_buffer import LOOKS, Buffer, has_content, whole
from doma.store.tape_command import CommandLibrary
from doma.store.tape_engine import Engine
from doma.store.tape_files import TapeFile
from doma.store.tape_library import FolderLibrary, Library
from doma.store.tape_reconcile import fresh
from doma.store.tape_tables import Held
from doma.store.upload import FileUpload

KNOWN = 4096
"""Copies whose rows are kept in memory for the fast path."""
LISTED = 256
"""Entries of a listing whose rows are looked up at once."""


class TapeStore:
    """A disk buffer with a tape library behind it.

    Args:
        root: Folder of the endpoint; made if it is missing. The files are in ``disk`` below it.
        db: Where the rows are.
        endpoint: Name of the endpoint.
        options: Its section of the configuration.
        library: Its tapes; None: what the options say.
        fsync: Make files durable before they are published.
        clock: Unix seconds.

    Raises:
        ConfigError: the folder cannot be used, or a command is missing.
    """

    def __init__(
        self,
        root: Path,
        db: Database,
        endpoint: str,
        options: Tape,
        *,
        library: Library | None = None,
        fsync: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(f"tape+file://{root}: cannot be used as a store ({e.strerror})") from e
        self._buffer = Buffer(root, db, endpoint, fsync=fsync)
        self._disk = self._buffer.store
        self._library = library or _library(root, options)
        self._engine = Engine(self._buffer, self._library, options, clock)
        self._clock = clock
        self._known: OrderedDict[str, tuple[TapeFile, Stat]] = OrderedDict()

    def start(self) -> None:
        """Let the drives work; without it, files are kept and queued only."""
        self._engine.start()

    def wake(self) -> None:
        self._engine.wake()

    async def stat(self, path: str) -> Stat:
        return self._shown(*await self._look(checked(path)))

    async def list(self, path: str) -> AsyncIterator[Stat]:
        batch: list[Stat] = []
        async for entry in self._disk.list(path):
            batch.append(entry)
            if len(batch) == LISTED:
                for stat in await self._all(batch):
                    yield stat
                batch = []
        for stat in await self._all(batch):
            yield stat

    async def open(self, path: str) -> "TapeReader":
        path = checked(path)
        for _ in range(LOOKS):
            reader = await self._disk.open(path)
            try:
                stat = await self._opened(reader.stat)
                if stat is not None:
                    return TapeReader(reader, stat)
            except BaseException:  # a cancellation, too: undone, and raised on
                await reader.close()
                raise
            await reader.close()
        raise PreconditionFailed(f"{path}: the file changes faster than it can be opened; try again")

    async def _opened(self, found: Stat) -> Stat | None:
        """The stat of an open file; None if it was replaced meanwhile. Raises OnTape, NotFound."""
        if not has_content(found):
            return self._shown(found, None)
        if (known := self._known.get(found.version)) is not None:
            return self._readable(found, known[0])
        (pair,) = await self._buffer.rows([found])
        if pair is None:
            raise NotFound(f"{found.path}: no such file or directory")
        return self._readable(*pair) if pair[0].version == found.version else None

    def peek(self, path: str) -> Hot | None:
        content = self._disk.peek(path)
        known = self._known.get(content.stat.version) if content is not None else None
        if content is None or known is None or known[1].path != path:
            return None
        self._engine.read(known[0].id)
        return _Hot(content, known[1])

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> "TapeUpload":
        path = checked(path)
        if if_version is not None and if_version != "*":
            stat, row = await self._look(path)
            if self._shown(stat, row).version != if_version:
                raise PreconditionFailed(f"{path}: its version is not {if_version}; look again")
            if_version = stat.version
        upload = await self._disk.create(
            path, size=size, checksums=checksums, if_version=if_version, if_absent=if_absent
        )
        return TapeUpload(self, upload, path)

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        await whole(self._delete(checked(path), version, recursive))

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        return await whole(self._rename(checked(source), checked(target), overwrite))

    async def make_dir(self, path: str) -> None:
        await self._disk.make_dir(path)

    async def checksum(self, path: str, algorithm: str) -> str:
        stat, row = await self._look(checked(path))
        known = self._shown(stat, row).checksums.get(algorithm)
        if known is not None:
            return known
        self._readable(stat, row)
        return await self._disk.checksum(path, algorithm)

    async def space(self) -> Space:
        return await self._disk.space()

    async def annotations(self, path: str) -> Mapping[str, str]:
        return await self._disk.annotations(path)

    async def annotate(self, path: str, changes: Mapping[str, str | None]) -> None:
        await self._disk.annotate(path, changes)

    async def tickets(self, paths: Sequence[str]) -> Sequence[tuple[Stat, str] | DomaError]:
        found = await self._pairs(paths)
        new = [pair[0].path for pair in found if _is_new(pair)]
        if new:
            await self._engine.reconciler.adopt(new)
            found = await self._pairs(paths)
        return [pair if isinstance(pair, DomaError) else self._ticket(*pair) for pair in found]

    async def close(self) -> None:
        await self._engine.stop()
        await self._library.close()
        await self._disk.close()

    async def publish(self, upload: FileUpload, path: str) -> Stat:
        """Commit an upload and give it its row; what it replaces is given up, on tape too."""
        db, now = self._buffer.db, self._clock()
        async with self._buffer.names.held():
            before = await db.look(partial(rows.at, endpoint=self._buffer.endpoint, path=path))
            stat = await upload.commit()
            replaced = [row.id for row in before]
            if has_content(stat):
                row = fresh(self._buffer.endpoint, stat, now)
                await db.run(partial(rows.add, new=[row], replaced=replaced, now=now))
            elif replaced:
                await db.run(partial(rows.doom, idents=replaced, now=now))
        self._engine.wake()
        return stat

    # --- inside ---

    async def _look(self, path: str) -> tuple[Stat, TapeFile | None]:
        return await self._buffer.look(path)

    async def _all(self, batch: Sequence[Stat]) -> Sequence[Stat]:
        found = await self._buffer.rows(batch) if batch else []
        return [self._shown(*pair) for pair in found if pair is not None]

    def _shown(self, stat: Stat, row: TapeFile | None) -> Stat:
        """What clients see. A file without a row gets one soon."""
        if row is None:
            if has_content(stat):
                self._engine.stray(stat.path)
                return stat
            return stat if stat.is_dir else replace(stat, locality=Locality.NONE)
        if row.disk != stat.version or row.path != stat.path:
            self._engine.stray(stat.path)
        elif row.state in {Held.ARCHIVING, Held.BOTH, Held.DISK}:
            self._remember(stat, row)
        return row.stat(stat)

    def _remember(self, stat: Stat, row: TapeFile) -> None:
        # A copy with this version has these facts for ever: only its locality may change.
        self._known[stat.version] = (row, row.stat(stat))
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _readable(self, stat: Stat, row: TapeFile | None) -> Stat:
        """The stat of a file whose bytes are here. Raises OnTape, NotFound."""
        shown = self._shown(stat, row)
        if row is None or stat.is_dir:
            return shown
        if row.state is Held.LOST:
            raise NotFound(f"{stat.path}: is lost on tape; take another replica", locality="LOST")
        if not row.is_here(stat):
            raise OnTape(f"{stat.path}: is on tape; stage it first", locality="TAPE")
        self._engine.read(row.id)
        return shown

    async def _stat(self, path: str) -> Stat | DomaError:
        """What lies on disk at a path, or why nothing does."""
        try:
            return await self._disk.stat(checked(path))
        except DomaError as e:
            return e

    async def _pairs(self, paths: Sequence[str]) -> Sequence[tuple[Stat, TapeFile | None] | DomaError]:
        """What lies at each path and its row, or why there is none."""
        found = await asyncio.gather(*(self._stat(path) for path in paths))
        pairs = iter(await self._buffer.rows([stat for stat in found if isinstance(stat, Stat)]))
        return [
            stat
            if isinstance(stat, DomaError)
            else next(pairs) or NotFound(f"{stat.path}: no such file or directory")
            for stat in found
        ]

    def _ticket(self, stat: Stat, row: TapeFile | None) -> tuple[Stat, str]:
        return self._shown(stat, row), row.id if row is not None else ""

    async def _delete(self, path: str, version: str | None, recursive: bool) -> None:
        db, endpoint, now = self._buffer.db, self._buffer.endpoint, self._clock()
        async with self._buffer.names.held(alone=True):
            stat, row = await self._look(path)
            if stat.is_dir:
                if recursive:
                    below = await db.look(partial(rows.at, endpoint=endpoint, path=path, below=True))
                    await db.run(partial(rows.doom, idents=[file.id for file in below], now=now))
                await self._disk.delete(path, recursive=recursive)
            else:
                if version is not None and self._shown(stat, row).version != version:
                    raise PreconditionFailed(f"{path}: its version is not {version}; look again")
                if row is not None:
                    await db.run(partial(rows.doom, idents=[row.id], now=now))
                await self._disk.delete(path, version=stat.version)
        self._engine.wake()

    async def _rename(self, source: str, target: str, overwrite: bool) -> bool:
        db, endpoint = self._buffer.db, self._buffer.endpoint
        async with self._buffer.names.held(alone=True):
            find = partial(rows.at, endpoint=endpoint, below=True)
            moving = {file.id for file in await db.look(partial(find, path=source))}
            there_before = {file.id for file in await db.look(partial(find, path=target))}
            there = await self._disk.rename(source, target, overwrite=overwrite)

            def follow(tx: Connection) -> None:
                rows.doom(tx, there_before - moving, self._clock())
                rows.move(tx, endpoint, source, target)

            await db.run(follow)
        self._known.clear()
        self._engine.wake()
        return there


def _is_new(pair: tuple[Stat, TapeFile | None] | DomaError) -> TypeGuard[tuple[Stat, None]]:
    return not isinstance(pair, DomaError) and pair[1] is None and has_content(pair[0])


class TapeReader:
    """A copy on disk, under the version that clients know."""

    def __init__(self, reader: FileReader, stat: Stat) -> None:
        self._reader, self._stat = reader, stat

    @property
    def stat(self) -> Stat:
        return self._stat

    async def read(self, start: int, stop: int) -> Data:
        return await self._reader.read(start, stop)

    async def close(self) -> None:
        await self._reader.close()


class TapeUpload:
    """An upload into the buffer; its commit also queues the file for tape."""

    def __init__(self, store: TapeStore, upload: FileUpload, path: str) -> None:
        self._store, self._upload, self._path = store, upload, path

    def feed(self, data: memoryview) -> bool:
        return self._upload.feed(data)

    def tag(self, upload: str) -> None:
        self._upload.tag(upload)

    async def write(self, data: Data) -> None:
        await self._upload.write(data)

    async def commit(self) -> Stat:
        return await whole(self._store.publish(self._upload, self._path))

    async def abort(self) -> None:
        await self._upload.abort()


class _Hot:
    """A hot copy under the version that clients know."""

    __slots__ = ("_content", "fileno", "stat", "view")

    def __init__(self, content: Hot, stat: Stat) -> None:
        self._content = content  # keeps the descriptor open
        self.stat = stat
        self.view, self.fileno = content.view, content.fileno


def _library(root: Path, options: Tape) -> Library:
    if options.archive or options.stage or options.query:
        return CommandLibrary(options)
    return FolderLibrary(Path(options.library or root / "library"), options)
