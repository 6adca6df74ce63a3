"""The body of an S3 upload: unwrapped from ``aws-chunked``, and held against what was said about it.

Bytes are handed on as they come; nothing is published before :meth:`Body.pieces` has ended without an error,
so a wrong chunk signature or trailer costs the whole upload and never shows a part of it.

Source: AWS "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks",
"… Including Trailing Headers"; "Checking object integrity".
"""

import asyncio
import base64
import binascii
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from hashlib import sha256
from typing import Any

from zlib_ng import zlib_ng

from doma.core.checksum import Hasher, hasher
from doma.core.errors import BadRequest, ChecksumMismatch, Unsupported, WrongSize
from doma.doors.s3_sign import Signed
from doma.store.s3_signature import EMPTY, UNSIGNED

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

CHECKSUMS = {"crc32": 4, "crc32c": 4, "crc64nvme": 8, "sha1": 20, "sha256": 32, "md5": 16}
"""What ``x-amz-checksum-…`` may say, and its length in bytes."""
_OURS = {"sha1": "sha-1", "sha256": "sha-256", "crc32c": "crc32c", "md5": "md5"}

_PREFIX = "x-amz-checksum-"
_HEX = re.compile(r"[0-9a-fA-F]{1,10}")
_HEAD = 1024
"""Bytes of a chunk's head at most."""
_TRAILER = 4096
_LARGE = 64 << 10
"""Pieces from this size on are hashed in a thread, where the hash is a slow one."""


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: "bytes | bytearray | memoryview") -> None:
        self.value = zlib_ng.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


def summer(name: str) -> Hasher:
    """A fresh checksum under S3's name.

    Raises:
        Unsupported: S3 has more than we compute.
    """
    if name == "crc32":
        return _Crc32()
    if name == "crc64nvme":
        from doma.doors.s3_crc64 import Crc64

        return Crc64()
    if name in _OURS:
        return hasher(_OURS[name])
    raise Unsupported(f"{_PREFIX}{name[:40]}: this checksum is not known here; use {', '.join(CHECKSUMS)}")


