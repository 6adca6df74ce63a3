"""The token of a ServiceX client's configuration file: made, exchanged for access tokens, revoked.

    POST /token/refresh   header: that token      → an access token, for as long as it is not revoked
    POST /token/servicex  header: an access token → such a token, for the caller or (``doma.admin``) anybody
    POST /token/revoke    header: that token      → it is void

It is a refresh token of the embedded issuer that stays the same: the client keeps it in a file and never
writes a new one there. Where its text is an access token already, that is what comes back.

Source: servicex.md §2 of the project's contracts; RFC 6749 §6.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from doma.auth.issuer import Issuer
from doma.auth.ledger import Ledger
from doma.auth.model import Identity
from doma.auth.scopes import granted, words
from doma.auth.verifier import Verifier
from doma.cache.routes_body import known_first
from doma.columns.model import Grant
from doma.columns.routes import sent
from doma.core.errors import BadRequest, Forbidden, InvalidToken, ServiceUnavailable, Unauthenticated

CLIENT = "+servicex"
"""Who these refresh tokens belong to: no registered client can have this name."""
ADMIN, OFFLINE = "doma.admin", "offline_access"
LIFE = 30 * 24 * 3600.0
MAX_BODY = 64 << 10


class Wanted(BaseModel):
    """What a new token shall be."""

    model_config = ConfigDict(extra="forbid")

    subject: str = Field(default="", max_length=255)
    """Empty: who asks."""
    scope: str = Field(default="", max_length=4096)
    """Words ``storage.read:/path``; empty: all that the caller may read."""
    lifetime: float = Field(default=LIFE, gt=0, le=400 * 86400)
    """Seconds."""


def router(issuer: Issuer, verifier: Verifier) -> APIRouter:
    """The routes.

    Args:
        issuer: The embedded one.
        verifier: Of access tokens.
    """

    async def caller(request: Request) -> Identity:
        return await verifier.verify(_sent(request))

    api = APIRouter(tags=["columns"], redirect_slashes=False, route_class=known_first(caller, MAX_BODY))

    def ledger() -> Ledger:
        if issuer.ledger is None:
            raise ServiceUnavailable("/token: this issuer runs without tables", retry_after=60)
        return issuer.ledger

    @api.post("/token/refresh")
    async def refresh(request: Request) -> dict[str, Any]:
        token = _sent(request)
        family = await asyncio.to_thread(ledger().find, token, CLIENT, issuer.clock())
        if family is None:
            held = await verifier.verify(token)  # raises for what is neither
            life = held.expires - issuer.clock()
        else:
            life = min(issuer.lifetime, family.expires - issuer.clock())
            token = await asyncio.to_thread(
                issuer.issue, subject=family.subject, scopes=family.scope, audience=family.audience,
                lifetime=max(1.0, life),
            )  # fmt: skip
        return {"access_token": token, "token_type": "Bearer", "expires_in": int(life)}

    @api.post("/token/servicex")
    async def begin(request: Request, wanted: Wanted) -> dict[str, Any]:
        who = await caller(request)
        admin = ADMIN in who.scopes
        if not admin and (OFFLINE not in who.scopes or who.issuer != issuer.url):
            raise Forbidden(f"/token/servicex: the token lacks the scope {OFFLINE}", scope=OFFLINE)
        if wanted.subject not in {"", who.subject} and not admin:
            raise Forbidden("/token/servicex: only an operator makes tokens for somebody else", scope=ADMIN)
        now = issuer.clock()
        _, token = await asyncio.to_thread(
            ledger().begin,
            client=CLIENT,
            subject=wanted.subject or who.subject,
            scope=" ".join(_readable(wanted.scope, Grant.of(who).scopes)),
            audience=[issuer.default_audience],
            details={"groups": [], "more": {}, "user": False},
            now=now,
            expires=now + wanted.lifetime,
        )
        return {"refresh_token": token, "expires_in": int(wanted.lifetime)}

    @api.post("/token/revoke")
    async def revoke(request: Request) -> dict[str, str]:
        await asyncio.to_thread(ledger().end, _sent(request), CLIENT, issuer.clock())
        return {"message": "The token is void"}

    return api


def _sent(request: Request) -> str:
    token = sent(request)
    if token is None:
        raise Unauthenticated(f"{request.url.path}: a token is needed; 'doma columns login' makes one")
    return token


def _readable(asked: str, held: Sequence[str]) -> Sequence[str]:
    """The words to read with. Raises BadRequest, Forbidden: more than is held."""
    wanted = words(asked) or tuple(held)
    if not all(word.startswith("storage.read:/") for word in wanted):
        raise BadRequest("scope: only storage.read:/… goes into a token for column delivery")
    given = {*granted(wanted, held)}
    for word in wanted:
        if word not in given:
            raise Forbidden(f"scope: {word[:200]} is more than the token that asks may read")
    if not wanted:
        raise InvalidToken("token: it may read nothing; ask with one that has storage.read:/…")
    return wanted
