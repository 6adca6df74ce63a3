"""Pages and streams: status for people, ``/metrics`` for Prometheus, ``/events`` for whoever waits.

    GET /             status page, live; JSON with ``Accept: application/json``      operators
    GET /events/page  the changing part of that page, as Server-Sent Events         operators
    GET /metrics      Prometheus                                                     this machine, operators
    GET /events       own events (``doma.admin``: all), resumable by Last-Event-ID   a token
    GET /health       whether the server can work                                    anybody

Operators are who :mod:`doma.web.access` says.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request
from jinja2 import Environment, FileSystemLoader
from sqlalchemy import text
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from doma import __version__
from doma.auth.verifier import Verifier
from doma.bus.local import Bus
from doma.core.errors import BadRequest, TimedOut
from doma.db.engine import Database
from doma.monitor.metrics import Metrics
from doma.net.problem import install
from doma.web import spell
from doma.web.access import ADMIN, Peer, must_be_known, must_be_operator, owner_of_peer
from doma.web.overview import Snapshot
from doma.web.stream import Asked, Streams

PAGE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
SSE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self';"
    " base-uri 'none'; form-action {forms}; frame-ancestors 'self'"
)

pages = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
pages.filters |= {"bytes": spell.size, "count": spell.count, "utc": spell.instant}
pages.filters |= {"duration": spell.duration, "facts": spell.facts}


def _take_slash(web: FastAPI) -> None:
    """Let a path of an API that ends in a slash, as gfal2 asks the Tape REST API, be the one without it."""
    unknown = web.router.default

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith("/api/") and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/"), "raw_path": scope["raw_path"].rstrip(b"/")}
            await web.router(scope, receive, send)
        else:
            await unknown(scope, receive, send)

    web.router.default = bare


def app(
    verifier: Verifier,
    bus: Bus,
    db: Database,
    metrics: Metrics,
    snapshot: Callable[[], Awaitable[Snapshot]],
    *,
    realm: str = "localhost",
    streams: Streams | None = None,
    peer: Peer = owner_of_peer,
    ailing: Callable[[], Mapping[str, str]] = dict,
) -> FastAPI:
    """The application. Closing the bus ends its endless answers.

    ``ailing`` names the parts that do not work as they should, though requests are answered, and says why.
    """
    # no redirect to the same with or without a slash: it would go to the host that the request names
    web = FastAPI(title="doma", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    install(web, realm)
    _take_slash(web)
    flows = streams or Streams(db, bus)
    web.state.streams = flows

    @web.get("/health")
    async def health() -> dict[str, str]:
        try:
            async with asyncio.timeout(5):
                await db.look(lambda tx: tx.execute(text("SELECT 1")).scalar())
        except TimeoutError as e:
            raise TimedOut("/health: the database has not answered for 5 s") from e
        parts = ailing()
        return {"status": "degraded" if parts else "ok", "version": __version__, **parts}

    @web.get("/metrics")
    async def numbers(request: Request) -> Response:
        await must_be_operator(request, verifier)
        body, kind = metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=kind)

    @web.get("/events")
    async def happenings(
        request: Request,
        kind: Annotated[list[str] | None, Query(max_length=20)] = None,
        last_event_id: Annotated[str | None, Header()] = None,
        last: str | None = None,
    ) -> Response:
        who = await must_be_known(request, verifier)
        owner = None if ADMIN in who.scopes else f"{who.issuer}#{who.subject}"
        flows.check_room(owner)
        asked = Asked(
            owner=owner,
            kinds=_patterns(kind),
            last=_number(last_event_id if last_event_id is not None else last),
            until=who.expires,
            good=lambda: not verifier.voided(who),
        )
        return StreamingResponse(flows.lines(asked), media_type="text/event-stream", headers=SSE)

    @web.get("/")
    async def status(request: Request) -> Response:
        await must_be_operator(request, verifier, peer)
        now = await snapshot()
        if "json" in request.headers.get("accept", ""):
            return JSONResponse(now, headers=PAGE)
        nonce = secrets.token_urlsafe(16)
        page = pages.get_template("status.html").render(now=now, nonce=nonce)
        return HTMLResponse(page, headers=PAGE | policy(nonce))

    @web.get("/events/page")
    async def live(request: Request) -> Response:
        until = await must_be_operator(request, verifier, peer)
        flows.check_room()

        async def fragment() -> str:
            return pages.get_template("live.html").render(now=await snapshot())

        return StreamingResponse(flows.page(fragment, until), media_type="text/event-stream", headers=SSE)

    return web


def policy(nonce: str, *, forms: bool = False) -> dict[str, str]:
    """The header that lets a page run its own script and style, and send forms to nobody else."""
    return {"Content-Security-Policy": _POLICY.format(nonce=nonce, forms="'self'" if forms else "'none'")}


def _patterns(kinds: list[str] | None) -> tuple[str, ...]:
    for kind in kinds or ():
        if len(kind) > 64 or not kind.isprintable():
            raise BadRequest("/events: a kind is a word or pattern of at most 64 characters, like file.*")
    return tuple(kinds or ("*",))


def _number(text: str | None) -> int | None:
    if text is None or not text.strip():
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest("/events: Last-Event-ID must be the number of an event")
    return int(text)
