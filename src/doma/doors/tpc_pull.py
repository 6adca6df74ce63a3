"""Pull: one GET from the source, straight out of the receive buffer into an upload of ours.

The answer to the GET says all that is needed (size, version, checksum), so that no HEAD goes before it. A
source that tells checksums only when asked by HEAD is remembered, and asked first the next time. A transfer
that breaks goes on at the byte where it stopped as long as the source has the same version, else from the
start; the checksum of the whole is compared before anything is published.

Source: rules W42-W49, W57-W59, W61 of the storage contract.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from doma.core.checksum import COMPUTABLE, same
from doma.core.errors import (
    ChecksumMismatch,
    DomaError,
    OriginFailed,
    PreconditionFailed,
    Replaced,
    TimedOut,
    WrongSize,
)
from doma.doors.tpc_order import Order
from doma.doors.tpc_progress import Progress, blame
from doma.doors.tpc_remote import Remote, digests_of, is_transient, want
from doma.net.byteranges import content_range
from doma.net.client import Response
from doma.net.sinks import Flow
from doma.store.http_status import is_strong, version_of
from doma.store.protocol import CanFeed, CanScatter, Stat, Store, Upload

BLOCK = 64 << 20
"""Bytes of one ranged GET when there are several streams."""
RETRIES = 3
PAUSES = (0.2, 2.0, 8.0)
"""Seconds before each of them."""
KNOWN = 1024
"""Origins of which it is remembered how they tell checksums."""

_ODD = {403, 404, 500}
"""What XRootD 5.5 answers to a GET now and then without meaning it: 500 for a checksum of a file that is not
there, 404 while a connection is still busy with its last request. A HEAD tells what is true."""
_CHEAP = ("adler32", "crc32c")


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


@dataclass(frozen=True, slots=True)
class _Version:
    """What the source said about its file when its bytes began to flow."""

    text: str
    size: int | None
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """Whether a mix of two versions would be noticed."""
        return self.size is not None and (is_strong(self.text) or bool(self.checksums))


class Pull:
    """One transfer to us.

    Args:
        order: What is wanted.
        remote: The source.
        target: The destination.
        progress: Kept up to date.
        started: Called when an answer to the client need not wait for us any longer.
        by_head: Origins that tell checksums by HEAD only; shared by all transfers.
    """

    def __init__(
        self,
        order: Order,
        remote: Remote,
        target: Target,
        progress: Progress,
        started: Callable[[], None],
        by_head: dict[str, None],
    ) -> None:
        self._order, self._remote, self._target = order, remote, target
        self._progress, self._started, self._by_head = progress, started, by_head

    async def run(self) -> Stat:
        """Transfer, verify, publish. Cancelled or failed, it leaves nothing."""
        while True:
            try:
                return await self._whole()
            except Replaced as e:
                await self._again(e)
                self._progress.bytes = 0

    async def _whole(self) -> Stat:
        answer, flow, version = await self._open()
        try:
            expected = self._expected(version)
            if version.size is None and not expected and "chunked" not in answer.get("transfer-encoding"):
                raise blame(OriginFailed("source: tells neither the length nor a checksum"), "source")
            self._progress.size, self._progress.doing = version.size, "transferring"
            size = self._order.size if version.size is None else version.size
            upload = await self._create(size, expected)
            try:
                self._started()
                if answer.status == 206 and (version.size or 0) > BLOCK and isinstance(upload, CanScatter):
                    await self._parallel(upload, answer, flow, version)
                else:
                    await self._fetch(upload, 0, version.size, version, (answer, flow))
                self._progress.doing = "verifying and publishing"
                return await self._commit(upload)
            except BaseException:
                await upload.abort()
                raise
        finally:
            answer.close()

    async def _open(self) -> tuple[Response, Flow, _Version]:
        """Begin to read, and know the checksum that must come out (W58: before data flow)."""
        order = self._order
        self._progress.doing = "querying passive endpoint"
        if order.signed:
            return await self._begin(None, {})
        if order.streams > 1 or order.host in self._by_head:
            return await self._surely(*await self._ask())
        try:
            answer, flow, version = await self._begin(None, {})
        except DomaError as e:
            if e.detail.get("status") not in _ODD:
                raise
            try:
                told = await self._ask()
            except DomaError as truth:  # of the same word twice, the one to GET has a text
                same_word = truth.detail.get("status") == e.detail["status"]
                raise (e if same_word else truth) from e
            return await self._surely(*told)
        if _usable(version.checksums) or not (order.verify or order.digests):
            return answer, flow, version
        answer.close()
        told = await self._ask()
        self._remember(order.host)
        return await self._surely(*told)

    async def _surely(self, size: int | None, checksums: dict[str, str]) -> tuple[Response, Flow, _Version]:
        """Send the GET for a file that a HEAD has just shown to be there."""
        while True:
            try:
                return await self._begin(size, checksums)
            except DomaError as e:
                e.detail["transient"] = e.detail.get("status") in _ODD - {403}
                await self._again(e)

    async def _ask(self) -> tuple[int | None, dict[str, str]]:
        """Size and checksums by HEAD."""
        head, checksums = await self._remote.digests(self._order.size, self._started)
        return head.length, checksums

    async def _begin(self, size: int | None, checksums: dict[str, str]) -> tuple[Response, Flow, _Version]:
        """Send the GET; it is asked for checksums too when nobody was before."""
        several = self._order.streams > 1 and (size is None or size > BLOCK)
        asked = {} if checksums else want(self._order)
        answer, flow = await self._get(0, BLOCK if several else None, asked)
        found = content_range(answer.get("content-range")) if answer.status == 206 else None
        if answer.status == 206 and (found is None or found[0] or found[2] is None):
            answer.close()  # no part that could be trusted: then the whole
            answer, flow = await self._get(0, None, asked)
            found = None
        size = found[2] if found else answer.head.length
        if asked:  # XRootD 5.5 otherwise repeats what it said of another file
            checksums = digests_of(answer.head)
        return answer, flow, _Version(version_of(answer.head, size or 0), size, checksums)

    def _remember(self, host: str) -> None:
        if len(self._by_head) >= KNOWN:
            del self._by_head[next(iter(self._by_head))]
        self._by_head[host] = None

    def _expected(self, version: _Version) -> dict[str, str]:
        """The checksums to verify: the client's, and the source's as far as they are cheap or alone.

        Raises:
            PreconditionFailed: client and source disagree.
            PreconditionFailed: nobody states one, and the client wants to be sure.
        """
        order, expected = self._order, dict(self._order.digests)
        if None not in {order.size, version.size} and order.size != version.size:
            raise blame(
                PreconditionFailed(f"source: has {version.size} bytes, the request says {order.size}"),
                "source",
            )
        for name, value in expected.items():
            if name in version.checksums and not same(name, version.checksums[name], value):
                raise blame(
                    PreconditionFailed(
                        f"source: its {name} is {version.checksums[name]}, the request says {value};"
                        " nothing was copied"
                    ),
                    "source",
                )
        usable = _usable(version.checksums)
        cheap = [name for name in usable if name in _CHEAP]
        if not expected or cheap:
            expected |= {name: usable[name] for name in cheap or list(usable)[:1]}
        if not expected and order.verify:
            raise blame(
                PreconditionFailed(
                    "source: gives no checksum to compare with; state one in the header Digest, or send"
                    " RequireChecksumVerification: false"
                ),
                "source",
            )
        return expected

    async def _create(self, size: int | None, expected: Mapping[str, str]) -> Upload:
        target = self._target
        try:
            return await target.store.create(
                target.path,
                size=size,
                checksums=expected or None,
                if_version=target.if_version,
                if_absent=target.if_absent,
            )
        except DomaError as e:
            raise blame(e, "destination") from e

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
        version: _Version,
        begun: tuple[Response, Flow] | None,
    ) -> None:
        """Bring ``[start, stop)`` into a writer that is at ``start``; a broken connection is replaced."""
        at = start
        while True:
            try:
                answer, flow = begun or await self._resume(at, stop, version)
                begun = None
                at = await self._pour(writer, answer, flow, at, stop)
                if stop is None or at == stop:
                    return
            except _Broken as e:
                at = e.at
                await self._again(e.error)
            except Replaced:
                raise  # a new version must be begun with from its start
            except DomaError as e:
                await self._again(e)

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
            if isinstance(e, TimedOut):
                who = ", ".join(sorted({peer[0] for peer in self._progress.peers}))
                late = TimedOut(f"source: no data for too long from {who} after {at + flow.got} bytes")
                raise blame(late, "source") from e
            broken = OriginFailed(f"source: {e.message}", transient=True)
            raise _Broken(at + flow.got, blame(broken, "source")) from e
        finally:
            answer.close()
        return at + flow.got

    async def _get(
        self, start: int, stop: int | None, headers: Mapping[str, str] | None = None
    ) -> tuple[Response, Flow]:
        """A GET whose body waits in the flow. Raises for every answer but 200 and 206."""
        flow = Flow()
        part = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop else {}
        answer = await self._remote.ask(
            "GET",
            {**part, **(headers or {})},
            on_head=lambda head: flow if head.status in {200, 206} else None,
        )
        if answer.status not in {200, 206}:
            if answer.status == 416 and not start:  # the file is empty: then there is no range in it
                return await self._get(0, None, headers)
            raise await self._remote.refusal(answer, "GET")
        if answer.status == 206 and not part:
            answer.close()
            raise blame(OriginFailed("source: answered with a part where the whole was asked for"), "source")
        return answer, flow

    async def _resume(self, at: int, stop: int | None, version: _Version) -> tuple[Response, Flow]:
        """Go on reading at a byte.

        Raises:
            Replaced: the source has another version, or cannot tell: begin anew.
        """
        if not version.resumable:
            raise blame(Replaced("source: broke off, and tells no version by which to go on"), "source")
        match = {"If-Match": f'"{version.text}"'} if is_strong(version.text) else {}
        try:
            answer, flow = await self._get(at, stop, match)
        except PreconditionFailed as e:
            raise blame(Replaced(e.message), "source") from e
        found = content_range(answer.get("content-range"))
        whole = answer.status == 200 and at == 0 and answer.head.length == version.size
        right = whole or (
            found is not None and found[0] == at and found[1:] == (stop or found[1], version.size)
        )
        if not right or version_of(answer.head, version.size or 0) != version.text:
            answer.close()
            raise blame(Replaced("source: has another version of the file now"), "source")
        return answer, flow

    async def _parallel(self, upload: CanScatter, answer: Response, flow: Flow, version: _Version) -> None:
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
            await asyncio.wait(workers)

    async def _again(self, error: DomaError) -> None:
        """Wait before another attempt, or raise the error if none is due."""
        tries = self._progress.attempts
        if tries > RETRIES or not (isinstance(error, Replaced) or is_transient(error, "source")):
            raise error
        self._progress.attempts = tries + 1
        self._progress.doing = f"waiting to try again: {error.message}"
        await asyncio.sleep(PAUSES[tries - 1])
        self._progress.doing = "transferring"


class _Broken(Exception):
    """A body ended early; the writer is at ``at``."""

    def __init__(self, at: int, error: DomaError) -> None:
        super().__init__(error.message)
        self.at, self.error = at, error


def _usable(checksums: Mapping[str, str]) -> dict[str, str]:
    return {name: checksums[name] for name in (*_CHEAP, *COMPUTABLE) if name in checksums}


def _never(data: memoryview) -> bool:
    return False
