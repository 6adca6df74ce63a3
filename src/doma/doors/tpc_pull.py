"""Pull: one GET from the source, straight out of the receive buffer into an upload of ours.

A transfer that breaks goes on at the byte where it stopped as long as the source has the same version, else
from the start; the checksum of the whole is compared before anything is published.

Source: rules W42-W49, W59, W69 of the storage contract.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from doma.core.errors import (
    ChecksumMismatch,
    DomaError,
    OriginFailed,
    Replaced,
    TimedOut,
    WrongSize,
)
from doma.doors.tpc_order import Order
from doma.doors.tpc_progress import Progress, blame
from doma.doors.tpc_remote import Remote
from doma.doors.tpc_source import BLOCK, Source, Version
from doma.net.client import Response
from doma.net.sinks import Flow
from doma.store.protocol import CanFeed, CanScatter, CanTag, Stat, Store, Upload

_COMBINED = frozenset({"adler32"})
"""Checksums of a whole that follow from those of its parts."""


class Writer(Protocol):
    """Takes bytes in order: an upload or a part of one."""

    async def write(self, data: bytes) -> None: ...


@dataclass(slots=True)
class Target:
    """Where the bytes are to be published, and on which condition."""

    store: Store
    path: str
    if_version: str | None = None
    if_absent: bool = False
    upload: str = ""
    """The client's ``X-Upload-Id``, kept with the file for a DELETE that means this attempt alone."""


class Pull:
    """One transfer to us.

    Args:
        order: What is wanted.
        remote: The other server.
        source: Its file.
        target: The destination.
        progress: Kept up to date.
        started: Called when an answer to the client need not wait for us any longer.
    """

    def __init__(
        self,
        order: Order,
        remote: Remote,
        source: Source,
        target: Target,
        progress: Progress,
        started: Callable[[], None],
    ) -> None:
        self._order, self._remote, self._source, self._target = order, remote, source, target
        self._progress, self._started = progress, started

    async def run(self) -> Stat:
        """Transfer, verify, publish. Cancelled or failed, it leaves nothing."""
        while True:
            try:
                return await self._whole()
            except Replaced as e:
                await self._remote.again(e)
                self._progress.bytes = 0

    async def _whole(self) -> Stat:
        answer, flow, version = await self._source.open()
        try:
            expected = self._source.expected(version)
            if version.size is None and not expected and "chunked" not in answer.get("transfer-encoding"):
                raise blame(OriginFailed("source: tells neither the length nor a checksum"), "source")
            self._progress.size, self._progress.doing = version.size, "transferring"
            size = self._order.size if version.size is None else version.size
            upload = await self._create(size, expected)
            try:
                self._started()
                several = answer.status == 206 and (version.size or 0) > BLOCK
                if several and isinstance(upload, CanScatter) and _COMBINED.issuperset(expected):
                    await self._parallel(upload, answer, flow, version)
                else:
                    await self._fetch(upload, 0, version.size, version, (answer, flow))
                self._progress.doing = "verifying and publishing"
                return await self._commit(upload)
            except BaseException:  # a cancellation, too: undone, and raised on
                await upload.abort()
                raise
        finally:
            answer.close()

    async def _create(self, size: int | None, expected: Mapping[str, str]) -> Upload:
        target = self._target
        try:
            upload = await target.store.create(
                target.path,
                size=size,
                checksums=expected or None,
                if_version=target.if_version,
                if_absent=target.if_absent,
            )
        except DomaError as e:
            raise blame(e, "destination") from e
        if target.upload and isinstance(upload, CanTag):
            upload.tag(target.upload)
        return upload

    async def _commit(self, upload: Upload) -> Stat:
        try:
            return await upload.commit()
        except (ChecksumMismatch, WrongSize) as e:
            wrong = type(e)(
                f"checksum mismatch: {e.message}" if isinstance(e, ChecksumMismatch) else e.message
            )
            raise blame(wrong, "transfer") from e
        except DomaError as e:
            raise blame(e, "destination") from e

    async def _fetch(
        self,
        writer: Writer,
        start: int,
        stop: int | None,
        version: Version,
        begun: tuple[Response, Flow] | None,
    ) -> None:
        """Bring ``[start, stop)`` into a writer that is at ``start``; a broken connection is replaced."""
        at = start
        while True:
            try:
                answer, flow = begun or await self._source.resume(at, stop, version)
                begun = None
                at = await self._pour(writer, answer, flow, at, stop)
                if stop is None or at == stop:
                    return
            except _Broken as e:
                at = e.at
                await self._remote.again(e.error)
            except Replaced:
                raise  # a new version must be begun with from its start
            except DomaError as e:
                await self._remote.again(e)

    async def _pour(self, writer: Writer, answer: Response, flow: Flow, at: int, stop: int | None) -> int:
        """Move one answer's body; where the writer is then."""
        feed = writer.feed if isinstance(writer, CanFeed) else _never

        def take(data: memoryview) -> bool:
            if not feed(data):
                return False
            self._progress.bytes += len(data)
            return True

        async def write(data: bytes) -> None:
            await writer.write(data)
            self._progress.bytes += len(data)

        try:
            await flow.pour(take, write)
        except DomaError as e:
            if flow.error is not e:
                raise blame(e, "destination") from e
            # XRootD 5.5 now and then sends a head over a kept connection, and never its body.
            if isinstance(e, TimedOut) and not (answer.reused and not flow.got):
                who = ", ".join(sorted({peer[0] for peer in self._progress.peers}))
                late = TimedOut(f"source: no data for too long from {who} after {at + flow.got} bytes")
                raise blame(late, "source") from e
            broken = OriginFailed(f"source: {e.message}", transient=True)
            raise _Broken(at + flow.got, blame(broken, "source")) from e
        finally:
            answer.close()
        return at + flow.got

    async def _parallel(self, upload: CanScatter, answer: Response, flow: Flow, version: Version) -> None:
        """Several ranged GETs at once, each writing its block where it belongs."""
        size = version.size or 0
        starts = iter(range(BLOCK, size, BLOCK))

        async def work(begun: tuple[Response, Flow] | None) -> None:
            if begun:
                await self._fetch(upload.part(0, BLOCK), 0, BLOCK, version, begun)
            for start in starts:
                stop = min(start + BLOCK, size)
                await self._fetch(upload.part(start, stop), start, stop, version, None)

        workers = [asyncio.create_task(work((answer, flow)))]
        workers += [asyncio.create_task(work(None)) for _ in range(self._order.streams - 1)]
        try:
            for done in asyncio.as_completed(workers):
                await done
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)  # the first of them was raised


class _Broken(Exception):
    """A body ended early; the writer is at ``at``."""

    def __init__(self, at: int, error: DomaError) -> None:
        super().__init__(error.message)
        self.at, self.error = at, error


def _never(data: memoryview) -> bool:
    return False
