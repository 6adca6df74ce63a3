"""Making rows and disk agree again: after a kill, and about what others put into the buffer or took away.

Whatever can be decided is decided alone, under the lock of names, where no publication is half done. The tape
is believed: a file that is on tape and was not deleted through us gets its stub back.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from doma.core.errors import DomaError, NotFound, PreconditionFailed
from doma.store import tape_files as rows
from doma.store.protocol import Stat
from doma.store.tape_buffer import Buffer, has_content
from doma.store.tape_files import TapeFile
from doma.store.tape_stages import chunks
from doma.store.tape_tables import COPIES, Held

log = logging.getLogger(__name__)

BATCH = 500
GROUP = 50
"""Files that are looked at and written about in one turn of the lock: others wait for some milliseconds."""


class Reconciler:
    """Compares the buffer of one endpoint with its rows.

    Args:
        buffer: The files and the rows.
        clock: Unix seconds.
    """

    def __init__(self, buffer: Buffer, clock: Callable[[], float] = time.time) -> None:
        self._buffer, self._clock = buffer, clock

    async def recover(self) -> None:
        """Free what a killed process had claimed, and end its evictions. Only for whoever leads."""
        buffer = self._buffer
        await buffer.db.run(partial(rows.give_back, endpoint=buffer.endpoint))
        for file in await buffer.db.look(lambda tx: rows.in_state(tx, buffer.endpoint, Held.EVICTING)):
            async with buffer.names.held(alone=True):
                await self._adopt([file.path])
                await buffer.db.run(partial(rows.stop_eviction, file=file, now=self._clock()))

    async def walk(self) -> None:
        """Look at every file in the buffer, then at every row."""
        folders = ["/"]
        while folders:
            folder, batch = folders.pop(), list[Stat]()
            try:
                async for stat in self._buffer.store.list(folder):
                    if stat.is_dir:
                        folders.append(stat.path)
                    else:
                        batch.append(stat)
                    if len(batch) == BATCH:
                        await self._compare(batch)
                        batch = []
            except DomaError as e:
                log.info("%s%s: %s", self._buffer.endpoint, folder, e.message)  # it went meanwhile
            await self._compare(batch)
        last = ""
        while page := await self._buffer.db.look(self._page(last)):
            last = page[-1].id
            for file in page:
                if file.state is not Held.DOOMED and not await self._is_there(file):
                    await self._missing(file.id)

    def _page(self, last: str) -> Callable[[Connection], list[TapeFile]]:
        return partial(rows.page, endpoint=self._buffer.endpoint, after=last, limit=BATCH)

    async def _compare(self, stats: Sequence[Stat]) -> None:
        if not stats:
            return
        buffer, asked = self._buffer, [stat for stat in stats if has_content(stat)]
        versions = [stat.version for stat in asked]
        known = await buffer.db.look(partial(rows.by_disk, endpoint=buffer.endpoint, versions=versions))

        def fits(stat: Stat) -> bool:
            row = known.get(stat.version)
            return row is not None and (row.state is Held.DOOMED or row.path == stat.path)

        await self.adopt(stat.path for stat in asked if not fits(stat))

    async def adopt(self, paths: Iterable[str]) -> None:
        """Give files that have no row one, or bring their rows up to date.

        What is gone is no error; what cannot be looked at is left for the next walk.
        """
        for some in chunks(paths, GROUP):
            async with self._buffer.names.held(alone=True):
                await self._adopt(some)

    async def _adopt(self, paths: Sequence[str]) -> None:
        buffer, now = self._buffer, self._clock()
        stats = list[Stat]()
        for path in paths:
            try:
                stats.append(await buffer.store.stat(path))
            except NotFound:
                continue
            except DomaError as e:
                log.warning("%s%s: %s", buffer.endpoint, path, e.message)
        try:
            found = [pair for pair in await buffer.rows(stats) if pair is not None and has_content(pair[0])]
        except PreconditionFailed as e:
            if len(paths) == 1:
                log.warning("%s%s", buffer.endpoint, e.message)
                return
            for path in paths:  # one of them changes all the time: the others need not wait for it
                await self._adopt([path])
            return
        # Hard links are names of one content, which has one row.
        once = {stat.version: stat for stat, row in found if row is None}
        new = [fresh(buffer.endpoint, stat, now) for stat in once.values()]
        behind = [await self._agree(stat, row, now) for stat, row in found if row is not None]

        def write(tx: Connection) -> None:
            rows.add(tx, new, (), now)
            for change in behind:
                change(tx)

        if new or behind:
            await buffer.db.run(write)

    async def _agree(self, stat: Stat, row: TapeFile, now: float) -> Callable[[Connection], None]:
        """What makes a row say what lies on disk."""
        buffer = self._buffer
        values: dict[str, Any] = {"path": stat.path}
        is_copy = False
        if row.disk != stat.version:
            is_copy = await buffer.by_stub(stat) is None
            values["disk"] = stat.version
            if is_copy:
                values["state"] = Held.BOTH
            elif row.state in COPIES:
                values["state"] = Held.TAPE

        def write(tx: Connection) -> None:
            if row.state is Held.EVICTING and "disk" in values and not is_copy:
                rows.end_eviction(tx, row, stat.version, now)
            else:
                rows.change(tx, row.id, (row.state,), values)
            if is_copy:
                rows.online(tx, row, now)

        return write

    async def _is_there(self, file: TapeFile) -> bool:
        try:
            return (await self._buffer.store.stat(file.path)).version == file.disk
        except DomaError:
            return False

    async def _missing(self, ident: str) -> None:
        """A row whose file does not lie where it was: replaced, or taken away by others."""
        buffer, now = self._buffer, self._clock()
        async with buffer.names.held(alone=True):
            file = await buffer.db.look(partial(rows.by_id, ident=ident))
            if file is None or file.state is Held.DOOMED or await self._is_there(file):
                return
            try:
                _, there = await buffer.look(file.path)
            except NotFound:
                await self._restore(file, now)
                return
            except DomaError as e:
                log.warning("%s%s: %s", buffer.endpoint, file.path, e.message)
                return
            if there is None or there.id != ident:
                await buffer.db.run(partial(rows.doom, idents=[ident], now=now))

    async def _restore(self, file: TapeFile, now: float) -> None:
        buffer = self._buffer
        where = f"{buffer.endpoint}{file.path}"
        if file.place is None:
            log.error("%s: was taken from the disk before it was on tape; it is lost", where)
            await buffer.db.run(partial(rows.doom, idents=[file.id], now=now))
            return
        log.warning("%s: was taken from the disk, but is on tape: it can be staged", where)
        try:
            stat = await buffer.put_stub(file, instead=None)
        except DomaError as e:
            log.warning("%s: its stub cannot be put back: %s", where, e.message)
            return
        state = Held.TAPE if file.state in {*COPIES, Held.EVICTING} else file.state
        there = {"disk": stat.version, "state": state}
        back = partial(rows.change, ident=file.id, before=(file.state,), values=there)
        await buffer.db.run(back)


def fresh(endpoint: str, stat: Stat, now: float) -> TapeFile:
    """The row of a content that was published just now."""
    return TapeFile(
        id=secrets.token_hex(16),
        endpoint=endpoint,
        path=stat.path,
        version=stat.version,
        disk=stat.version,
        size=stat.size,
        modified=stat.modified,
        checksums=dict(stat.checksums),
        since=now,
        used=now,
    )
