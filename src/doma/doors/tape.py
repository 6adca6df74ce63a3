"""The WLCG Tape REST API, version 1: stage, poll, cancel, delete, release, archiveinfo.

    GET    /.well-known/wlcg-tape-rest-api   where it is                               anybody
    POST   /api/v1/stage                     bring files online; 201 with an id        stage
    GET    /api/v1/stage/ID                  how far it has come                       stage or poll
    GET    /api/v1/stage/ID/events           the same, told as it happens (SSE; ours)  stage or poll
    POST   /api/v1/stage/ID/cancel           stop waiting for some files               stage
    DELETE /api/v1/stage/ID                  cancel and forget it                      stage
    POST   /api/v1/release/ID                give up the pins on files                 stage
    POST   /api/v1/archiveinfo               where files are                           poll, or another right

Paths are URL paths of this server: ``/site/a/file``. A file that may not be staged fails by itself; only when
no file of a request may be staged it is refused as a whole. A request belongs to the issuer of whoever made
it: for everybody else it does not exist.

Source: WLCG Tape REST API v1; rules W80-W96 of the storage contract, §5 of the token contract.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Row
from starlette.responses import JSONResponse, Response, StreamingResponse

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity, Verb
from doma.bus.local import Bus
from doma.core.config import Staging
from doma.core.errors import (
    BadRequest,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotFound,
    TooManyRequests,
    Unauthenticated,
)
from doma.core.paths import normalise
from doma.doors import tape_body
from doma.doors.endpoint import Site
from doma.doors.tape_events import Progress
from doma.store.protocol import Locality, Stat
from doma.store.tape_requests import StageRequests
from doma.store.tape_stages import Wanted, chunks
from doma.store.tape_tables import Stage

LARGE = 64 << 10
"""Bytes from which a body is parsed beside the event loop, few at a time."""
ROOM = 4 * tape_body.MAX_BODY
"""Bytes of all bodies that are held at once."""
TURN = 500
"""Paths that are decided on before others get a turn."""
CLIENTS = 10_000
"""Clients whose pace is remembered."""

_REFUSED = "the path is not valid here, or the token does not allow to ask about it"

Route = Callable[..., Awaitable[Response]]


class Pace:
    """Calls per client: so many a second, after a burst of ten times as many.

    Args:
        rate: Calls per second.
        clock: Seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._full: dict[str, float] = {}

    def check(self, client: str) -> None:
        """Count a call. Raises TooManyRequests, with the seconds until the next one is taken."""
        now = self._clock()
        at = max(self._full.pop(client, now), now) + 1 / self._rate
        wait = at - now - 10
        if wait <= 0:
            self._full[client] = at
        else:
            self._full[client] = at - 1 / self._rate
            raise TooManyRequests(f"tape: more than {self._rate:g} calls per second", retry_after=wait)
        if len(self._full) > CLIENTS:
            self._full.pop(next(iter(self._full)))


