"""GET, HEAD and PUT of files as an ASGI application: the road that knows every case.

:mod:`doma.doors.fast` gives the same answers for hot files without a task; whatever it leaves comes here.
Bytes are read and sent in pieces of at most 1 MiB, one at a time, so a stalled client holds no more.

Source: rules W2, W4, W5, W25-W30, W41 of the storage contract; table R of the cache contract.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

from doma.auth.model import Identity, Verb, bearer
from doma.cache.freshness import as_asked
from doma.core.checksum import COMPUTABLE, wanted
from doma.core.errors import (
    BadRequest,
    DigestNotReady,
    DomaError,
    NotAllowed,
    NotFound,
    Replaced,
    Unsupported,
)
from doma.core.paths import normalise
from doma.doors import parts
from doma.doors.endpoint import Endpoint, Site
from doma.doors.landing import text_headers, upload_id
from doma.doors.reads import Asked
from doma.doors.reply import Reply, reply
from doma.store.protocol import PIECE, Buffer, CanHeed, CanPeek, CanPrepare, Reader, Stat

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STATUS = "X-Transfer-Status"

PATIENCE = 240.0
"""Seconds that a HEAD waits for a digest to be computed; gfal2 gives up after 300."""


def app(site: Site) -> App:
    """The application for ``/<endpoint>/<file>``; errors are raised before the status has gone out.

    A path that is a directory raises NotAllowed (PUT) or what the store says (GET): the door that knows
    collections asks first.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        held = bearer.set(None)
        try:
            with as_asked(text_headers(scope["headers"])):
                if scope["method"] == "PUT":
                    await put(site, scope, receive, send)
                elif scope["method"] in {"GET", "HEAD"}:
                    await get(site, scope, send)
                else:
                    raise NotAllowed(f"{scope['method'][:20]}: files know GET, HEAD and PUT")
        finally:
            bearer.reset(held)

    return application


async def get(site: Site, scope: Scope, send: Send) -> None:
    """Answer GET or HEAD of a file.

    Raises:
        DomaError: nothing was sent yet; or, after the status, the bytes cannot be had: the connection
            must be cut.
    """
    method, headers = scope["method"], text_headers(scope["headers"])
    endpoint, path = site.find(normalise(wire_path(scope)))
    query = scope.get("query_string", b"").decode("latin-1")
    identity = await site.identify_reader(endpoint, path, headers.get("authorization"), query)
    endpoint.gate.decide(identity, Verb.READ if method == "GET" else Verb.STAT, path)
    if method == "HEAD" and "x-upload-id" in headers:
        await _progress(endpoint, path, identity, headers, send)
        return
    if query and isinstance(endpoint.store, CanHeed):
        endpoint.store.heed(path, query)
    watch = partial(_watch, site, scope, endpoint, path, identity, headers)
    sent = await serve(endpoint, path, method, headers, send, watch=watch)
    if site.usage is not None:
        site.usage.read(endpoint.name, identity, sent)


async def serve(
    endpoint: Endpoint,
    path: str,
    method: str,
    headers: Mapping[str, str],
    send: Send,
    extra: Mapping[str, str] = MappingProxyType({}),
    watch: Callable[[Reader, Reply], None] = lambda reader, answer: None,
) -> int:
    """Answer GET or HEAD of a file to somebody who may read it; how many of its bytes were sent.

    Args:
        endpoint: Where it is.
        path: Canonical, within the endpoint.
        method: ``GET`` or ``HEAD``.
        headers: Of the request, names in lower case.
        send: Of ASGI.
        extra: Headers of the answer besides the usual ones.
        watch: Is shown what is about to be sent.

    Raises:
        DomaError: as :func:`get`.
    """
    if method == "HEAD":
        stat = await _with_digest(endpoint, await endpoint.store.stat(path), headers)
        answer = reply(method, headers, stat, {**_age(endpoint, stat), **extra}, _boundary)
        await send(_start(answer))
        await send({"type": "http.response.body", "body": b""})
        return 0
    try:
        reader, answer, ahead = await _begin(endpoint, path, headers, watch)
    except Replaced:
        # nothing was sent yet: the version that is there now can be told from its beginning
        reader, answer, ahead = await _begin(endpoint, path, headers, watch)
    answer.headers.extend(extra.items())
    try:
        if _wants_status(headers):
            await _send_with_status(reader, answer, ahead, send)
        else:
            await _send(reader, answer, ahead, send)
    finally:
        await reader.close()
    return sum(stop - start for start, stop in answer.spans)


