"""Pages and streams of column requests: how far, what failed and why, live.

    GET  /requests                               own requests; everybody's for operators
    GET  /requests/ID                            one, with its files         its owner, operators
    POST /requests/ID/cancel                     from the page's button
    GET  /transformation-request/ID[/results]    the same page, where ServiceX's clients look for it
    GET  /servicex/transformation/ID/events      its progress as JSON, Server-Sent Events    its owner

Everything works without scripts; with them a page is live.
"""

import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from doma.auth.verifier import Verifier
from doma.columns.model import FINAL, State
from doma.columns.overview import Watched, recent, watched
from doma.columns.routes import Caller
from doma.columns.service import ColumnService
from doma.core.errors import Forbidden, NotFound, Unauthenticated
from doma.db.engine import Database
from doma.web.access import ADMIN, Peer, identity_of, is_local, owner_of_peer
from doma.web.app import PAGE, SSE, pages, policy
from doma.web.stream import Streams

FILES, REQUESTS = 500, 200
"""Rows of a page."""


class Pages:
    """What the pages show to whom.

    Args:
        db: Where requests are.
        service: Cancels them.
        verifier: Of tokens.
        peer: Tells the owner of a local connection.
    """

    def __init__(
        self, db: Database, service: ColumnService, verifier: Verifier, peer: Peer = owner_of_peer
    ) -> None:
        self._db, self._service, self._verifier, self._peer = db, service, verifier, peer

    async def viewer(self, request: Request) -> tuple[str | None, float]:
        """Whose requests may be seen (None: everybody's), and until when.

        Raises:
            Unauthenticated: nobody's.
        """
        identity = await identity_of(request, self._verifier)
        if identity is not None:
            owner = None if ADMIN in identity.scopes else f"{identity.issuer}#{identity.subject}"
            return owner, identity.expires
        if is_local(request) and self._peer(request) in {os.geteuid(), 0}:
            return None, float("inf")
        raise Unauthenticated(
            f"{request.url.path}: is for whose request it is; add ?authz=TOKEN to the address"
        )

    async def seen(self, id_: str, owner: str | None, *, failed: bool = False, limit: int = FILES) -> Watched:
        """A request. Raises NotFound."""
        found = await self._db.look(lambda tx: watched(tx, id_, owner, limit, failed=failed))
        if found is None:
            raise NotFound(f"request {id_[:40]!r}: there is none of that id among yours")
        return found

    async def listed(self, owner: str | None) -> dict[str, Any]:
        """The youngest requests."""
        return {"requests": await self._db.look(lambda tx: recent(tx, owner, REQUESTS))}

    async def cancel(self, id_: str, owner: str | None) -> None:
        """Stop one that still runs."""
        found = (await self.seen(id_, owner, limit=0)).request
        if not found.state.final:
            await self._service.cancel(found.owner, id_)


def router(
    shown: Pages, streams: Streams, caller: Caller, clock: Callable[[], float] = time.time
) -> APIRouter:
    """The routes.

    Args:
        shown: What is on the pages.
        streams: Running streams.
        caller: Who asks for the JSON stream.
        clock: Unix seconds.
    """
    api = APIRouter(include_in_schema=False, redirect_slashes=False)

    @api.get("/requests")
    async def listing(request: Request) -> Response:
        owner, _ = await shown.viewer(request)
        return _html("requests.html", request, await shown.listed(owner))

    @api.get("/requests/live")
    async def listing_live(request: Request) -> Response:
        owner, until = await shown.viewer(request)

        async def fragment() -> str:
            return pages.get_template("requests_live.html").render(
                now=await shown.listed(owner), query=_query(request)
            )

        return _stream(streams, owner, fragment, until)

    @api.get("/transformation-request/{id_}")
    @api.get("/transformation-request/{id_}/results")
    @api.get("/requests/{id_}")
    async def page(request: Request, id_: str, status: str = "") -> Response:
        owner, _ = await shown.viewer(request)
        failed = status == "failure"
        found = await shown.seen(id_, owner, failed=failed)
        return _html("request.html", request, {**_fields(found), "failed_only": failed})

    @api.get("/requests/{id_}/live")
    async def live(request: Request, id_: str, status: str = "") -> Response:
        owner, until = await shown.viewer(request)
        failed = status == "failure"
        await shown.seen(id_, owner, limit=0)
        ended = False

        async def fragment() -> str:
            nonlocal ended
            found = await shown.seen(id_, owner, failed=failed)
            ended = found.request.state.final
            return pages.get_template("request_live.html").render(
                now={**_fields(found), "failed_only": failed}
            )

        return _stream(streams, owner, fragment, until, lambda now: ended)

    @api.post("/requests/{id_}/cancel")
    async def cancel(request: Request, id_: str) -> Response:
        _must_be_from_here(request)
        owner, _ = await shown.viewer(request)
        await shown.cancel(id_, owner)
        return RedirectResponse(f"../{id_}{_query(request)}", 303, headers=PAGE)

    @api.get("/servicex/transformation/{id_}/events")
    async def events(request: Request, id_: str) -> Response:
        who = await caller(request)
        await shown.seen(id_, who.owner, limit=0)

        async def state() -> dict[str, Any]:
            found = await shown.seen(id_, who.owner, limit=0)
            return {
                "request_id": id_,
                "status": found.request.state.value,
                "failure-info": found.request.failure,
                **asdict(found.progress),
            }

        return _stream(streams, who.owner, state, clock() + 3600, lambda now: State(now["status"]) in FINAL)

    return api


def _stream(
    streams: Streams,
    owner: str | None,
    render: Callable[[], Awaitable[Any]],
    until: float,
    last: Callable[[Any], bool] = lambda now: False,
) -> Response:
    streams.check_room(owner)

    async def lines() -> Any:
        try:
            async for line in streams.page(render, until, last, owner):
                yield line
        except NotFound:
            return  # it was deleted

    return StreamingResponse(lines(), media_type="text/event-stream", headers=SSE)


def _fields(found: Watched) -> dict[str, Any]:
    return {"request": found.request, "progress": found.progress, "files": found.files, "more": found.more}


def _html(template: str, request: Request, now: dict[str, Any]) -> Response:
    nonce = secrets.token_urlsafe(16)
    # relative, so that a hub's prefix stays; as many steps up as the address on the wire has
    root = "../" * (request.scope["raw_path"].count(b"/") - 1)
    body = pages.get_template(template).render(now=now, nonce=nonce, root=root, query=_query(request))
    return HTMLResponse(body, headers=PAGE | policy(nonce, forms=True))


def _query(request: Request) -> str:
    """What the links of a page must carry on: its token."""
    token = request.query_params.get("authz")
    return "?" + urlencode({"authz": token}) if token else ""


def _must_be_from_here(request: Request) -> None:
    """Refuse a form that a page of somebody else sends in the user's name. Raises Forbidden."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None:
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    else:  # what the browser says itself; without referrer the origin is "null"
        foreign = site != "same-origin"
    if foreign:
        raise Forbidden(f"{request.url.path}: the form is not from a page of this server")
