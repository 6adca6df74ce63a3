"""The worker of a tape endpoint: its drives, and a janitor that evicts, removes and tidies.

One process works for an endpoint at a time: whoever holds the lock ``engine.lock`` in its folder; the kernel
passes it on when that process dies. All work is rows in the database, so a kill costs what was under way: it
is done again, into new temporaries, and the library writes nothing twice.

Source: W95 of the storage contract.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from doma.core.config import Tape
from doma.core.errors import DomaError, NotFound, PreconditionFailed
from doma.store import tape_files as rows
from doma.store.tape_buffer import Buffer, whole
from doma.store.tape_drive import Drives
from doma.store.tape_files import TapeFile
from doma.store.tape_library import Library
from doma.store.tape_reconcile import Reconciler
from doma.store.tape_tables import Held

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between two looks at what other processes have queued, and at the lock."""
WALK = 3600.0
"""Seconds between two looks at every file."""
VICTIMS = 200
"""Files that are evicted or removed between two looks."""


class Engine:
    """The drives and the janitor of one endpoint.

    Args:
        buffer: Its files and rows.
        library: Its tapes.
        options: Its section of the configuration.
        clock: Unix seconds.
    """

    def __init__(
        self, buffer: Buffer, library: Library, options: Tape, clock: Callable[[], float] = time.time
    ) -> None:
        self._buffer, self._library, self._options, self._clock = buffer, library, options, clock
        self.reconciler = Reconciler(buffer, clock)
        self._drives = Drives(buffer, library, options, clock, self.stray)
        self._wakes = [asyncio.Event() for _ in range(options.drives + 1)]
        self._strays: set[str] = set()
        self._used: dict[str, float] = {}
        self._walked = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, as soon as no other process does."""
        if self._task is None:
            self._task = asyncio.create_task(self._lead())

    async def stop(self) -> None:
        """End what is under way; it is done again at the next start. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def wake(self) -> None:
        """Look at the queues now."""
        for event in self._wakes:
            event.set()

    def stray(self, path: str) -> None:
        """A file was seen that has no row, or whose row is behind."""
        self._strays.add(path)
        self._wakes[-1].set()

    def read(self, ident: str) -> None:
        """A file was opened."""
        self._used[ident] = self._clock()

    async def _lead(self) -> None:
        root = self._buffer.root
        fd = os.open(root / "engine.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(fd):  # noqa: ASYNC110 - another process tells nothing when it ends
                await asyncio.sleep(INTERVAL)
            for name in ("in", "out"):
                await asyncio.to_thread(_empty, root / name)
            while not await self._tried("recovery", self.reconciler.recover):  # noqa: ASYNC110 - retried
                await asyncio.sleep(INTERVAL)
            async with asyncio.TaskGroup() as group:
                for drive in range(self._options.drives):
                    group.create_task(self._loop(drive, partial(self._drives.turn, drive)))
                group.create_task(self._loop(-1, self.tidy))
        finally:
            os.close(fd)

    async def _loop(self, number: int, turn: Callable[[], Awaitable[bool | None]]) -> None:
        """Take turns until cancelled; pause after one that had nothing to do."""
        wake = self._wakes[number]
        while True:
            wake.clear()
            if await self._tried("janitor" if number < 0 else f"drive {number}", turn):
                if number >= 0:
                    self._wakes[-1].set()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await wake.wait()

    async def _tried(self, what: str, turn: Callable[[], Awaitable[bool | None]]) -> bool:
        """What a turn says (nothing is yes); False if it failed."""
        try:
            return await turn() is not False
        except DomaError as e:
            log.warning("%s: %s: %s", self._buffer.endpoint, what, e.message)
        except Exception:  # the outermost loop of a worker: say it, and go on
            log.exception("%s: %s failed", self._buffer.endpoint, what)
        return False

    # --- the janitor ---

    async def tidy(self) -> bool:
        """One turn of the janitor; False if there was nothing to do."""
        used, self._used = self._used, {}
        if used:
            await self._buffer.db.run(partial(rows.touch, used=used))
        strays, self._strays = self._strays, set()
        await self.reconciler.adopt(strays)
        did = await self._remove() + await self._evict()
        if self._clock() - self._walked >= WALK:
            self._walked = self._clock()
            await self.reconciler.walk()
            did += 1
        if did or strays:
            for event in self._wakes[:-1]:
                event.set()
        return did > 0

    async def _remove(self) -> int:
        """Take deleted and replaced files from the disk and from tape; returns how many."""
        buffer, count = self._buffer, 0
        doomed = partial(_doomed, endpoint=buffer.endpoint, now=self._clock())
        for file in await buffer.db.look(doomed):
            if file.id in self._drives.writing:
                continue
            with suppress(NotFound, PreconditionFailed):
                await buffer.store.delete(file.path, version=file.disk)
            try:
                await self._library.remove(file.id, file.place)
            except DomaError as e:
                log.warning("%s%s: not removed from tape: %s", buffer.endpoint, file.path, e.message)
                later = {"ready": self._clock() + self._options.retry, "error": e.message}
                await buffer.db.run(partial(rows.change, ident=file.id, before=(Held.DOOMED,), values=later))
                continue
            await buffer.db.run(partial(rows.forget, ident=file.id))
            count += 1
        return count

    async def _evict(self) -> int:
        """Replace copies by stubs, if the buffer is too full; returns how many."""
        buffer, options, count = self._buffer, self._options, 0
        used = await buffer.db.look(partial(rows.copied, endpoint=buffer.endpoint))
        if used <= options.high * options.buffer:
            return 0
        find = partial(rows.evictable, endpoint=buffer.endpoint, now=self._clock(), limit=VICTIMS)
        for file in await buffer.db.look(find):
            if used <= options.low * options.buffer:
                break
            if await self._evict_one(file):
                used -= file.size
                count += 1
        return count

    async def _evict_one(self, file: TapeFile) -> bool:
        buffer, now = self._buffer, self._clock()
        if not await buffer.db.run(partial(rows.begin_eviction, ident=file.id, now=now)):
            return False
        return await whole(self._stub(file, now))

    async def _stub(self, file: TapeFile, now: float) -> bool:
        buffer = self._buffer
        async with buffer.names.held():
            try:
                stat = await buffer.put_stub(file, instead=file.disk)
            except DomaError as e:
                log.info("%s%s: not evicted: %s", buffer.endpoint, file.path, e.message)
                await buffer.db.run(partial(rows.stop_eviction, file=file, now=now))
                self.stray(file.path)
                return False
            await buffer.db.run(partial(rows.end_eviction, file=file, disk=stat.version, now=now))
        return True


def _doomed(tx: Connection, endpoint: str, now: float) -> list[TapeFile]:
    return [f for f in rows.in_state(tx, endpoint, Held.DOOMED, limit=VICTIMS) if f.ready <= now]


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
