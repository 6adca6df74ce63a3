"""What the drives do: take the next files from the queue, archive them, recall them.

An archive reads a second name of the copy in the folder ``out``, so that a rename or a replacement meanwhile
does not matter; a recall writes to the folder ``in``, is verified, and published only if the stub still
stands. What fails goes back to the queue for later.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from doma.core.checksum import hasher
from doma.core.config import Tape
from doma.core.errors import Conflict, CorruptFile, DomaError, NotFound, PreconditionFailed
from doma.store import tape_files as rows
from doma.store.beneath import Tree
from doma.store.marks import version_of
from doma.store.oserrors import translated
from doma.store.protocol import PIECE, Upload
from doma.store.tape_buffer import Buffer, whole
from doma.store.tape_files import TapeFile
from doma.store.tape_library import Library, Place
from doma.store.tape_plan import ARCHIVE, Shares, next_cartridge, sweep
from doma.store.tape_tables import Held

log = logging.getLogger(__name__)

READS, WRITES = 64, 8
"""Files that a drive takes at once: recalls of one cartridge are sorted, writes are shared out."""
_MOVED = (NotFound, Conflict, PreconditionFailed)
"""What the buffer says when a file does not lie where its row says."""


class Drives:
    """The drives of one endpoint.

    Args:
        buffer: Its files and rows.
        library: Its tapes.
        options: Its section of the configuration.
        clock: Unix seconds.
        stray: Told of a path whose row is behind.
    """

    def __init__(
        self,
        buffer: Buffer,
        library: Library,
        options: Tape,
        clock: Callable[[], float],
        stray: Callable[[str], None],
    ) -> None:
        self._buffer, self._library, self._options = buffer, library, options
        self._clock, self._stray = clock, stray
        self._shares = Shares(options.shares)
        self._mounted = [""] * options.drives
        self._heads = [0] * options.drives
        self._choosing = asyncio.Lock()
        self.writing: set[str] = set()
        """Files that are being archived: their tape copies are not known yet."""

    async def turn(self, drive: int) -> bool:
        """Do what comes next on one drive; False if there was nothing."""
        async with self._choosing:
            batch = await self._take(drive)
        todo = {file.id for file in batch}
        try:
            for file in batch:
                work = self._archive if file.state is Held.ARCHIVING else self._recall
                await work(drive, file)
                todo.discard(file.id)
        finally:
            if todo:
                back = partial(rows.give_back, endpoint=self._buffer.endpoint, idents=todo)
                await whole(self._buffer.db.run(back))
        return bool(batch)

    async def _take(self, drive: int) -> list[TapeFile]:
        """Choose a cartridge and claim what is wanted from it, in the order of reading."""
        buffer, now = self._buffer, self._clock()
        loads = await buffer.db.look(partial(rows.loads, endpoint=buffer.endpoint, now=now))
        mounted = self._mounted[drive]
        others = {name for i, name in enumerate(self._mounted) if i != drive and name}
        cartridge = next_cartridge(loads, self._shares, mounted=mounted, busy=others)
        if cartridge is None:
            self._mounted[drive] = ""  # an idle drive keeps no cartridge from the others
            return []
        limit = READS if cartridge else WRITES
        claim = partial(rows.claim, endpoint=buffer.endpoint, cartridge=cartridge, now=now, limit=limit)
        batch = await buffer.db.run(claim)
        head = self._heads[drive] if cartridge == mounted else 0
        self._mounted[drive] = cartridge
        for file in batch:  # at once: the next drive that is free is to know it
            self._shares.charge(file.activity if cartridge else ARCHIVE)
        if cartridge and batch:
            positions = [file.position or 0 for file in batch]
            batch = [batch[i] for i in sweep(positions, head)]
            self._heads[drive] = (batch[-1].position or 0) + 1
        return batch

    # --- to tape ---

    async def _archive(self, drive: int, file: TapeFile) -> None:
        source = self._buffer.root / "out" / file.id
        self.writing.add(file.id)
        try:
            if not await asyncio.to_thread(self._link, file, source):
                self._stray(file.path)
                raise Conflict(f"{file.path}: moved or replaced meanwhile")
            adler32 = await asyncio.to_thread(_adler32, source, file.path)
            if file.checksums.get("adler32", adler32) != adler32:
                raise CorruptFile(
                    f"{file.path}: adler32 is {adler32}, expected {file.checksums['adler32']}; the disk has"
                    " damaged it, write it again"
                )
            place = await self._library.archive(drive, file.id, source, file.size, adler32)
            await self._buffer.db.run(partial(self._archived, file, place, adler32))
        except DomaError as e:
            log.warning("%s%s: not archived: %s", self._buffer.endpoint, file.path, e.message)
            later = {"state": Held.DISK, "ready": self._clock() + self._options.retry, "error": e.message}
            await self._buffer.db.run(lambda tx: rows.change(tx, file.id, (Held.ARCHIVING,), later))
        finally:
            self.writing.discard(file.id)
            source.unlink(missing_ok=True)

    def _link(self, file: TapeFile, target: Path) -> bool:
        """Give this very copy a second name; False if it does not lie at its path."""
        tree = Tree(self._buffer.root / "disk")
        try:
            with translated(file.path), tree.target(file.path) as (above, name, _):
                target.unlink(missing_ok=True)
                os.link(name, target, src_dir_fd=above, follow_symlinks=False)
                return version_of(os.stat(target, follow_symlinks=False)) == file.disk
        except NotFound:
            return False
        finally:
            tree.close()

    def _archived(self, file: TapeFile, place: Place, adler32: str, tx: Connection) -> None:
        now = self._clock()
        where = {"cartridge": place.cartridge, "position": place.position, "error": None}
        sums = {**file.checksums, "adler32": adler32}
        done = {**where, "state": Held.BOTH, "checksums": sums}
        if rows.change(tx, file.id, (Held.ARCHIVING,), done, attempt=file.attempt):
            rows.tell(tx, "file.archived", file, now, cartridge=place.cartridge)
        else:
            rows.change(tx, file.id, (Held.DOOMED,), where)  # deleted meanwhile: the janitor removes it

    # --- from tape ---

    async def _recall(self, drive: int, file: TapeFile) -> None:
        buffer, target = self._buffer, self._buffer.root / "in" / file.id
        assert file.place is not None
        try:
            target.unlink(missing_ok=True)
            try:
                await self._library.recall(drive, file.id, file.place, file.size, target)
            except NotFound as e:
                await buffer.db.run(partial(self._lost, file, e.message))
                return
            upload = await buffer.load(file, target)
            await whole(self._publish(file, upload))
        except _MOVED as e:
            self._stray(file.path)
            await buffer.db.run(partial(self._again, file, e.message, gives_up=False))
        except DomaError as e:
            await buffer.db.run(partial(self._again, file, e.message))
        finally:
            target.unlink(missing_ok=True)

    async def _publish(self, file: TapeFile, upload: Upload) -> None:
        async with self._buffer.names.held():
            try:
                stat = await self._buffer.publish(file, upload)
            except BaseException:  # a cancellation, too: undone, and raised on
                await upload.abort()
                raise
            await self._buffer.db.run(partial(self._recalled, file, stat.version))

    def _recalled(self, file: TapeFile, disk: str, tx: Connection) -> None:
        now = self._clock()
        here = {"state": Held.BOTH, "disk": disk, "used": now, "error": None}
        if rows.change(tx, file.id, (Held.RECALLING,), here, attempt=file.attempt):
            rows.online(tx, file, now)
            rows.tell(tx, "file.recalled", file, now, cartridge=file.cartridge)

    def _lost(self, file: TapeFile, why: str, tx: Connection) -> None:
        now = self._clock()
        if rows.change(tx, file.id, (Held.RECALLING,), {"state": Held.LOST, "error": why}):
            rows.fail(tx, [file.id], now, f"the file is lost on tape: {why}")
            rows.tell(tx, "file.lost", file, now, cartridge=file.cartridge)

    def _again(self, file: TapeFile, why: str, tx: Connection, *, gives_up: bool = True) -> None:
        """Try a recall later, or give it up after some attempts: it can be asked for again."""
        log.warning("%s%s: not recalled (attempt %d): %s", file.endpoint, file.path, file.attempt, why)
        now = self._clock()
        if gives_up and file.attempt >= self._options.attempts:
            if rows.change(tx, file.id, (Held.RECALLING,), {"state": Held.TAPE, "error": why}):
                rows.fail(tx, [file.id], now, f"recall failed {file.attempt} times: {why}")
            return
        later = {"state": Held.QUEUED, "ready": now + self._options.retry, "error": why}
        rows.change(tx, file.id, (Held.RECALLING,), later)


def _adler32(source: Path, path: str) -> str:
    digest = hasher("adler32")
    with translated(path), source.open("rb", buffering=0) as data:
        while piece := data.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
