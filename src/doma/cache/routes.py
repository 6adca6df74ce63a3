"""The cache's commands over HTTP: stats, holdings, verify, purge, and Pelican's evict.

Reading what is here needs any valid token, holdings the right to stat each path; what costs others their
warm bytes needs ``storage.modify`` on the path or the operator's scope ``doma.admin``.

Source: cache contract §7, §8; Pelican's ``/pelican/api/v1.0/evict``.
"""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from doma.auth.bearer import bearer_of
from doma.auth.gate import Gate
from doma.auth.model import Identity, Verb, bearer
from doma.auth.verifier import Verifier
from doma.cache.purge import Victim
from doma.cache.stats import Stats
from doma.cache.store import CacheStore
from doma.cache.upkeep import Holding, Scrubbed
from doma.core.errors import BadRequest, Forbidden, Unauthenticated
from doma.core.paths import checked

OPERATOR = "doma.admin"
"""The scope that allows every command."""
MOST = 10_000
"""Paths of one holdings question."""


class Files(BaseModel):
    """Which files are asked about."""

    model_config = ConfigDict(extra="forbid")

    paths: Annotated[list[str], Field(max_length=MOST)]
    """Paths in the cache, ``/a/b`` or ``/https://host/a``."""


class Holdings(BaseModel):
    """What of them is here, in the same order."""

    files: list[Holding]
    cached: int
    """Bytes that are here of all of them."""


class Purged(BaseModel):
    """What a purge took, or would take, in order."""

    dry_run: bool
    objects: list[Victim]
    bytes: int


def router(cache: CacheStore, verifier: Verifier, gate: Gate) -> APIRouter:
    """The routes of one cache.

    Args:
        cache: The store.
        verifier: Turns a token into an identity.
        gate: The policy of the cache's endpoint.
    """

    async def who(request: Request) -> Identity:
        token = bearer_of(request.headers.get("authorization"), request.url.query, access_token=True)
        if token is None:
            raise Unauthenticated(
                f"{request.url.path}: a token is needed; send it as 'Authorization: Bearer …'"
            )
        bearer.set(token)  # what is fetched again for a verify is fetched in the caller's name
        return await verifier.verify(token)

    someone = Annotated[Identity, Depends(who)]
    routes = APIRouter(tags=["cache"])

    @routes.get("/api/v1/cache/stats")
    async def stats(caller: someone) -> Stats:
        """What was counted since the start: bytes by class, counts, disk and memory in use."""
        return cache.stats()

    @routes.post("/api/v1/cache/holdings")
    async def holdings(files: Files, caller: someone) -> Holdings:
        """How much of each file is here; asks no origin."""
        paths = [checked(path) for path in files.paths]
        for path in paths:
            if OPERATOR not in caller.scopes:
                gate.decide(caller, Verb.STAT, path)
        found = await cache.holdings(paths)
        return Holdings(files=list(found), cached=sum(file.cached for file in found))

    @routes.post("/api/v1/cache/verify")
    async def verify(caller: someone, path: str | None = None) -> Scrubbed:
        """Check one object's pages against their checksums; damaged ones are fetched again."""
        return await cache.verify(_changeable(gate, caller, path))

    @routes.post("/api/v1/cache/purge")
    async def purge(caller: someone, dry_run: bool = False) -> Purged:
        """Free disk down to the low mark; ``dry_run`` only says what would go, and why."""
        if OPERATOR not in caller.scopes:
            raise Forbidden(f"purge: the token of {caller} needs the scope {OPERATOR}", scope=OPERATOR)
        gone = list(await cache.purge(dry_run=dry_run))
        return Purged(dry_run=dry_run, objects=gone, bytes=sum(victim.used for victim in gone))

    @routes.api_route("/pelican/api/v1.0/evict", methods=["GET", "POST", "DELETE"], operation_id="evict")
    async def evict(
        request: Request, caller: someone, path: str | None = None, immediate: bool = False
    ) -> Response:
        """Give an object up, or all below a directory: first at the next purge, or now."""
        done = await cache.evict(_changeable(gate, caller, path), immediate=immediate)
        if "json" in request.headers.get("accept", ""):
            return JSONResponse(asdict(done))
        when = "now" if done.immediate else "at the next purge"
        busy = f", {done.busy} left because they are being read" if done.busy else ""
        return PlainTextResponse(f"{done.path}: {done.objects} objects, {done.bytes} bytes {when}{busy}\n")

    return routes


def _changeable(gate: Gate, caller: Identity, path: str | None) -> str:
    """The path of a command, canonical but for a trailing ``/``, if the caller may give it up."""
    if not path:
        raise BadRequest("path: is missing; name the object, as in ?path=/a/b")
    clean = checked(path)
    if OPERATOR not in caller.scopes:
        gate.decide(caller, Verb.MODIFY, clean, is_dir=path.endswith("/"))
    return clean + "/" if path.endswith("/") and clean != "/" else clean
