"""The disk buffer in front of a library: a file store in which stubs hold the places of files on tape.

A stub is a small file that names its row by the row's id, which is random and never shown: clients cannot
write a stub for somebody else's bytes. Copies and stubs replace each other by the store's own fenced writes
(``if_version``), so whatever a client put there meanwhile stays.

Between the publication on disk and the change of the row a process may be killed; :meth:`Buffer.rows` then
still finds the row: a stub by its text, a recalled copy by path, size and checksum.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from doma.core.errors import DomaError, NotFound, PreconditionFailed
from doma.db.engine import Database
from doma.store import tape_files as rows
from doma.store.file import FileStore
from doma.store.protocol import PIECE, Stat, Upload
from doma.store.tape_files import TapeFile
from doma.store.tape_tables import AWAY, Held

log = logging.getLogger(__name__)

T = TypeVar("T")

_TEXT = b"doma: this file is on tape\n%s\n"
STUB = len(_TEXT % bytes(32))
"""Bytes of every stub."""
LOOKS = 5
"""Times that a file is looked at anew because it changed under our eyes."""


class Names:
    """Who may change names: many who publish a file, or one who renames or deletes, in any process.

    Args:
        file: The lock; made if it is missing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def held(self, *, alone: bool = False) -> AsyncIterator[None]:
        """Hold the lock, with others or alone."""
        how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            async with self._turn:  # in turn: one who waits to be alone is not overtaken for ever
                try:
                    fcntl.flock(fd, how | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.to_thread(fcntl.flock, fd, how)
            yield
        finally:
            os.close(fd)


class Buffer:
    """The files of one endpoint on disk, and their rows.

    Args:
        root: The endpoint's folder: the files are in ``disk`` below it.
        db: Where the rows are.
        endpoint: Its name.
        fsync: Make files durable before they are published.
    """

    def __init__(self, root: Path, db: Database, endpoint: str, *, fsync: bool = True) -> None:
        self.root = root
        self.store = FileStore(root / "disk", fsync=fsync)
        self.db, self.endpoint = db, endpoint
        self.names = Names(root / "names.lock")

    async def look(self, path: str) -> tuple[Stat, TapeFile | None]:
        """What lies at a path, and its row; None: a directory, an empty file, or one not known yet.

        Raises:
            NotFound: nothing is there, or what is there was deleted.
        """
        stat = await self.store.stat(path)
        (found,) = await self.rows([stat])
        if found is None:
            raise NotFound(f"{path}: no such file or directory")
        return found

    async def rows(self, stats: Sequence[Stat]) -> list[tuple[Stat, TapeFile | None] | None]:
        """Each of some stats with its row; None in the place of what is gone or was deleted.

        A stat may be newer than what was given, if it changed meanwhile.
        """
        asked = [stat.version for stat in stats if has_content(stat)]
        known = await self.db.look(partial(rows.by_disk, endpoint=self.endpoint, versions=asked))
        new = [stat.path for stat in stats if has_content(stat) and stat.version not in known]
        there = await self._at(new) if new else {}
        found: list[tuple[Stat, TapeFile | None] | None] = []
        for stat in stats:
            row = known.get(stat.version)
            pair: tuple[Stat, TapeFile | None] | None = (stat, row)
            if has_content(stat) and row is None:
                pair = await self._stranger(stat, there.get(stat.path, []))
            if pair is not None and pair[1] is not None and pair[1].state is Held.DOOMED:
                pair = None
            found.append(pair)
        return found

    async def _at(self, paths: Sequence[str]) -> dict[str, list[TapeFile]]:
        return await self.db.look(partial(rows.at_paths, endpoint=self.endpoint, paths=paths))

    async def _stranger(self, stat: Stat, here: Sequence[TapeFile]) -> tuple[Stat, TapeFile | None] | None:
        """A file whose version no row has: new, or one whose row is about to say so.

        Args:
            stat: What was found on disk.
            here: The rows of its path, read after that.
        """
        for _ in range(LOOKS):
            row = await self.by_stub(stat)
            row = row or _by_content(stat, here)
            if row is not None:
                return stat, row
            try:
                again = await self.store.stat(stat.path)
            except NotFound:
                return None
            if again.version == stat.version:
                if await self._named(stat):
                    # never the stub itself for the file: its rows were lost, and with them its place on tape
                    log.error("%s%s: is a stub without a row", self.endpoint, stat.path)
                    return None
                return stat, None
            stat = again
            found = await self.db.look(partial(rows.by_disk, endpoint=self.endpoint, versions=[stat.version]))
            if stat.version in found:
                return stat, found[stat.version]
            here = (await self._at([stat.path])).get(stat.path, [])
        raise PreconditionFailed(f"{stat.path}: the file changes faster than it can be looked at; try again")

    async def by_stub(self, stat: Stat) -> TapeFile | None:
        """The row that a stub names; None if this is no stub, or one of a row that is gone."""
        ident = await self._named(stat)
        row = await self.db.look(partial(rows.by_id, ident=ident)) if ident else None
        return row if row is not None and row.endpoint == self.endpoint else None

    async def _named(self, stat: Stat) -> str:
        """The id in a stub; empty if this is none."""
        if stat.size != STUB:
            return ""
        try:
            reader = await self.store.open(stat.path)
        except DomaError:
            return ""
        try:
            text = bytes(await reader.read(0, STUB)) if reader.stat.version == stat.version else b""
        except DomaError:
            return ""
        finally:
            await reader.close()
        ident = text.split(b"\n")[1].decode("ascii", "replace") if text.startswith(_TEXT[:20]) else ""
        return ident if text == _TEXT % ident.encode() else ""

    async def put_stub(self, file: TapeFile, *, instead: str | None) -> Stat:
        """Publish the stub of a file in its place; the caller holds the lock of names.

        Args:
            file: Which.
            instead: Version that must be there; None: nothing may be there.

        Raises:
            PreconditionFailed: something else is there. NotFound, Conflict: the path is no more.
        """
        upload = await self.store.create(file.path, size=STUB, if_version=instead, if_absent=instead is None)
        try:
            await upload.write(_TEXT % file.id.encode())
            return await self.publish(file, upload)
        except BaseException:  # a cancellation, too: undone, and raised on
            await upload.abort()
            raise

    async def load(self, file: TapeFile, source: Path) -> Upload:
        """A recalled file, written and to be published in the place of its stub.

        Raises:
            StorageFull; WrongSize: these are not the file's bytes; NotFound, Conflict: the path is no more.
        """
        sums = {"adler32": file.checksums["adler32"]}
        upload = await self.store.create(file.path, size=file.size, checksums=sums, if_version=file.disk)
        try:
            with await asyncio.to_thread(source.open, "rb", buffering=0) as data:
                while piece := await asyncio.to_thread(data.read, PIECE):
                    await upload.write(piece)
        except BaseException:  # a cancellation, too: undone, and raised on
            await upload.abort()
            raise
        return upload

    async def publish(self, file: TapeFile, upload: Upload) -> Stat:
        """Commit a stub or a copy, with what clients have noted of the file."""
        notes = await self._notes(file.path)
        stat = await upload.commit()
        if notes:
            await self.store.annotate(file.path, notes)
        return stat

    async def _notes(self, path: str) -> Mapping[str, str]:
        """Clients' own properties, which a replaced file would take with it."""
        try:
            return await self.store.annotations(path)
        except NotFound:
            return {}


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do something to its end, even if the caller is cancelled meanwhile; then that is told."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def _by_content(stat: Stat, here: Sequence[TapeFile]) -> TapeFile | None:
    """A copy that was recalled to its path, and whose row does not say so yet or says so just now."""
    for row in here:
        same = row.checksums.get("adler32") == stat.checksums.get("adler32") is not None
        if row.disk == stat.version or (row.state in AWAY and row.size == stat.size and same):
            return row
    return None


def has_content(stat: Stat) -> bool:
    """Whether this can have a row: of directories and empty files there is nothing to archive."""
    return not stat.is_dir and stat.size > 0
