"""Writing an object: in one request if it is small, else in parts that nobody sees before the end."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping

import crc32c

from doma.core.errors import Conflict, DomaError, OriginFailed
from doma.store.protocol import Buffer, Stat
from doma.store.s3_wire import Wire, stated
from doma.store.writing import Tally

PART = 8 << 20
"""Bytes of a part, of which two are held at most: one that fills and one on its way."""
MOST = 10_000
"""Parts of an upload."""
GROW = 1000
"""Parts after which they double, where the size was not announced."""

SUMS = "x-amz-meta-doma-sums"


class S3Upload:
    """An :class:`~doma.store.protocol.Upload` of one object.

    Args:
        wire: The service.
        tally: Size and checksums, against what was announced.
        conditions: Headers of the request that publishes: ``if-match`` or ``if-none-match``.
        check: Looks whether the conditions hold, just before.
        done: Makes the Stat of what was published, from its ETag and checksums.
    """

    def __init__(
        self,
        wire: Wire,
        tally: Tally,
        conditions: Mapping[str, str],
        check: Callable[[], Awaitable[None]],
        done: Callable[[str, dict[str, str]], Awaitable[Stat]],
    ) -> None:
        self.tally = tally
        self._wire, self._conditions, self._check, self._done = wire, conditions, check, done
        self._key = tally.path[1:]
        self._buffer = bytearray()
        self._upload = ""
        self._sent: list[tuple[str, str]] = []
        """ETag and CRC32C of each part."""
        self._sending: asyncio.Task[None] | None = None
        self._open = True

    async def write(self, data: Buffer) -> None:
        if not self._open:
            raise Conflict(f"{self.tally.path}: this upload is over; begin a new one")
        self.tally.expect(len(data))
        self._buffer += data
        if self.tally.slow:
            await asyncio.to_thread(self.tally.add, data)
        else:
            self.tally.add(data)
        try:
            while len(self._buffer) >= (size := self._part_size()):
                part = bytes(memoryview(self._buffer)[:size])
                del self._buffer[:size]
                await self._send(part)
        except BaseException:  # a cancellation, too: undone, and raised on
            await self.abort()  # A part is missing: nobody may publish the rest.
            raise

    async def commit(self) -> Stat:
        if not self._open:
            raise Conflict(f"{self.tally.path}: this upload is over; begin a new one")
        try:
            sums = self.tally.finish()
            await self._check()
            if not self._upload:
                version = await self._put(bytes(self._buffer), sums)
            else:
                if self._buffer:
                    await self._send(bytes(self._buffer))
                await self._arrived()
                await self._check()
                version = await self._complete()
        except BaseException:  # a cancellation, too: undone, and raised on
            await self.abort()
            raise
        self._open = False
        self._buffer.clear()
        return await self._done(version, sums)

    async def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        self._buffer.clear()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        if self._upload:
            try:
                await self._wire.told("DELETE", self._key, [("uploadId", self._upload)])
            except DomaError:
                return  # it stays until the next sweep; the error that led here tells more

    def _part_size(self) -> int:
        number = len(self._sent) + (self._sending is not None)
        if self.tally.size is not None:
            return max(PART, -(-self.tally.size // (MOST - 1)))
        return PART << number // GROW

    async def _send(self, part: bytes) -> None:
        """Begin to send a part, after the one before has arrived."""
        if not self._upload:
            headers = {"x-amz-checksum-algorithm": "CRC32C", "content-type": "application/octet-stream"}
            _, data = await self._wire.told("POST", self._key, [("uploads", "")], headers)
            self._upload = stated(data, "UploadId")
        await self._arrived()
        self._sending = asyncio.create_task(self._part(part, len(self._sent) + 1))

    async def _arrived(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            await sending

    async def _part(self, part: bytes, number: int) -> None:
        query = [("partNumber", str(number)), ("uploadId", self._upload)]
        sum_ = _crc(part)
        answer, _ = await self._wire.told("PUT", self._key, query, {"x-amz-checksum-crc32c": sum_}, part)
        self._sent.append((answer.get("etag"), sum_))

    async def _put(self, data: bytes, sums: Mapping[str, str]) -> str:
        headers = {
            "content-type": "application/octet-stream",
            "x-amz-checksum-crc32c": _crc(data),
            SUMS: written(sums),
            **self._conditions,
        }
        answer, _ = await self._wire.told("PUT", self._key, (), headers, data, self.tally.path)
        if not (version := answer.get("etag").strip('"')):
            raise OriginFailed(f"{self.tally.path}: the S3 service told no ETag of what it took; look again")
        return version

    async def _complete(self) -> str:
        parts = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag><ChecksumCRC32C>{crc}</ChecksumCRC32C></Part>"
            for n, (tag, crc) in enumerate(self._sent, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        query = [("uploadId", self._upload)]
        headers = {"content-type": "application/xml", **self._conditions}
        _, data = await self._wire.told("POST", self._key, query, headers, body, self.tally.path)
        return stated(data, "ETag")


def written(sums: Mapping[str, str]) -> str:
    """Checksums as one word: ``adler32=0a1b2c3d+md5=…``; the longest left out where they are too many."""
    pairs = sorted((f"{name}={value}" for name, value in sums.items()), key=len)
    while len(text := "+".join(pairs)) > 200:
        pairs.pop()
    return text


def _crc(data: bytes) -> str:
    return base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