class Tape:
    """What the routes of one site do.

    Args:
        site: Endpoints and tokens.
        requests: The rows.
        bus: Tells of changes.
        options: Limits.
    """

    def __init__(self, site: Site, requests: StageRequests, bus: Bus, options: Staging) -> None:
        self._site, self._requests, self._options = site, requests, options
        self._pace = Pace(options.rate)
        self._parsing, self._held = asyncio.Semaphore(2), 0
        self._progress = Progress(bus, requests)

    async def who(self, request: Request) -> Identity:
        """Who asks. Raises Unauthenticated, TooManyRequests."""
        token = bearer_of(request.headers.get("authorization"), request.url.query)
        if token is None:
            raise Unauthenticated(
                f"{request.url.path}: a token is needed; send it as 'Authorization: Bearer ...'"
            )
        identity = await self._site.verifier.verify(token)
        self._pace.check(owner_of(identity))
        return identity

    async def stage(self, request: Request) -> Response:
        who = await self.who(request)
        wanted = await self._parsed(request, tape_body.stage, self._site.name, self._options)
        allowed = await self._decided(who, wanted)
        ident = await self._requests.submit(owner_of(who), allowed)
        place = str(request.url.replace(path=f"{request.url.path.rstrip('/')}/{ident}", query=""))
        return JSONResponse({"requestId": ident}, 201, {"Location": place})

    async def poll(self, request: Request, ident: str) -> Response:
        who = await self.who(request)
        row = await self._requests.find(ident, who.issuer)
        pages = self._visible(who, row)
        first = await anext(pages, None)
        if first is None:
            raise _unknown(ident)
        return StreamingResponse(_status(row, first, pages), media_type="application/json")

    async def events(self, request: Request, ident: str) -> Response:
        who = await self.who(request)
        row = await self._requests.find(ident, who.issuer)
        if await anext(self._visible(who, row), None) is None:
            raise _unknown(ident)
        self._progress.check_room()
        lines = self._progress.lines(row, lambda path: self._may_see(who, row, path), who.expires)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def cancel(self, request: Request, ident: str) -> Response:
        who, paths = await self._named(request)
        await self._requests.find(ident, who.issuer)
        await self._requests.cancel(ident, paths)
        return Response()

    async def remove(self, request: Request, ident: str) -> Response:
        who = await self.who(request)
        row = await self._requests.find(ident, who.issuer)
        mine = others = 0
        async for page in self._requests.pages(ident):
            allowed = sum(1 for file in page if self._may(who, Verb.STAGE, file.path))
            mine, others = mine + allowed, others + len(page) - allowed
        if not mine:
            raise _unknown(ident)
        if others and row.owner != owner_of(who):
            raise Forbidden(f"stage request {ident}: the token does not allow to stage all of its files")
        await self._requests.remove(ident)
        return Response()

    async def release(self, request: Request, ident: str) -> Response:
        who, paths = await self._named(request)
        try:
            await self._requests.find(ident, who.issuer)
        except NotFound:
            # gfal2 releases under a made-up id when it was given none: then the owner's pins are meant
            await self._requests.release(None, owner_of(who), paths)
        else:
            await self._requests.release(ident, owner_of(who), paths)
        return Response()

    async def archiveinfo(self, request: Request) -> Response:
        who = await self.who(request)
        paths = await self._parsed(request, tape_body.paths, self._options.files, cut=True)
        return StreamingResponse(self._localities(who, paths), media_type="application/json")

    # --- rights ---

    def _may(self, who: Identity, verb: Verb, path: str) -> bool:
        try:
            endpoint, inner = self._site.find(normalise(path))
        except DomaError:
            return False
        return endpoint.gate.may(who, verb, inner)

    def _may_see(self, who: Identity, row: Row[Any], path: str) -> bool:
        """Whether a request's file is shown: to who may stage or poll it, and to who asked for it.

        A right to read alone does not show requests, not even one's own.
        """
        mine = {right.verb for right in who.capabilities}
        stages, polls = not mine or Verb.STAGE in mine, not mine or Verb.POLL in mine
        if row.owner == owner_of(who) and (stages or polls):
            return True
        return self._may(who, Verb.STAGE, path) or (polls and self._may(who, Verb.POLL, path))

    async def _decided(self, who: Identity, wanted: Sequence[Wanted]) -> list[Wanted]:
        """The files with what the token refuses marked. Raises Forbidden if that is all of them."""
        decided: list[Wanted] = []
        refused: list[str] = []
        for some in chunks(wanted, TURN):
            for file in some:
                error = None
                try:
                    endpoint, inner = self._site.find(normalise(file.path))
                    if not endpoint.gate.may(who, Verb.STAGE, inner):
                        refused.append(file.path)
                        error = f"{file.path}: the token does not allow to stage this"
                except DomaError as e:
                    error = e.message
                decided.append(file if error is None else replace(file, error=error))
            await asyncio.sleep(0)
        if len(refused) == len(decided):
            self._decide(who, Verb.STAGE, refused[0])
        return decided

    def _decide(self, who: Identity, verb: Verb, path: str) -> None:
        """Raise unless somebody may do this to a URL path."""
        try:
            endpoint, inner = self._site.find(normalise(path))
            endpoint.gate.decide(who, verb, inner)
        except DomaError as e:
            self._site.name_in_full(e, path)
            raise

    async def _named(self, request: Request) -> tuple[Identity, list[str]]:
        """Who asks, and the paths of the body, all of which they may stage."""
        who = await self.who(request)
        paths = await self._parsed(request, tape_body.paths, self._options.files)
        for some in chunks(paths, TURN):
            for path in some:
                self._decide(who, Verb.STAGE, path)
            await asyncio.sleep(0)
        return who, paths

    async def _parsed(
        self, request: Request, parse: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """What the body says.

        Raises:
            LimitExceeded: it is too long, told before it is all here. TooManyRequests: all are together.
        """
        data = bytearray()
        try:
            async for piece in request.stream():
                data += piece
                self._held += len(piece)
                if len(data) > tape_body.MAX_BODY:
                    most = tape_body.MAX_BODY
                    raise LimitExceeded(f"{request.url.path}: a body may have at most {most} bytes")
                if self._held > ROOM and len(data) > LARGE:
                    raise TooManyRequests("tape: too many large requests at once", retry_after=10)
            if len(data) < LARGE:
                return parse(bytes(data), *arguments, **options)
            async with self._parsing:
                return await asyncio.to_thread(parse, bytes(data), *arguments, **options)
        finally:
            self._held -= len(data)

    # --- long answers ---

    async def _visible(self, who: Identity, row: Row[Any]) -> AsyncIterator[Sequence[Row[Any]]]:
        """The files of a request that somebody may see, in pages that are not empty."""
        async for page in self._requests.pages(row.id):
            mine = [file for file in page if self._may_see(who, row, file.path)]
            if mine:
                yield mine

    async def _localities(self, who: Identity, paths: Sequence[str]) -> AsyncIterator[str]:
        comma = "["
        for some in chunks(paths):
            asked = [path for path in some if self._may(who, Verb.POLL, path)]
            found = dict(zip(asked, await self._requests.localities(asked), strict=True))
            answers = [_locality(path, found.get(path, _REFUSED)) for path in some]
            yield comma + ",".join(map(_json, answers))
            comma = ","
        yield "]"


def owner_of(who: Identity) -> str:
    """Whose a request is."""
    return f"{who.issuer}#{who.subject}"


def router(site: Site, requests: StageRequests, bus: Bus, options: Staging, base: str) -> APIRouter:
    """The routes of a site.

    Args:
        site: Endpoints and tokens.
        requests: The rows.
        bus: Tells of changes.
        options: Limits.
        base: ``https://host:port`` of this server.
    """
    tape, routes = Tape(site, requests, bus, options), APIRouter(tags=["tape"])
    here = {"uri": f"{base}/api/v1", "version": "v1", "metadata": {"events": "stage/{id}/events"}}
    about = {
        "sitename": site.name,
        "description": "Files on disk and on tape of " + site.name,
        "endpoints": [here],
    }

    @routes.get("/.well-known/wlcg-tape-rest-api")
    async def known() -> JSONResponse:
        return JSONResponse(about)

    for path, method, work in (
        ("/api/v1/stage", "POST", tape.stage),
        ("/api/v1/stage/{ident}", "GET", tape.poll),
        ("/api/v1/stage/{ident}", "DELETE", tape.remove),
        ("/api/v1/stage/{ident}/events", "GET", tape.events),
        ("/api/v1/stage/{ident}/cancel", "POST", tape.cancel),
        ("/api/v1/release/{ident}", "POST", tape.release),
        ("/api/v1/archiveinfo", "POST", tape.archiveinfo),
    ):
        routes.add_api_route(path, _told(work), methods=[method], response_model=None)
    return routes


def _told(work: Route) -> Route:
    """A route whose refusals of a body read as the API says (W90)."""

    @wraps(work)
    async def route(*arguments: Any, **named: Any) -> Response:
        try:
            return await work(*arguments, **named)
        except BadRequest as e:
            said = {"status": e.http, "title": "JSON Validation error", "detail": e.message, "code": e.code}
            headers = {"X-Error-Code": e.code}
            return JSONResponse(said, e.http, headers, media_type="application/problem+json")

    return route


async def _status(
    row: Row[Any], first: Iterable[Row[Any]], pages: AsyncIterator[Sequence[Row[Any]]]
) -> AsyncIterator[str]:
    head = {
        "id": row.id,
        "createdAt": int(row.created),
        "startedAt": int(row.created if row.started is None else row.started),
    }
    if row.completed is not None:
        head["completedAt"] = int(row.completed)
    yield _json(head)[:-1] + ',"files":[' + ",".join(_json(_file(file)) for file in first)
    async for page in pages:
        yield "," + ",".join(_json(_file(file)) for file in page)
    yield "]}"


def _file(row: Row[Any]) -> dict[str, Any]:
    """A file as clients read it: ``error`` only if there is one (W88)."""
    said: dict[str, Any] = {"path": row.path, "state": row.state}
    if row.started is not None:
        said["startedAt"] = int(row.started)
    if row.finished is not None:
        said["finishedAt"] = int(row.finished)
    if row.error is not None and row.state in {Stage.FAILED, Stage.CANCELLED}:
        said["error"] = row.error
    return said


def _locality(path: str, found: Stat | DomaError | str) -> dict[str, str]:
    if isinstance(found, DomaError):
        found = found.message
    if isinstance(found, str):
        return {"path": path, "error": found}
    if found.is_dir:
        return {"path": path, "error": "this is a directory"}
    return {"path": path, "locality": found.locality if found.size else Locality.NONE}


def _unknown(ident: str) -> NotFound:
    return NotFound(f"stage request {ident[:40]}: there is none of yours")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
