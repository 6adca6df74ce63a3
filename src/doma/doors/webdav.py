"""The WebDAV door: everything on ``/<endpoint>/…`` that is not the bytes of a file.

Each request is canonicalised, authenticated and decided upon before anything is said about what exists.
Errors are one line of text, or a problem object where JSON is accepted, with ``X-Error-Code``.

Source: RFC 4918 (class 1), RFC 9110; rules W1-W24 of the storage contract, §5 and §6 of the token contract.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

from doma.auth.model import Verb, bearer
from doma.cache.freshness import as_asked
from doma.core.errors import (
    BadRequest,
    Conflict,
    DomaError,
    NotAllowed,
    PartlyFailed,
    PreconditionFailed,
    Unsupported,
    UnsupportedType,
)
from doma.core.paths import normalise
from doma.doors import dav_move, files, listing, macaroons, propfind, proppatch
from doma.doors.dav_call import (
    ALLOW,
    App,
    Call,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    check_conditions,
    href,
    refuse,
)
from doma.doors.dav_xml import XML, failures
from doma.doors.endpoint import Site

log = logging.getLogger(__name__)

_NOT_OFFERED = {"LOCK", "UNLOCK", "PATCH", "TRACE", "CONNECT"}
"""Methods that we know and do not offer: 405; an unheard-of one is 501."""


def app(site: Site) -> App:
    """The ASGI application of all endpoints of a site."""
    of_file = files.app(site)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reply, method, headers = _Reply(send), scope["method"], _headers(scope)
        held = bearer.set(None)
        try:
            with as_asked(headers):
                await _serve(site, of_file, scope, headers, receive, reply)
        except DomaError as e:
            if reply.started:
                raise  # the status has gone out: only a broken connection can tell the client now
            site.name_in_full(e, files.wire_path(scope))
            await refuse(send, method, e, headers.get("accept", ""), site.name)
        except Exception:  # the outermost line of a request: say it, and keep the server
            if reply.started:
                raise
            log.exception("%s failed", method)
            error = DomaError(f"{method}: internal error; the server's log has the cause")
            await refuse(send, method, error, headers.get("accept", ""), site.name)
        finally:
            bearer.reset(held)

    return application


class _Reply:
    """``send`` that remembers whether the status has gone out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)


async def _serve(
    site: Site, of_file: App, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send
) -> None:
    method = scope["method"]
    _check_once(scope)
    if method == "OPTIONS":
        own = {"DAV": "1", "Allow": ALLOW, "MS-Author-Via": "DAV", "Accept-Ranges": "bytes"}
        await answer(send, method, 200, own, b"")
        return
    work = _METHODS.get(method)
    if work is None and method not in {"PUT", *_NOT_OFFERED}:
        raise Unsupported(f"{method[:20]}: this method is unknown here; known ones are {ALLOW}")
    endpoint, path = site.find(normalise(files.wire_path(scope)))
    query = scope.get("query_string", b"").decode("latin-1")
    said = headers.get("authorization")
    if method in {"GET", "HEAD", "PROPFIND"}:
        identity = await site.identify_reader(endpoint, path, said, query)
    else:
        identity = await site.identify(said, query)
    call = Call(site, endpoint, path, identity, scope, headers, receive, send)
    if method in _NOT_OFFERED:
        raise NotAllowed(f"{call.shown}: {method} is not offered; allowed are {ALLOW}")
    if work is None or (method == "HEAD" and "x-upload-id" in headers):
        await of_file(scope, receive, send)  # an upload's length can be asked before its file is there
    elif work is not _get or not await _is_file(call, of_file):
        try:
            await work(call)
        except PartlyFailed as e:
            parts = {href(endpoint, part, is_dir=False): why for part, why in e.detail["parts"].items()}
            await call.answer(207, {"Content-Type": XML, "X-Error-Code": e.code}, failures(parts).encode())


async def _is_file(call: Call, of_file: App) -> bool:
    """Answer GET and HEAD of what is no collection; of a collection return False, nothing was sent."""
    if call.method == "HEAD":
        collection = (await call.found(Verb.STAT)).is_dir
    elif call.endpoint.gate.may(call.identity, Verb.READ, call.path):
        # A file is by far the likelier case; asking first would cost a far store one more round trip.
        try:
            await of_file(call.scope, call.receive, call.send)
        except Conflict:
            if not (await call.endpoint.store.stat(call.path)).is_dir:
                raise
            return False
        return True
    else:
        collection = (await call.found(Verb.LIST)).is_dir
    if not collection:
        await of_file(call.scope, call.receive, call.send)
    return not collection


async def _get(call: Call) -> None:
    await listing.show(call, await call.endpoint.store.stat(call.path))


_FENCES = frozenset({"if-match", "if-unmodified-since", "x-upload-id"})


async def _delete(call: Call) -> None:
    """A file, or a collection with all that is in it; conditions name the only version to remove."""
    call.must_be_writable()
    call.allow(Verb.MODIFY)
    call.must_not_hold_an_area(call.path)
    stat = await call.found(Verb.MODIFY)
    call.must_be_whole(stat)
    check_conditions(call, stat)
    upload = call.headers.get("x-upload-id")
    if upload is not None and upload != stat.upload:
        raise PreconditionFailed(
            f"{call.shown}: was published by another upload than X-Upload-Id says; it stays"
        )
    # With a condition only the version that was judged is removed, not one that comes meanwhile (W47).
    fenced = not stat.is_dir and not _FENCES.isdisjoint(call.headers)
    only = stat.version if fenced else None
    await call.endpoint.store.delete(call.path, version=only, recursive=stat.is_dir)
    call.tell("file.deleted", call.endpoint, call.path, is_dir=stat.is_dir, bytes=stat.size)
    await call.answer(204)


async def _make_collection(call: Call) -> None:
    call.must_be_writable()
    call.endpoint.gate.decide_directory(call.identity, call.path)
    if await call.body(0xFFFF):
        raise UnsupportedType(f"{call.shown}: MKCOL takes no body")
    await call.endpoint.store.make_dir(call.path)
    call.tell("directory.made", call.endpoint, call.path)
    await call.answer(201)


_METHODS: dict[str, Callable[[Call], Awaitable[None]]] = {
    "GET": _get,
    "HEAD": _get,
    "DELETE": _delete,
    "MKCOL": _make_collection,
    "MOVE": dav_move.move,
    "COPY": dav_move.copy,
    "PROPFIND": propfind.propfind,
    "PROPPATCH": proppatch.proppatch,
    "POST": macaroons.issue,
}


_ONCE = frozenset({b"depth", b"destination", b"host", b"overwrite", b"source", b"x-upload-id"})
"""Headers whose repetition would let two readers of a request see two requests."""


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


def _check_once(scope: Scope) -> None:
    names = [name for raw, _ in scope["headers"] if (name := raw.lower()) in _ONCE]
    if len(names) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"the header {twice.decode().title()} came more than once; send it once")
