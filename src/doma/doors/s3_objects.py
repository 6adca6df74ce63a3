"""Objects of the s3 door: read, write, copy, delete.

A key that ends in ``/`` means a directory: writing one (empty) makes it, reading one gives an empty object,
as the marker objects of other file systems over S3. A directory that loses its last object through this door
goes with it, up to the top of the bucket, because S3 has none: otherwise nobody could empty a bucket.

Source: Amazon S3 API Reference: GetObject, HeadObject, PutObject, CopyObject, DeleteObject(s).
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Mapping, MutableMapping
from email.header import Header
from typing import Any
from urllib.parse import quote

from doma.auth.model import Verb
from doma.core import ranges
from doma.core.checksum import digest_header, read_digests
from doma.core.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    DomaError,
    Forbidden,
    NotFound,
    PreconditionFailed,
    Unsupported,
)
from doma.core.paths import covers, parent
from doma.doors import files, s3_metadata
from doma.doors.reply import reply
from doma.doors.s3_body import Body
from doma.doors.s3_call import Call, Place, Send, source_of, start
from doma.doors.s3_xml import DECLARATION, LARGEST, code_of, element, instant, keys_of, refusal
from doma.store.protocol import PIECE, Buffer, Stat

PATIENCE = 5.0
"""Seconds after which a long copy begins its answer, with blanks, so that nobody takes it for dead."""

_OVERRIDES = {
    f"response-{name}": name
    for name in ("content-type", "content-disposition", "cache-control", "content-language", "expires")
}
_OPAQUE = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
_EMPTY = '"d41d8cd98f00b204e9800998ecf8427e"'


async def get(call: Call) -> None:
    """GetObject and HeadObject."""
    place = call.place()
    method = call.asked.method
    who = call.allow(Verb.READ if method == "GET" else Verb.STAT, place)
    store = place.endpoint.store
    if place.is_dir:
        stat = await store.stat(place.path)
        if not stat.is_dir:
            raise NotFound(f"{call.shown}: no such key")
        modified = {"Last-Modified": ranges.http_date(stat.modified), "ETag": _EMPTY, "Content-Length": "0"}
        await call.answer(200, {**_OPAQUE, "Content-Type": "application/x-directory", **modified})
        return
    if method == "HEAD":
        stat = await store.stat(place.path)
        if stat.is_dir:
            raise NotFound(f"{call.shown}: no such key")
        send = _dressed(call, await s3_metadata.held(place, stat))
        answer = reply(method, call.headers, stat, {}, str)
        await start(send, answer.status, answer.headers)
        await send({"type": "http.response.body", "body": b""})
        return
    send = _dressed(call, await s3_metadata.held(place))
    try:
        sent = await files.serve(place.endpoint, place.path, method, call.headers, send)
    except Conflict as e:
        raise NotFound(f"{call.shown}: no such key, but a prefix") from e
    if (usage := call.door.site.usage) is not None:
        usage.read(place.endpoint.name, who, sent)


def _dressed(call: Call, metadata: Mapping[str, str]) -> Send:
    """``send`` whose headers are S3's instead of WebDAV's."""
    changed = {_OVERRIDES[name]: value for name, value in call.query.items() if name in _OVERRIDES}
    if any(not value.isascii() or not value.isprintable() for value in changed.values()):
        raise BadRequest("response-…: must be printable ASCII", s3="InvalidArgument")
    changed = {name: _plain(value) for name, value in metadata.items()} | changed
    if changed:
        changed |= s3_metadata.SAFE

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in message["headers"]]
            kept = [(n, v) for n, v in headers if n not in changed]
            kept += [*changed.items(), ("x-amz-request-id", call.request_id)]
            if message["status"] == 200 and call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
                kept += _checksums(read_digests(headers))
            await start(call.send, message["status"], kept)
        else:
            await call.send(message)

    return send


def _plain(text: str) -> str:
    """A value as a header can carry it: RFC 2047 where it is not ASCII, as S3 does."""
    return text if text.isascii() else Header(text, "utf-8", maxlinelen=1 << 20).encode()


def _checksums(known: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is known of S3's checksums of the whole content."""
    names = {"crc32c": "crc32c", "sha-256": "sha256", "sha-1": "sha1"}
    held = [(f"x-amz-checksum-{names[n]}", _base64(v)) for n, v in known.items() if n in names]
    return [*held, ("x-amz-checksum-type", "FULL_OBJECT")] if held else []