def _age(endpoint: Endpoint, stat: Stat) -> dict[str, str]:
    """How long ago a cache last heard of a file (RFC 9111 §4); not whether its bytes are here."""
    store = endpoint.store
    hot = store.peek(stat.path) if isinstance(store, CanPeek) else None
    if hot is None or hot.stat.version != stat.version:
        return {}
    about: Mapping[str, str] = getattr(hot, "headers", {})  # a cache's own
    return {"Age": about["Age"]} if "Age" in about else {}


async def _progress(
    endpoint: Endpoint, path: str, identity: Identity | None, headers: Mapping[str, str], send: Send
) -> None:
    """Answer how many bytes of an upload are here: all, if it has been published."""
    named = upload_id(headers["x-upload-id"])
    with suppress(NotFound):
        stat = await endpoint.store.stat(path)
        if named and stat.upload == named:
            await serve(endpoint, path, "HEAD", headers, send, {"X-Upload-Offset": str(stat.size)})
            return
    at = str(await parts.offset(endpoint, path, identity, named)).encode()
    fields = [(b"X-Upload-Offset", at), (b"Cache-Control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": b""})


def _watch(
    site: Site,
    scope: Scope,
    endpoint: Endpoint,
    path: str,
    identity: Identity | None,
    headers: Mapping[str, str],
    reader: Reader,
    answer: Reply,
) -> None:
    """Count an answer in the open file that it belongs to."""
    reads, held = site.reads, getattr(reader, "cached", None)
    if reads is None or not answer.spans or not (reads.all or held is not None):
        return
    host = scope["client"][0] if scope.get("client") else ""
    program, job = headers.get("user-agent", ""), headers.get("x-pelican-jobid", "")
    asked = Asked(host, scope.get("scheme") == "https", program, job)
    reading = reads.of(asked, identity, f"/{endpoint.name}{path}", reader.stat.size, cached=held is not None)
    reading.add(sum(stop - start for start, stop in answer.spans), len(answer.spans))
    if held is not None:
        reader.cached = reading.file.cached  # type: ignore[attr-defined] # such a reader has it


async def _begin(
    endpoint: Endpoint, path: str, headers: Mapping[str, str], watch: Callable[[Reader, Reply], None]
) -> tuple[Reader, Reply, list[Buffer]]:
    """One version of a file, the answer about it and its first bytes: what fails here fails cleanly.

    The bytes come in a list, for one to take who then lets go of them: an answer may take hours.
    """
    reader = await endpoint.store.open(path)
    try:
        answer = reply("GET", headers, reader.stat, {}, _boundary)
        watch(reader, answer)
        spans = answer.spans or [(0, 0)]
        if isinstance(reader, CanPrepare):
            about = reader.prepare(min(a for a, _ in spans), max(b for _, b in spans))
        else:
            about = getattr(reader, "headers", None) or {}
        answer.headers.extend(about.items())
        start, stop = spans[0]
        return reader, answer, [await reader.read(start, min(stop, start + PIECE))] if stop > start else []
    except BaseException:  # a cancellation, too: undone, and raised on
        await reader.close()
        raise


async def _send(reader: Reader, answer: Reply, ahead: list[Buffer], send: Send) -> None:
    """The answer with its bytes, of which the first, if there are any, are taken from ``ahead``."""
    await send(_start(answer))
    for index, (start, stop) in enumerate(answer.spans):
        if answer.frames:
            await send({"type": "http.response.body", "body": answer.frames[index], "more_body": True})
        at = start
        while at < stop:
            data = ahead.pop() if ahead else await reader.read(at, min(stop, at + PIECE))
            at += len(data)
            last = at >= stop and index == len(answer.spans) - 1 and not answer.tail
            await send({"type": "http.response.body", "body": data, "more_body": not last})
            del data  # else it is kept while the next piece is waited for, once for each slow answer
    if answer.tail or not answer.spans:
        await send({"type": "http.response.body", "body": answer.tail})


