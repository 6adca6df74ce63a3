"""Push: one PUT to the destination, one version of our file, and a look at what has arrived there.

The last piece is sent only if the file is still the one that was begun with: a server publishes nothing of a
body that ends early. What the destination says it has is compared with what we have.

Source: rules W57, W58, W67 of the storage contract, and "Push" below W69.
"""

from collections.abc import AsyncIterator, Callable, Mapping

from doma.core.checksum import COMPUTABLE, digest_header, repr_digest_header, same
from doma.core.errors import (
    ChecksumMismatch,
    Conflict,
    DomaError,
    NotFound,
    PreconditionFailed,
    WrongSize,
)
from doma.doors.tpc_order import Order
from doma.doors.tpc_progress import Progress, blame
from doma.doors.tpc_remote import Body, Remote, digests_of, want
from doma.net.client import Response
from doma.net.sinks import Piece
from doma.store.protocol import Reader, Stat, Store

UNIT = 256 << 10
"""Bytes handed to the connection at once; TLS holds several times as much (T11, T12 of dataplane.md)."""


class Push:
    """One transfer from us.

    Args:
        order: What is wanted.
        remote: The destination.
        store, path: The source.
        progress: Kept up to date.
        started: Called when an answer to the client need not wait for us any longer.
    """

    def __init__(
        self,
        order: Order,
        remote: Remote,
        store: Store,
        path: str,
        progress: Progress,
        started: Callable[[], None],
    ) -> None:
        self._order, self._remote, self._store, self._path = order, remote, store, path
        self._progress, self._started = progress, started

    async def run(self) -> Stat:
        """Transfer and compare; the version that was sent."""
        reader = await self._opened()
        try:
            stat, checksums = reader.stat, await self._checksums(reader.stat)
            self._progress.size, self._progress.checksums = stat.size, dict(checksums)
            self._progress.doing = "querying passive endpoint"
            if not self._order.overwrite:
                await self._must_be_absent()
            while True:
                try:
                    answer = await self._put(reader, checksums)
                    await self._compare(answer, stat, checksums)
                except DomaError as e:
                    if not self._progress.bytes:
                        raise  # refused before anything was sent
                    await self._remote.again(e)
                else:
                    return stat
        finally:
            await reader.close()

    async def _opened(self) -> Reader:
        try:
            reader = await self._store.open(self._path)
        except Conflict as e:
            raise blame(Conflict(f"{e.message}; only files are copied to another server"), "source") from e
        except DomaError as e:
            raise blame(e, "source") from e
        return reader

    async def _checksums(self, stat: Stat) -> dict[str, str]:
        """Ours, the client's wish included. Raises PreconditionFailed when the client states other ones."""
        known = dict(stat.checksums)
        try:
            for name in {"adler32", *self._order.digests} - known.keys():
                self._progress.doing = "computing the checksum"
                known[name] = await self._store.checksum(self._path, name)
        except DomaError as e:
            raise blame(e, "source") from e
        for name, value in self._order.digests.items():
            if not same(name, known[name], value):
                wrong = f"source: its {name} is {known[name]}, the request says {value}; nothing was copied"
                raise blame(PreconditionFailed(wrong), "source")
        return known

    async def _must_be_absent(self) -> None:
        """Raises PreconditionFailed when something stands at the destination (``Overwrite: F``)."""
        if self._order.signed:
            return  # the signature is for PUT; If-None-Match goes with it
        async with await self._remote.ask("HEAD") as answer:
            if answer.status == 404:
                return
            if answer.status != 200:
                raise await self._remote.refusal(answer, "HEAD")
        raise blame(
            PreconditionFailed("destination: exists, and the request says Overwrite: F"), "destination"
        )

    async def _put(self, reader: Reader, checksums: Mapping[str, str]) -> Response:
        stat = reader.stat
        headers = want(self._order)
        told = {"adler32": checksums["adler32"]} | {name: checksums[name] for name in self._order.digests}
        headers["Digest"] = digest_header(told) or ""
        headers["Repr-Digest"] = repr_digest_header(told) or ""
        if not self._order.overwrite:
            headers["If-None-Match"] = "*"
        moved: list[DomaError] = []
        body: Body = b""  # XRootD never answers 100 Continue to an empty one
        if stat.size:
            headers["Content-Length"] = str(stat.size)
            body = lambda: self._pieces(reader, moved)  # noqa: E731 - made anew for each redirect
        self._progress.bytes = 0
        try:
            answer = await self._remote.ask("PUT", headers, body=body)
        except DomaError as e:
            raise (moved or [e])[0] from e
        if answer.status not in {200, 201, 204}:
            raise await self._remote.refusal(answer, "PUT")
        await answer.read()
        return answer

    async def _pieces(self, reader: Reader, moved: list[DomaError]) -> AsyncIterator[Piece]:
        """The file; what goes wrong with it here is left in ``moved``."""
        size = reader.stat.size
        self._started()
        self._progress.doing, self._progress.bytes = "transferring", 0
        try:
            for start in range(0, size, UNIT):
                stop = min(start + UNIT, size)
                data = await reader.read(start, stop)
                if stop == size and (await self._store.stat(self._path)).version != reader.stat.version:
                    raise PreconditionFailed(f"{self._path}: was replaced while it was copied; copy it again")
                yield memoryview(data)
                self._progress.bytes = stop
        except DomaError as e:
            moved.append(blame(e, "source"))
            raise
        self._progress.doing = "comparing"

    async def _compare(self, answer: Response, stat: Stat, checksums: Mapping[str, str]) -> None:
        """See that the destination has what was sent (W67).

        Raises:
            ChecksumMismatch, WrongSize: it has something else, or does not say what though it must.
        """
        there, size = digests_of(answer.head), None
        if not _common(there, checksums) and not self._order.signed:
            try:
                head, there = await self._remote.digests(stat.size, lambda: None)
                size = head.length
            except NotFound as e:
                raise blame(
                    WrongSize(f"destination: took the file and has none now: {e.message}"), "destination"
                ) from e
            except DomaError:
                if self._order.verify:
                    raise
        if size is not None and size != stat.size:
            raise blame(WrongSize(f"destination: has {size} bytes, {stat.size} were sent"), "transfer")
        common = _common(there, checksums)
        for name in common:
            if not same(name, there[name], checksums[name]):
                raise blame(
                    ChecksumMismatch(
                        f"checksum mismatch: source {name} {checksums[name]}, destination {there[name]}"
                    ),
                    "transfer",
                )
        if not common and self._order.verify and not self._order.signed:
            raise blame(
                ChecksumMismatch(
                    "destination: gives no checksum to compare with; send RequireChecksumVerification: false"
                ),
                "destination",
            )


def _common(there: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    return [name for name in COMPUTABLE if name in there and name in ours]