async def put(call: Call) -> None:
    """PutObject."""
    place, body = call.place(), call.body()
    if place.is_dir:
        await _make_dir(call, place, body)
        return
    who, metadata = call.allow_change(Verb.CREATE, place), s3_metadata.stated(call.headers)
    stated = {"digest": digest} if (digest := _digest(body)) else {}
    landing = call.landing(place, who, body.length, stated)
    await landing.open()
    try:
        async for piece in body.pieces():
            if not landing.feed(memoryview(piece)):
                await landing.write(piece)
        _, headers = await landing.commit()
    except BaseException:  # a cancellation, too: undone, and raised on
        await landing.abort("given up")
        raise
    if metadata:
        await s3_metadata.keep(place, metadata)
    sums = {f"x-amz-checksum-{name}": value for name, value in body.found.items() if name != "md5"}
    await call.answer(200, {"ETag": dict(headers)["ETag"], **sums})


async def _make_dir(call: Call, place: Place, body: Body) -> None:
    """An empty object whose key ends in ``/``: a directory, with the ones above it."""
    who = call.allow_change(Verb.CREATE, place)
    if await body.whole(0):
        raise BadRequest(f"{call.shown}: a key that ends in '/' is a directory and has no content")
    await make_dirs(place, place.path, lambda path: place.endpoint.gate.decide_directory(who, path))
    call.tell("directory.made", place)
    await call.answer(200, {"ETag": _EMPTY})


async def make_dirs(place: Place, path: str, allow: Any) -> None:
    """Make a directory and those above it; it may be there already."""
    store, missing = place.endpoint.store, []
    while path != "/":
        try:
            if not (await store.stat(path)).is_dir:
                raise Conflict(f"{path}: is a file, so it cannot be a directory")
            break
        except NotFound:
            missing.append(path)
            path = parent(path)
    for one in reversed(missing):
        allow(one)
        try:
            await store.make_dir(one)
        except AlreadyExists:
            continue


async def copy(call: Call) -> None:
    """CopyObject."""
    source, conditions = source_of(call)
    place = call.place()
    call.allow(Verb.READ, source)
    who = call.allow_change(Verb.CREATE, place)
    if source.is_dir or place.is_dir:
        if source.is_dir and place.is_dir and (await source.endpoint.store.stat(source.path)).is_dir:
            await make_dirs(place, place.path, lambda path: place.endpoint.gate.decide_directory(who, path))
            await call.say(_copied("CopyObjectResult", _EMPTY.strip('"'), call.door.clock()))
            return
        raise BadRequest(f"{call.shown}: only a directory marker can be copied to one")
    replaced = call.headers.get("x-amz-metadata-directive", "COPY").upper() == "REPLACE"
    metadata = s3_metadata.stated(call.headers) if replaced else await s3_metadata.held(source)
    if source.path == place.path:
        if not replaced:
            raise BadRequest(f"{call.shown}: is the source itself; nothing would change")
        call.allow_change(Verb.MODIFY, place)
        stat = await place.endpoint.store.stat(place.path)
        await s3_metadata.keep(place, metadata)
        await call.say(_copied("CopyObjectResult", stat.version, stat.modified))
        return

    async def work() -> str:
        stat, pieces = await reading(source, conditions)
        digest = digest_header(stat.checksums, ("adler32",)) if "adler32" in stat.checksums else None
        landing = call.landing(place, who, stat.size, {"digest": digest} if digest else {})
        await landing.open()
        try:
            async for piece in pieces:
                await landing.write(piece)
            _, headers = await landing.commit()
        except BaseException:  # a cancellation, too: undone, and raised on
            await landing.abort("given up")
            raise
        await s3_metadata.keep(place, metadata)
        return _copied("CopyObjectResult", dict(headers)["ETag"].strip('"'), call.door.clock())

    await patiently(call, work())