def _wants_status(headers: Mapping[str, str]) -> bool:
    """Whether a client takes a trailer that says how the transfer ended (Pelican's do)."""
    takes = "trailers" in headers.get("te", "").lower()
    return takes and headers.get("x-transfer-status", "").strip().lower() == "true"


async def _send_with_status(reader: Reader, answer: Reply, ahead: list[Buffer], send: Send) -> None:
    """As :func:`_send`, in chunks, with the outcome behind them: what breaks off ends in good order."""
    answer.headers[:] = [pair for pair in answer.headers if pair[0].lower() != "content-length"]
    answer.headers.append(("Trailer", _STATUS))
    begun = False

    async def pass_on(message: Message) -> None:
        nonlocal begun
        begun = True
        await send({**message, "trailers": True} if message["type"] == "http.response.start" else message)

    outcome = "200: OK"
    try:
        await _send(reader, answer, ahead, pass_on)
    except DomaError as e:
        if not begun:
            raise
        log.warning("an answer broke off: %s", e.message)
        outcome = f"{max(e.http, 500)}: {_line(e.message)}"
        await send({"type": "http.response.body", "body": b""})
    fields = _raw([(_STATUS, outcome)])
    await send({"type": "http.response.trailers", "headers": fields})


def _line(text: str) -> str:
    return " ".join(text.split()).encode("ascii", "replace").decode()[:300]


async def _with_digest(endpoint: Endpoint, stat: Stat, headers: Mapping[str, str]) -> Stat:
    """The stat with a digest that is asked for and not stored yet, if the store can compute it in time.

    Raises:
        DigestNotReady: it takes longer; the computation goes on and a later HEAD finds it.
    """
    want = wanted(headers.get("want-digest"), headers.get("want-repr-digest"))
    missing = [name for name in want if name in COMPUTABLE]
    if stat.is_dir or not missing or any(name in stat.checksums for name in want):
        return stat
    work = asyncio.ensure_future(endpoint.store.checksum(stat.path, missing[0]))
    try:
        await asyncio.wait_for(asyncio.shield(work), PATIENCE)
    except TimeoutError as e:
        _RUNNING.add(work)
        work.add_done_callback(_forget)
        raise DigestNotReady(
            f"{stat.path}: its {missing[0]} is being computed; ask again", retry_after=30
        ) from e
    except Unsupported:
        return stat
    return await endpoint.store.stat(stat.path)


_RUNNING: set["asyncio.Future[str]"] = set()


def _forget(work: "asyncio.Future[str]") -> None:
    _RUNNING.discard(work)
    if not work.cancelled() and work.exception() is not None:
        log.warning("a checksum failed: %s", work.exception())


async def put(site: Site, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer PUT of a file; the body is asked for only when nothing else can refuse the request.

    Raises:
        DomaError: nothing was published.
    """
    raw = scope["headers"]
    headers = text_headers(raw)
    said = headers.get("content-length")
    if said is not None and not (said.isascii() and said.isdigit()):
        raise BadRequest(f"{wire_path(scope)}: Content-Length must be a number of bytes")
    length = None if said is None else int(said)
    if length is None and "transfer-encoding" not in headers:
        length = 0
    landing = parts.landing(site, wire_path(scope), scope.get("query_string", b""), raw, length)
    await landing.open()
    try:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise await landing.abort("the body ended early")  # noqa: TRY301 - the abort is idempotent
            data = message.get("body", b"")
            if data and not landing.feed(memoryview(data)):
                await landing.write(data)
            if not message.get("more_body"):
                break
        status, answer = await landing.commit()
    except BaseException:  # a cancellation, too: undone, and raised on
        await landing.abort("given up")
        raise
    await send({"type": "http.response.start", "status": status, "headers": _raw(answer)})
    await send({"type": "http.response.body", "body": b""})


def wire_path(scope: Scope) -> str:
    """The path as on the wire; bytes beyond ASCII should have been encoded, but clients do send them."""
    raw: bytes = scope["raw_path"]
    return raw.partition(b"?")[0].decode("utf-8", "surrogateescape")


def _start(answer: Reply) -> Message:
    return {"type": "http.response.start", "status": answer.status, "headers": _raw(answer.headers)}


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _boundary() -> str:
    return secrets.token_hex(16)
