"""Multipart uploads of the s3 door.

Each upload is a directory of a store of its own: ``upload.json`` says where it leads, ``parts/00001`` … hold
the parts. Completing it writes them one after the other into the target, as any other upload, so nothing is
visible before. An upload outlives restarts; ``done.json`` remembers the answer for whoever asks again.

Source: Amazon S3 API Reference: CreateMultipartUpload, UploadPart(Copy), Complete-, AbortMultipartUpload,
ListParts, ListMultipartUploads.
"""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakValueDictionary

from doma.auth.model import Verb
from doma.core.errors import BadRequest, Conflict, LimitExceeded, NotFound, PreconditionFailed
from doma.doors.s3_call import Call, Place, source_of
from doma.doors.s3_listing import must_exist
from doma.doors.s3_metadata import keep, stated
from doma.doors.s3_objects import copied_part, key_text, patiently, reading
from doma.doors.s3_xml import LARGEST, MOST_PARTS, NAMESPACE, element, instant, parts_of, tag
from doma.store.protocol import PIECE, Stat, Store, Upload

log = logging.getLogger(__name__)

LARGEST_PART = 5 << 30
"""Bytes of a part at most, as in S3."""

_ID = re.compile(r"[0-9a-f]{32}")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})", re.ASCII)
_RECORD = 16 << 10
_ENDING: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""Uploads that are being completed; one process of a system does all of S3."""


async def begin(call: Call) -> None:
    """CreateMultipartUpload."""
    place = _file(call)
    call.allow_change(Verb.CREATE, place)
    await must_exist(call)
    upload = secrets.token_hex(16)
    record = {
        "endpoint": place.endpoint.name, "path": place.path, "key": call.key, "bucket": call.bucket,
        "owner": call.right.subject, "began": call.door.clock(), "metadata": stated(call.headers),
    }  # fmt: skip
    await _write(call.door.uploads, f"/{upload}/upload.json", record)
    named = [("Bucket", call.bucket), ("Key", call.key), ("UploadId", upload)]
    await call.say(element("InitiateMultipartUploadResult", named, namespace=True))


async def part(call: Call) -> None:
    """UploadPart and UploadPartCopy."""
    call.allow_change(Verb.CREATE, _file(call))
    upload = await _upload(call)
    text = call.query.get("partNumber", "")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MOST_PARTS):
        raise BadRequest(f"partNumber: must be 1 to {MOST_PARTS}", s3="InvalidArgument")
    path = f"/{upload}/parts/{int(text):05d}"
    if "x-amz-copy-source" in call.headers:
        await _part_of(call, path)
        return
    body = call.body()
    if (body.length or 0) > LARGEST_PART:
        raise LimitExceeded(f"{call.shown}: a part may have at most {LARGEST_PART} bytes")
    sink = await call.door.uploads.create(path, size=body.length)
    stat = await _fill(sink, body.pieces())
    sums = {f"x-amz-checksum-{name}": value for name, value in body.found.items() if name != "md5"}
    await call.answer(200, {"ETag": f'"{stat.version}"', **sums})


async def _part_of(call: Call, path: str) -> None:
    source, conditions = source_of(call)
    call.allow(Verb.READ, source)
    text, span = call.headers.get("x-amz-copy-source-range"), None
    if text is not None:
        found = _RANGE.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise BadRequest("x-amz-copy-source-range: must be bytes=first-last", s3="InvalidArgument")
        span = int(found[1]), int(found[2]) + 1
    stat, pieces = await reading(source, conditions, span)
    if span is not None and span[1] > stat.size:
        raise BadRequest(f"x-amz-copy-source-range: the source has {stat.size} bytes", s3="InvalidRange")

    async def work() -> str:
        sink = await call.door.uploads.create(path)
        return copied_part((await _fill(sink, pieces)).version, call.door.clock())

    await patiently(call, work())


async def complete(call: Call) -> None:
    """CompleteMultipartUpload; asked again, it answers again."""
    place = _file(call)
    who = call.allow_change(Verb.CREATE, place)
    upload = await _upload(call)
    uploads = call.door.uploads
    record = await _record(uploads, f"/{upload}/upload.json") or {}
    named = parts_of(await call.body().whole(LARGEST))

    async def work() -> str:
        # who sends it again while it is being done waits for the one answer
        async with _ENDING.setdefault(upload, asyncio.Lock()):
            done = await _record(uploads, f"/{upload}/done.json")
            if done is not None:
                return _completed(call, done["version"])
            stats = [await _named(uploads, upload, number, version) for number, version in named]
            landing = call.landing(place, who, sum(stat.size for stat in stats), {})
            await landing.open()
            try:
                for stat in stats:
                    async for piece in _content(uploads, stat):
                        await landing.write(piece)
                _, headers = await landing.commit()
            except BaseException:  # a cancellation, too: undone, and raised on
                await landing.abort("given up")
                raise
            version = dict(headers)["ETag"].strip('"')
            if record.get("metadata"):
                await keep(place, record["metadata"])
            await _write(uploads, f"/{upload}/done.json", {"version": version})
            await uploads.delete(f"/{upload}/parts", recursive=True)
            return _completed(call, version)

    await patiently(call, work())


async def abort(call: Call) -> None:
    """AbortMultipartUpload."""
    call.allow_change(Verb.CREATE, _file(call))
    upload = await _upload(call)
    try:
        await call.door.uploads.delete(f"/{upload}", recursive=True)
    except NotFound as e:
        raise _no_upload() from e
    await call.answer(204)


async def parts(call: Call) -> None:
    """ListParts."""
    call.allow(Verb.STAT, _file(call))
    upload = await _upload(call)
    after = _number(call, "part-number-marker", 0)
    most = min(_number(call, "max-parts", 1000), 1000)
    found: list[tuple[int, Stat]] = []
    more = False
    try:
        async for stat in call.door.uploads.list(f"/{upload}/parts"):
            number = int(stat.path[-5:])
            if number > after:
                more = len(found) >= most
                if more:
                    break
                found.append((number, stat))
    except NotFound:
        pass  # no part has come yet
    head = [
        ("Bucket", call.bucket), ("Key", call.key), ("UploadId", upload), ("PartNumberMarker", str(after)),
        ("NextPartNumberMarker", str(found[-1][0] if found else after)), ("MaxParts", str(most)),
        ("IsTruncated", str(more).lower()), ("StorageClass", "STANDARD"),
    ]  # fmt: skip
    listed = "".join(
        element(
            "Part",
            [
                ("PartNumber", str(number)),
                ("LastModified", instant(stat.modified)),
                ("ETag", f'"{stat.version}"'),
                ("Size", str(stat.size)),
            ],
        )
        for number, stat in found
    )
    body = "".join(tag(n, v) for n, v in head)
    await call.say(f'<ListPartsResult xmlns="{NAMESPACE}">{body}{listed}</ListPartsResult>')


async def uploads(call: Call) -> None:
    """ListMultipartUploads: those of the bucket that the key may see, at most 1000."""
    call.allow(Verb.READ, call.place(""))
    prefix, encoding = call.query.get("prefix", ""), call.query.get("encoding-type", "")
    found: list[tuple[str, str, float]] = []
    here = call.bucket, call.right.endpoint
    async for entry in call.door.uploads.list("/"):
        record = await _open(call.door.uploads, entry.path[1:])
        if record is not None and (record["bucket"], record["endpoint"]) == here:
            found.append((record["key"], entry.path[1:], record["began"]))
    found = sorted(one for one in found if one[0].startswith(prefix))
    head = [
        ("Bucket", call.bucket), ("Prefix", key_text(prefix, encoding)), ("KeyMarker", ""),
        ("UploadIdMarker", ""), ("MaxUploads", "1000"),
        ("IsTruncated", str(len(found) > 1000).lower()),
    ]  # fmt: skip
    listed = "".join(
        element(
            "Upload", [("Key", key_text(key, encoding)), ("UploadId", upload), ("Initiated", instant(began))]
        )
        for key, upload, began in found[:1000]
    )
    body = "".join(tag(n, v) for n, v in head) + listed
    await call.say(f'<ListMultipartUploadsResult xmlns="{NAMESPACE}">{body}</ListMultipartUploadsResult>')


async def sweep(uploads: Store, older: float) -> int:
    """Remove uploads that nothing has come for since an instant; returns how many."""
    swept = 0
    async for entry in uploads.list("/"):
        last = entry.modified
        for name in ("upload.json", "parts", "done.json"):
            try:
                last = max(last, (await uploads.stat(f"{entry.path}/{name}")).modified)
            except NotFound:
                continue
        if last < older:
            await uploads.delete(entry.path, recursive=True)
            swept += 1
    if swept:
        log.info("%d stale multipart uploads were removed", swept)
    return swept


def _file(call: Call) -> Place:
    place = call.place()
    if place.is_dir:
        raise BadRequest(f"{call.shown}: a key that ends in '/' is a directory and has no content")
    return place


async def _upload(call: Call) -> str:
    """The upload that the query names, if it is for this very place."""
    name, place = call.query.get("uploadId", ""), call.place()
    record = await _record(call.door.uploads, f"/{name}/upload.json") if _ID.fullmatch(name) else None
    if record is None or (record["endpoint"], record["path"]) != (place.endpoint.name, place.path):
        raise _no_upload()
    return name


async def _open(uploads: Store, name: str) -> dict[str, Any] | None:
    """The record of an upload that is not complete yet."""
    record = await _record(uploads, f"/{name}/upload.json")
    return record if record is None or await _record(uploads, f"/{name}/done.json") is None else None


async def _named(uploads: Store, upload: str, number: int, version: str) -> Stat:
    try:
        stat = await uploads.stat(f"/{upload}/parts/{number:05d}")
    except NotFound:
        stat = None
    if stat is None or stat.version != version:
        raise BadRequest(
            f"part {number}: did not come, or its ETag is another one; upload it again", s3="InvalidPart"
        )
    return stat


async def _content(uploads: Store, stat: Stat) -> AsyncIterator[Any]:
    reader = await uploads.open(stat.path)
    try:
        if reader.stat.version != stat.version:
            raise PreconditionFailed("a part was replaced while the upload was completed; complete it again")
        for at in range(0, stat.size, PIECE):
            yield await reader.read(at, min(at + PIECE, stat.size))
    finally:
        await reader.close()


async def _fill(sink: Upload, pieces: AsyncIterator[Any]) -> Stat:
    size = 0
    try:
        async for piece in pieces:
            size += len(piece)
            if size > LARGEST_PART:
                raise LimitExceeded(f"a part may have at most {LARGEST_PART} bytes")  # noqa: TRY301
            await sink.write(piece)
        return await sink.commit()
    except BaseException:  # a cancellation, too: undone, and raised on
        await sink.abort()
        raise


async def _write(uploads: Store, path: str, record: dict[str, Any]) -> None:
    sink = await uploads.create(path)
    await sink.write(json.dumps(record).encode())
    await sink.commit()


async def _record(uploads: Store, path: str) -> dict[str, Any] | None:
    try:
        reader = await uploads.open(path)
    except (NotFound, Conflict):
        return None
    try:
        record = json.loads(bytes(await reader.read(0, min(reader.stat.size, _RECORD))))
    finally:
        await reader.close()
    assert isinstance(record, dict)
    return record


def _completed(call: Call, version: str) -> str:
    where = f"/{call.bucket}/{key_text(call.key, 'url')}"
    said = [("Location", where), ("Bucket", call.bucket), ("Key", call.key), ("ETag", f'"{version}"')]
    return element("CompleteMultipartUploadResult", said, namespace=True)


def _number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"{name}: must be a number", s3="InvalidArgument")
    return int(text)


def _no_upload() -> NotFound:
    return NotFound("uploadId: there is no such upload for this key; begin a new one", s3="NoSuchUpload")
