"""Files that are wanted soon, by root://: prepare, and how far that has come.

A file on tape is staged by the same requests as over the Tape REST API; an object of a cache is fetched.

Source: §9 of the project's root:// contract (prepare, query 2); rules W81-W93 of the storage contract.
"""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from struct import Struct
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from sqlalchemy import Row

from doma.auth.model import Identity, Verb
from doma.cache.store import CacheStore
from doma.core.errors import DomaError, Forbidden, LimitExceeded, NotFound, Unauthenticated, Unsupported
from doma.core.paths import encode
from doma.doors.root_acts import acting
from doma.doors.root_call import Call, Target
from doma.store.protocol import Locality
from doma.store.tape_requests import StageRequests
from doma.store.tape_stages import Wanted
from doma.store.tape_tables import OPEN, Stage

MOST = 10_000
"""Paths of one request."""
_P_PREPARE = Struct(">BBHH10x")  # options, priority, port, more options
_CANCEL, _STAGE, _EVICT = 1, 8, 1


async def prepare(call: Call) -> bytes:
    """Stage files, cancel that, or give them up; the id of a request that stages."""
    options, _, _, more = _P_PREPARE.unpack(call.body)
    if options & _CANCEL:
        await _cancel(call)
        return b""
    targets = [await call.target(raw) for raw in _lines(call)]
    if more & _EVICT:
        await _evict(call, targets)
        return b""
    for target in targets:
        verb = Verb.READ if isinstance(target.endpoint.store, CacheStore) else Verb.STAGE
        target.endpoint.gate.decide(target.identity, verb, target.path)
    return (await _stage(call, targets)).encode() + b"\0" if options & _STAGE else b""


async def status(call: Call) -> bytes:
    """What has become of some files, in the form of CTA and EOS: JSON."""
    ident, *paths = _lines(call)
    name = ident.decode("utf-8", "replace")[:40]
    who = (await call.target(paths[0])).identity if paths else await call.caller("query")
    rows: dict[str, Row[Any]] = {}
    created = ""
    if call.site.stages is not None and who is not None:
        with suppress(NotFound):
            created = str(int((await call.site.stages.find(name, who.issuer)).created))
            rows = await _rows(call.site.stages, name, {_plain(raw) for raw in paths})
    asked = paths or [path.encode() for path in rows if _may_poll(call, who, path)]
    told = [await _state(call, raw, rows, created) for raw in asked]
    return json.dumps({"request_id": name, "responses": told}).encode() + b"\0"


async def _rows(stages: StageRequests, ident: str, paths: set[str]) -> dict[str, Row[Any]]:
    """The files of a request by path: some of them, or of all the first :data:`MOST`."""
    found: dict[str, Row[Any]] = {}
    async for file in _files(stages, ident):
        path = unquote(file.path)
        if not paths or path in paths:
            found[path] = file
        if len(found) == (len(paths) or MOST):
            break
    return found


def _plain(raw: bytes) -> str:
    return "/" + "/".join(
        part for part in raw.partition(b"?")[0].decode("utf-8", "replace").split("/") if part
    )


def _may_poll(call: Call, who: Identity | None, path: str) -> bool:
    try:
        endpoint, inner = call.site.find(path)
    except NotFound:
        return False
    return endpoint.gate.may(who, Verb.POLL, inner)


async def _stage(call: Call, targets: list[Target]) -> str:
    """Have files of caches fetched and all others staged; the id of the request for these."""
    fetched: list[tuple[CacheStore, str]] = []
    wanted: dict[str, Wanted] = {}
    who: Identity | None = None
    for target in targets:
        store, path = target.endpoint.store, encode(target.shown)
        if isinstance(store, CacheStore):
            fetched.append((store, target.path))
        else:
            who, wanted[path] = target.identity, Wanted(path, call.site.pin)
    if wanted and call.site.stages is None:
        raise Unsupported("prepare: nothing is staged here; files are on disk, read them")
    for cache, inner in fetched:
        await cache.prestage(inner)
    if not wanted or call.site.stages is None:
        return str(uuid4())
    return await call.site.stages.submit(_owner(who), list(wanted.values()))


async def _cancel(call: Call) -> None:
    """End a request of the caller's: of somebody of the same issuer who may stage all of its files."""
    stages, who = call.site.stages, await call.caller("prepare")
    ident = _lines(call)[0].decode("utf-8", "replace")[:40]
    if stages is None:
        raise NotFound(f"stage request {ident}: there is none of yours")
    row = await stages.find(ident, who.issuer if who is not None else "")
    paths = [file.path async for file in _files(stages, ident) if file.state in OPEN]
    if row.owner != _owner(who):
        for path in paths:
            endpoint, inner = call.site.find(unquote(path))
            endpoint.gate.decide(who, Verb.STAGE, inner)
    await stages.cancel(ident, paths)


async def _evict(call: Call, targets: list[Target]) -> None:
    """Give up what keeps files on disk: pins of theirs, or their place in the cache."""
    released = []
    for target in targets:
        store, gate, who = target.endpoint.store, target.endpoint.gate, target.identity
        if isinstance(store, CacheStore):
            gate.decide(who, Verb.MODIFY, target.path)
            await store.evict(target.path)
        else:
            gate.decide(who, Verb.STAGE, target.path)
            released.append(target)
    if released and call.site.stages is not None:
        paths = [encode(target.shown) for target in released]
        await call.site.stages.release(None, _owner(released[0].identity), paths)


async def _state(call: Call, raw: bytes, rows: dict[str, Row[Any]], created: str) -> dict[str, Any]:
    """One file; what goes wrong with it is its answer."""
    path, error, there, tape, disk = raw.decode("utf-8", "replace"), "", False, False, False
    try:
        target = await call.target(raw)
        path = target.shown
        found = await acting(call, target, "query").found(Verb.POLL)
        there, tape = True, found.locality in {Locality.TAPE, Locality.DISK_AND_TAPE}
        disk = found.locality not in {Locality.TAPE, Locality.LOST, Locality.UNAVAILABLE}
        if isinstance(store := target.endpoint.store, CacheStore):
            disk = (held := store.held(target.path)) is not None and held.complete
    except DomaError as e:
        error = e.message
        if isinstance(e, Forbidden | Unauthenticated):
            rows = {}
    row = rows.get(path)
    if row is not None and row.error is not None and row.state in {Stage.FAILED, Stage.CANCELLED}:
        error = row.error
    return {
        "path": path,
        "path_exists": there,
        "on_tape": tape,
        "online": disk,
        "requested": row is not None and row.state in OPEN,
        "has_reqid": row is not None,
        "req_time": created if row is not None else "",
        "error_text": error,
    }


async def _files(stages: StageRequests, ident: str) -> AsyncIterator[Row[Any]]:
    async for page in stages.pages(ident):
        for file in page:
            yield file


def _lines(call: Call) -> list[bytes]:
    """The lines of the data, at least one. Raises LimitExceeded."""
    lines = bytes(call.data).partition(b"\0")[0].strip(b"\n").split(b"\n")
    if len(lines) > MOST:
        raise LimitExceeded(f"prepare: {len(lines)} paths; at most {MOST} are taken at once")
    return lines


def _owner(who: Identity | None) -> str:
    if who is None:
        raise Unauthenticated("prepare: a token is needed to stage files; log in with one")
    return f"{who.issuer}#{who.subject}"
