"""Stores around stores: count, retry, break on purpose. Each has the same calls as what it wraps.

The fast path (``peek``) is hidden by a wrapper: what must not be missed would pass beside it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from doma.core.errors import DomaError
from doma.store.protocol import Buffer, Reader, Stat, Store, Upload

T = TypeVar("T")


class Wrapped:
    """A store that passes every call on through :meth:`around`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def around(self, call: str, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        """Do one call of the store; wrappers override this.

        Args:
            call: ``stat``, ``open``, ``read`` … as in the protocol.
            work: Does it.
            again: Whether it may be done twice.
        """
        return await work()

    def passed(self, call: str, data: Buffer) -> Buffer:
        """Look at bytes on their way: ``read`` or ``write``."""
        return data

    async def stat(self, path: str) -> Stat:
        return await self.around("stat", lambda: self._store.stat(path), again=True)

    async def list(self, path: str) -> AsyncIterator[Stat]:
        async for stat in self._store.list(path):
            yield stat

    async def open(self, path: str) -> Reader:
        return WrappedReader(self, await self.around("open", lambda: self._store.open(path), again=True))

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> Upload:
        def work() -> Awaitable[Upload]:
            return self._store.create(
                path, size=size, checksums=checksums, if_version=if_version, if_absent=if_absent
            )

        return WrappedUpload(self, await self.around("create", work, again=True))

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        def work() -> Awaitable[None]:
            return self._store.delete(path, version=version, recursive=recursive)

        # Not again, even with a version: a repeated success would look like NotFound.
        await self.around("delete", work, again=False)

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        def work() -> Awaitable[bool]:
            return self._store.rename(source, target, overwrite=overwrite)

        return await self.around("rename", work, again=False)

    async def make_dir(self, path: str) -> None:
        await self.around("make_dir", lambda: self._store.make_dir(path), again=False)

    async def checksum(self, path: str, algorithm: str) -> str:
        return await self.around("checksum", lambda: self._store.checksum(path, algorithm), again=True)

    async def close(self) -> None:
        await self._store.close()


class WrappedReader:
    """A reader of a wrapped store."""

    def __init__(self, store: Wrapped, reader: Reader) -> None:
        self._store = store
        self._reader = reader

    @property
    def stat(self) -> Stat:
        return self._reader.stat

    async def read(self, start: int, stop: int) -> Buffer:
        data = await self._store.around("read", lambda: self._reader.read(start, stop), again=True)
        return self._store.passed("read", data)

    async def close(self) -> None:
        await self._reader.close()


class WrappedUpload:
    """An upload to a wrapped store."""

    def __init__(self, store: Wrapped, upload: Upload) -> None:
        self._store = store
        self._upload = upload

    async def write(self, data: Buffer) -> None:
        data = self._store.passed("write", data)
        await self._store.around("write", lambda: self._upload.write(data), again=False)

    async def commit(self) -> Stat:
        return await self._store.around("commit", self._upload.commit, again=False)

    async def abort(self) -> None:
        await self._upload.abort()


class Counted(Wrapped):
    """Counts calls, and the bytes of reads and writes."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.calls: dict[str, int] = {}
        self.bytes_read = 0
        self.bytes_written = 0

    async def around(self, call: str, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        self.calls[call] = self.calls.get(call, 0) + 1
        return await work()

    def passed(self, call: str, data: Buffer) -> Buffer:
        if call == "read":
            self.bytes_read += len(data)
        else:
            self.bytes_written += len(data)
        return data


@dataclass(slots=True)
class Fault:
    """What is to go wrong."""

    call: str
    """Which call: ``read``, ``write``, ``commit`` …"""
    at: int = 1
    """At the n-th such call, from 1 …"""
    times: int = 1
    """… and how often in a row."""
    error: DomaError | None = None
    """Raised instead of the call."""
    delay: float = 0.0
    """Seconds before the call."""
    flip: bool = False
    """Change one bit of the bytes."""
    seen: int = field(default=0, init=False)

    def strikes(self) -> bool:
        """Count one call; whether this is one that goes wrong."""
        self.seen += 1
        return self.at <= self.seen < self.at + self.times


class Faulty(Wrapped):
    """Goes wrong where the faults say."""

    def __init__(self, store: Store, *faults: Fault) -> None:
        super().__init__(store)
        self._faults = faults

    async def around(self, call: str, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        for fault in self._faults:
            if fault.call == call and not fault.flip and fault.strikes():
                await asyncio.sleep(fault.delay)
                if fault.error is not None:
                    raise fault.error
        return await work()

    def passed(self, call: str, data: Buffer) -> Buffer:
        for fault in self._faults:
            if fault.call == call and fault.flip and fault.strikes() and data:
                changed = bytearray(data)
                changed[len(changed) // 2] ^= 1
                return changed
        return data


class Retry(Wrapped):
    """Repeats what can be repeated when a retry may help.

    Args:
        store: Whom to ask.
        times: Attempts at most.
        wait: Seconds before the second attempt; doubled for each further one, with full jitter.
        rng: Source of the jitter.
    """

    def __init__(self, store: Store, *, times: int = 3, wait: float = 0.5, rng: Random | None = None) -> None:
        super().__init__(store)
        self._times = times
        self._wait = wait
        self._rng = rng or Random()  # noqa: S311 - jitter, no secret

    async def around(self, call: str, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        for attempt in range(1, self._times):
            try:
                return await work()
            except DomaError as e:
                if not again or e.retry == "no":
                    raise
                pause = self._rng.uniform(0, self._wait * 2 ** (attempt - 1))
                await asyncio.sleep(max(pause, min(e.retry_after or 0.0, 30.0)))
        return await work()