class Body:
    """A request's body and every checksum that came with it.

    Args:
        headers: Of the request.
        receive: ASGI's.
        signed: The request's signature, checked; a chunk's signature goes on from it.
        secret: The secret key that it was made with.
        shown: The path, for messages.

    Raises:
        BadRequest: headers that contradict each other.
    """

    def __init__(
        self, headers: Mapping[str, str], receive: Receive, signed: Signed, secret: str, shown: str
    ) -> None:
        self._receive, self._shown, self._signed = receive, shown, signed
        self._held = bytearray()
        self._more = True
        self.streaming = signed.payload.startswith("STREAMING-")
        self._key: bytes | None = None
        if signed.payload.startswith("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"):
            assert signed.scope is not None
            self._key = signed.scope.key(secret)
        elif self.streaming and signed.payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
            raise Unsupported(f"x-amz-content-sha256: {signed.payload[:60]} is not offered here")
        self._previous = signed.signature
        self.length = _length(headers, "x-amz-decoded-content-length" if self.streaming else "content-length")
        """Bytes of the content; None when nobody said."""
        self.stated: dict[str, bytes] = {}
        """Checksum under S3's name to its bytes."""
        for name, size in CHECKSUMS.items():
            text = headers.get("content-md5" if name == "md5" else _PREFIX + name)
            if text is not None:
                self.stated[name] = _decoded(name, text, size)
        self._summers = {name: summer(name) for name in self.stated}
        if not self.streaming and signed.payload != UNSIGNED:
            self._summers["sha256"] = summer("sha256")
        self._trailer = headers.get("x-amz-trailer", "").strip().lower() if self.streaming else ""
        if self._trailer:
            name = self._trailer.removeprefix(_PREFIX)
            if name == self._trailer:
                raise BadRequest(f"x-amz-trailer: only a checksum can trail, not {name[:40]}")
            self._summers[name] = summer(name)
        self._slow = bool(self._summers.keys() - {"crc32", "crc32c"})
        self.found: dict[str, str] = {}
        """Checksum under S3's name to base64, at the end."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content.

        Raises:
            ChecksumMismatch, WrongSize, BadRequest: what came is not what was announced.
        """
        size = 0
        source = self._chunks() if self.streaming else self._plain()
        async for piece in source:
            size += len(piece)
            if self.length is not None and size > self.length:
                raise self._wrong(f"more than the announced {self.length} bytes came")
            if self._slow and len(piece) >= _LARGE:
                await asyncio.to_thread(self._sum, piece)
            else:
                self._sum(piece)
            yield piece
        if self.length is not None and size != self.length:
            raise self._wrong(f"{size} bytes came, {self.length} were announced")
        self._judge()

    async def whole(self, limit: int) -> bytes:
        """All of it. Raises BadRequest when it is longer than ``limit`` bytes; what :meth:`pieces` raises."""
        data = bytearray()
        async for piece in self.pieces():
            data += piece
            if len(data) > limit:
                raise BadRequest(f"{self._shown}: the body may have at most {limit} bytes", s3="MalformedXML")
        return bytes(data)

    def _sum(self, piece: bytes) -> None:
        for one in self._summers.values():
            one.update(piece)

    def _judge(self) -> None:
        for name, one in self._summers.items():
            found = bytes.fromhex(one.hexdigest())
            if name in self.stated and not hmac.compare_digest(found, self.stated[name]):
                raise ChecksumMismatch(f"{self._shown}: {name} is not the stated one; nothing was published")
            self.found[name] = base64.b64encode(found).decode()
        said = self._signed.payload
        if not self.streaming and said != UNSIGNED and self._summers["sha256"].hexdigest() != said.lower():
            raise ChecksumMismatch(
                f"{self._shown}: x-amz-content-sha256 is not the hash of what came; nothing was published",
                s3="XAmzContentSHA256Mismatch",
            )

    # --- the wire ---

    async def _next(self) -> bytes:
        if not self._more:
            raise self._wrong("the body ended early")
        message = await self._receive()
        if message["type"] != "http.request":
            raise self._wrong("the body ended early")
        self._more = bool(message.get("more_body"))
        return bytes(message.get("body", b""))

    async def _plain(self) -> AsyncIterator[bytes]:
        while self._more:
            if piece := await self._next():
                yield piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            size, signature = self._head(await self._line(_HEAD))
            digest = sha256() if self._key is not None else None
            left = size
            while left:
                if not self._held:
                    self._held += await self._next()
                piece = bytes(memoryview(self._held)[:left])
                del self._held[: len(piece)]
                left -= len(piece)
                if digest is not None and len(piece) >= _LARGE:
                    await asyncio.to_thread(digest.update, piece)
                elif digest is not None:
                    digest.update(piece)
                yield piece
            if digest is not None:
                self._verify("PAYLOAD", signature, EMPTY + "\n" + digest.hexdigest())
            if not size:
                await self._trail()
                return
            if await self._line(2):
                raise self._bad("a chunk is longer than its head says")

    async def _trail(self) -> None:
        """The trailing headers; and nothing may follow."""
        signature, lines = "", []
        while line := await self._line(_TRAILER, at_end=True):
            name, _, value = line.partition(":")
            if name.strip().lower() == "x-amz-trailer-signature":
                signature = value.strip()
                continue
            lines.append(f"{name.strip().lower()}:{value.strip()}\n")
            if len(lines) > 8:
                raise self._bad("too many trailing headers")
            if name.strip().lower() != self._trailer:
                raise self._bad("a trailing header that x-amz-trailer did not announce")
            kind = self._trailer.removeprefix(_PREFIX)
            self.stated[kind] = _decoded(kind, value, CHECKSUMS[kind])
        if self._trailer and not lines:
            raise self._bad(f"the announced {self._trailer} did not come")
        if self._key is not None and self._signed.payload.endswith("-TRAILER"):
            self._verify("TRAILER", signature, sha256("".join(lines).encode()).hexdigest())
        while self._more:
            self._held += await self._next()
            if self._held:
                break
        if self._held:
            raise self._bad("bytes after the last chunk")

    def _verify(self, kind: str, signature: str, tail: str) -> None:
        assert self._key is not None
        text = f"AWS4-HMAC-SHA256-{kind}\n{self._signed.date}\n{self._signed.scope}\n{self._previous}\n{tail}"
        found = hmac.digest(self._key, text.encode(), "sha256").hex()
        if not hmac.compare_digest(found.encode(), signature.encode()):
            raise BadRequest(
                f"{self._shown}: a chunk's signature does not fit; nothing was published",
                s3="SignatureDoesNotMatch",
            )
        self._previous = found

    def _head(self, line: str) -> tuple[int, str]:
        size, _, rest = line.partition(";")
        if not _HEX.fullmatch(size):
            raise self._bad("a chunk's head is no hexadecimal size")
        return int(size, 16), rest.strip().removeprefix("chunk-signature=")

    async def _line(self, limit: int, *, at_end: bool = False) -> str:
        """The next line without its end; the last one of all may lack it."""
        while (at := self._held.find(b"\r\n")) < 0:
            if len(self._held) > limit:
                raise self._bad("a line of the chunked body is too long")
            if at_end and not self._more:
                at = len(self._held)
                break
            self._held += await self._next()
        if at > limit:
            raise self._bad("a line of the chunked body is too long")
        line = self._held[:at].decode("latin-1")
        del self._held[: at + 2]
        return line

    def _bad(self, why: str) -> BadRequest:
        return BadRequest(f"{self._shown}: aws-chunked: {why}; nothing was published", s3="IncompleteBody")

    def _wrong(self, why: str) -> WrongSize:
        return WrongSize(f"{self._shown}: {why}; nothing was published")


def _length(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        if name == "content-length" and "transfer-encoding" not in headers:
            return 0
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest(f"{name}: must be a number of bytes")
    return int(text)


def _decoded(name: str, text: str, size: int) -> bytes:
    try:
        data = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != size:
        raise BadRequest(f"{name}: must be base64 of {size} bytes", s3="InvalidDigest")
    return data