async def reading(
    source: Place, conditions: Mapping[str, str], span: tuple[int, int] | None = None
) -> tuple[Stat, AsyncIterator[Buffer]]:
    """One version of a source and its bytes, piece by piece."""
    try:
        reader = await source.endpoint.store.open(source.path)
    except Conflict as e:
        raise NotFound(f"{source.path}: no such key, but a prefix") from e
    stat = reader.stat
    try:
        if ranges.not_modified(conditions, stat.path, stat.version, stat.modified):
            raise PreconditionFailed(f"{source.path}: the condition on the source does not hold")  # noqa: TRY301
    except BaseException:  # a cancellation, too: undone, and raised on
        await reader.close()
        raise

    async def pieces() -> AsyncIterator[Buffer]:
        start, stop = span or (0, stat.size)
        try:
            for at in range(start, stop, PIECE):
                yield await reader.read(at, min(at + PIECE, stop))
        finally:
            await reader.close()

    return stat, pieces()


async def patiently(call: Call, work: Awaitable[str]) -> None:
    """Answer with the document that some long work gives; its failure then stands in a 200.

    S3 does the same: clients know an ``Error`` in the answer to a copy or the end of a multipart upload.
    """
    task = asyncio.ensure_future(work)
    started = False
    try:
        while not (await asyncio.wait({task}, timeout=PATIENCE))[0]:
            text = " " if started else DECLARATION
            if not started:
                head = {"Content-Type": "application/xml", "x-amz-request-id": call.request_id}
                await start(call.send, 200, head.items())
                started = True
            await call.send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        try:
            text = task.result()
        except DomaError as e:
            if not started:
                raise
            text = refusal(e, call.shown, call.request_id)
        if started:
            await call.send({"type": "http.response.body", "body": text.encode()})
        else:
            await call.say(text)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def delete(call: Call) -> None:
    """DeleteObject: 204 also for what is not there."""
    await _remove(call, call.place(), call.headers.get("if-match", "").strip().strip('"'))
    await call.answer(204)


async def delete_many(call: Call) -> None:
    """DeleteObjects."""
    named, quiet = keys_of(await call.body().whole(LARGEST))
    said = []
    for key, version in named:
        try:
            if not key:
                raise BadRequest("a key is empty", s3="UserKeyMustBeSpecified")
            await _remove(call, call.place(key), version)
        except DomaError as e:
            said.append(element("Error", [("Key", key), ("Code", code_of(e)[0]), ("Message", e.message)]))
        else:
            if not quiet:
                said.append(element("Deleted", [("Key", key)]))
    await call.say(f"<DeleteResult>{''.join(said)}</DeleteResult>")


async def _remove(call: Call, place: Place, version: str) -> None:
    who = call.allow_change(Verb.MODIFY, place)
    store, gate = place.endpoint.store, place.endpoint.gate
    try:
        stat = await store.stat(place.path)
    except NotFound as e:
        if version:
            raise PreconditionFailed(f"{place.path}: If-Match does not hold, nothing is there") from e
        return
    if stat.is_dir != place.is_dir:
        return
    if place.is_dir:
        await _remove_empty(call, place, place.path)
        return
    await store.delete(place.path, version=version if version not in {"", "*"} else None)
    call.tell("file.deleted", place, is_dir=False, bytes=stat.size)
    above = Place(place.endpoint, parent(place.path), True)
    if gate.may(who, Verb.MODIFY, above.path, True):
        await _remove_empty(call, above, above.path)


async def _remove_empty(call: Call, place: Place, path: str) -> None:
    """Remove a directory and those above it as long as they are empty, within the key's prefix."""
    store, gate = place.endpoint.store, place.endpoint.gate
    top = call.place("").path
    while path != top and covers(top, path) and not any(covers(path, area) for area in gate.areas):
        try:
            call.allow(Verb.MODIFY, Place(place.endpoint, path, True))
            await store.delete(path)
        except (Conflict, NotFound, Forbidden, Unsupported):
            return
        path = parent(path)


def _copied(name: str, version: str, now: float) -> str:
    return element(name, [("LastModified", instant(now)), ("ETag", f'"{version}"')], namespace=True)


def copied_part(version: str, now: float) -> str:
    """The answer to UploadPartCopy."""
    return _copied("CopyPartResult", version, now)


def _digest(body: Body) -> str | None:
    """What was stated and the store can verify itself, as ``Digest``: it is kept with the file then."""
    names = {"crc32c": "crc32c", "sha256": "sha-256", "sha1": "sha-1", "md5": "md5"}
    return digest_header({names[n]: value.hex() for n, value in body.stated.items() if n in names})


def _base64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


def key_text(key: str, encoding: str) -> str:
    """A key in a listing, URL-encoded if that was asked for."""
    return quote(key, safe="/-_.~*") if encoding == "url" else key
