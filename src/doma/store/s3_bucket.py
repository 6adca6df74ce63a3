"""One bucket below a prefix: its objects and prefixes, with checksums kept beside them.

adler32 and what else was computed stand in the object's own metadata where they were known before the object
was written, else in a tag that names the version, and so is never believed for another one.

Source: Amazon S3 API Reference: HeadObject, ListObjectsV2, CopyObject, Put- and GetObjectTagging.
"""

import base64
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from urllib.parse import quote, unquote_plus
from xml.etree.ElementTree import Element

from doma.core.checksum import ALGORITHMS
from doma.core.errors import DomaError, NotFound, OriginFailed, Unsupported
from doma.core.paths import RESERVED, checked
from doma.store.http_status import modified_of
from doma.store.protocol import Stat
from doma.store.s3_upload import SUMS, written
from doma.store.s3_wire import PAGE, Wire, children, document, stated, text_of

_HEX = re.compile(r"[0-9a-f]+")
_SIZE = re.compile(r"[0-9]{1,18}")

REMEMBERED = 4096
"""Versions whose checksums are remembered."""
LARGEST_COPY = 5 << 30
"""Bytes that S3 copies in one request …"""
COPY_PART = 1 << 30
"""… and in one part of a larger copy."""


class Bucket:
    """Objects by path.

    Args:
        wire: The service.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._sums: OrderedDict[tuple[str, str], dict[str, str]] = OrderedDict()

    async def file(self, path: str) -> Stat | None:
        """The object of a path; None if there is none."""
        async with await self.wire.ask("HEAD", path[1:], (), {"x-amz-checksum-mode": "ENABLED"}) as answer:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise await self.wire.refused(answer, path)
            version, size = answer.get("etag").strip('"'), answer.head.length
            if not version or size is None:
                raise OriginFailed(
                    f"{path}: the S3 service tells not its length and ETag; neither can be guessed"
                )
            sums = _read(answer.get(SUMS))
            crc, kind = answer.get("x-amz-checksum-crc32c"), answer.get("x-amz-checksum-type")
            # Of parts there may be a checksum of checksums: then the service must say that it is none.
            if crc and (kind == "FULL_OBJECT" or (not kind and "-" not in version)):
                sums |= _crc32c(crc)
            tags, modified = answer.get("x-amz-tagging-count", "0"), modified_of(answer.get("last-modified"))
        if tags != "0" and (path, version) not in self._sums:
            self._remember((path, version), await self._tagged(path, version))
        sums |= self._sums.get((path, version), {})
        ordered = {name: sums[name] for name in ALGORITHMS if name in sums}
        return Stat(path, size, version, modified, checksums=ordered)

    async def below(self, path: str, most: int = PAGE) -> AsyncIterator[Stat]:
        """Everything that begins with a directory's name; its marker's path ends in a slash."""
        prefix = self.wire.address.prefix
        query = [("prefix", f"{prefix}{path[1:]}/"), ("max-keys", str(most))]
        async for page in self.wire.pages(query):
            for item in children(page, "Contents"):
                yield _listed(unquote_plus(text_of(item, "Key"))[len(prefix) :], item)

    async def entries(self, folder: str) -> AsyncIterator[tuple[str, Stat]]:
        """Keys directly below a directory as S3 sorts them, directories with their slash."""
        prefix = self.wire.address.prefix
        async for page in self.wire.pages([("prefix", prefix + folder), ("delimiter", "/")]):
            found: list[tuple[str, Stat]] = []
            for item in children(page, "Contents"):
                key = unquote_plus(text_of(item, "Key"))[len(prefix) :]
                found.append((key, _listed(key, item)))
            for item in children(page, "CommonPrefixes"):
                key = unquote_plus(text_of(item, "Prefix"))[len(prefix) :]
                found.append((key, Stat("/" + key[:-1], 0, "dir", 0.0, is_dir=True)))
            for key, stat in sorted(found, key=lambda pair: pair[0]):
                name = stat.path.removeprefix("/" + folder)
                if key.startswith(folder) and key != folder and "/" not in name and _sayable(stat.path):
                    yield key, stat

    async def copy(self, source: Stat, target: str, *, fresh: bool = False) -> None:
        """Copy an object to another path if it still has that version.

        Args:
            source: What, as it was seen.
            target: Where to.
            fresh: Onto nothing only, where the service can hold that.
        """
        address, key = self.wire.address, target[1:]
        headers = {
            "x-amz-copy-source": quote(f"/{address.bucket}/{address.prefix}{source.path[1:]}", safe="/-_.~"),
            "x-amz-copy-source-if-match": f'"{source.version}"',
        }
        condition = {"if-none-match": "*"} if fresh else {}
        if source.size > LARGEST_COPY:
            data = await self._copy_parts(source.size, key, headers, condition)
        else:
            try:
                _, data = await self.wire.told("PUT", key, (), headers | condition, path=target)
            except Unsupported:
                if not condition:
                    raise
                _, data = await self.wire.told("PUT", key, (), headers, path=target)
        version = stated(data, "ETag")
        known = self._sums.get((source.path, source.version)) or dict(source.checksums)
        if known and version != source.version:
            await self.keep(target, version, known)
        elif known:
            self._remember((target, version), known)

    async def _copy_parts(
        self, size: int, key: str, headers: dict[str, str], condition: dict[str, str]
    ) -> bytes:
        """Copy what is too large for one request; the answer to its completion."""
        _, data = await self.wire.told("POST", key, [("uploads", "")])
        upload = ("uploadId", stated(data, "UploadId"))
        try:
            parts = ""
            for number, start in enumerate(range(0, size, COPY_PART), 1):
                span = {"x-amz-copy-source-range": f"bytes={start}-{min(size, start + COPY_PART) - 1}"}
                query = [("partNumber", str(number)), upload]
                _, data = await self.wire.told("PUT", key, query, headers | span)
                tag = stated(data, "ETag")
                parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
            body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
            return (await self.wire.told("POST", key, [upload], condition, body))[1]
        except BaseException:  # a cancellation, too: undone, and raised on
            with suppress(DomaError):
                await self.wire.told("DELETE", key, [upload])
            raise

    async def keep(self, path: str, version: str, sums: dict[str, str]) -> None:
        """Keep checksums of a version: in memory, and in a tag that names the version."""
        self._remember((path, version), sums)
        text = f"{version}+{written(sums)}"
        body = f"<Tagging><TagSet><Tag><Key>doma-sums</Key><Value>{text}</Value></Tag></TagSet></Tagging>"
        with suppress(Unsupported, NotFound):  # a service without tags: they are computed again
            await self.wire.told("PUT", path[1:], [("tagging", "")], {}, body.encode(), path)

    async def _tagged(self, path: str, version: str) -> dict[str, str]:
        try:
            _, data = await self.wire.told("GET", path[1:], [("tagging", "")], path=path)
        except (Unsupported, NotFound):
            return {}
        for item in (t for tags in children(document(data), "TagSet") for t in children(tags, "Tag")):
            named, _, text = text_of(item, "Value").partition("+")
            if text_of(item, "Key") == "doma-sums" and named == version:
                return _read(text)
        return {}

    def _remember(self, what: tuple[str, str], sums: dict[str, str]) -> None:
        self._sums[what] = sums
        if len(self._sums) > REMEMBERED:
            self._sums.popitem(last=False)

    async def sweep(self, older: float) -> int:
        """End multipart uploads below the prefix that began before an instant; returns how many."""
        prefix, ended, marks = self.wire.address.prefix, 0, list[tuple[str, str]]()
        while True:
            query = [
                ("uploads", ""),
                ("encoding-type", "url"),
                *([("prefix", prefix)] if prefix else []),
                *marks,
            ]
            page = document((await self.wire.told("GET", None, query))[1])
            for item in children(page, "Upload"):
                if _instant(text_of(item, "Initiated")) < older:
                    key = unquote_plus(text_of(item, "Key"))[len(prefix) :]
                    await self.wire.told("DELETE", key, [("uploadId", text_of(item, "UploadId"))])
                    ended += 1
            before, marks = (
                marks,
                [
                    ("key-marker", unquote_plus(text_of(page, "NextKeyMarker"))),
                    ("upload-id-marker", text_of(page, "NextUploadIdMarker")),
                ],
            )
            if text_of(page, "IsTruncated") != "true" or marks == before:
                return ended


def _listed(key: str, item: Element) -> Stat:
    size, modified = text_of(item, "Size") or "0", _instant(text_of(item, "LastModified"))
    if not _SIZE.fullmatch(size):
        raise OriginFailed(f"/{key}: the S3 service states a size that is no number")
    return Stat("/" + key, int(size), text_of(item, "ETag").strip('"'), modified)


def _sayable(path: str) -> bool:
    """Whether a key can come in a request: other programs write what we never would."""
    try:
        return checked(path) == path and not path.rpartition("/")[2].startswith(RESERVED)
    except DomaError:
        return False


def _read(text: str) -> dict[str, str]:
    pairs = (one.partition("=") for one in text.split("+"))
    return {
        name: value
        for name, _, value in pairs
        if _HEX.fullmatch(value) and len(value) == 2 * ALGORITHMS.get(name, -1)
    }


def _crc32c(text: str) -> dict[str, str]:
    """The checksum as S3 writes it; nothing if it is none."""
    try:
        return _read("crc32c=" + base64.b64decode(text, validate=True).hex())
    except ValueError:
        return {}


def _instant(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
