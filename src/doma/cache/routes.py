"""The cache's commands over HTTP: what is here, keep it, bring it, give it up, is it sound.

Reading what is here needs any valid token, holdings the right to look at each path, prestage the right to
read it; what costs others their room or their warm bytes needs ``storage.modify`` on the path or the
operator's scope ``doma.admin``.

Source: cache contract §7, §8; Pelican's ``/pelican/api/v1.0/{evict,prestage}``.
"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from doma.auth.bearer import bearer_of
from doma.auth.gate import Gate
from doma.auth.model import Identity, Verb, bearer
from doma.auth.verifier import Verifier
from doma.cache.index import Pin
from doma.cache.purge import Victim
from doma.cache.routes_body import known_first
from doma.cache.routes_stream import lines, objects
from doma.cache.scrubber import Pass
from doma.cache.stats import Stats
from doma.cache.store import CacheStore
from doma.cache.upkeep import Evicted, Holding, Scrubbed
from doma.core.errors import BadRequest, Forbidden, NotFound, Unauthenticated
from doma.core.paths import checked

OPERATOR = "doma.admin"
"""The scope that allows every command."""
MOST = 10_000
"""Paths of one question, and objects of one answer."""


class Files(BaseModel):
    """Which files are asked about."""

    model_config = ConfigDict(extra="forbid")

    paths: Annotated[list[str], Field(max_length=MOST)]
    """Paths in the cache, ``/a/b`` or ``/https://host/a``."""


class Holdings(BaseModel):
    """What of them is here: in the same order, or by name for a directory."""

    files: list[Holding]
    size: int
    """Bytes of all of them, as far as they are known here."""
    cached: int
    """Bytes that are here of all of them."""
    complete: int
    """Files that are here whole."""
    after: str | None
    """Of a directory: there is more behind this name, ask for it with ``after=``."""


class Purged(BaseModel):
    """What a purge took, or would take, in order."""

    dry_run: bool
    objects: list[Victim]
    """The first 10,000."""
    count: int
    bytes: int


class Lined(BaseModel):
    """What was put first in line for the next purge."""

    evicted: list[Evicted]
    missing: list[str]
    """Nothing of these is here."""


class Wanted(BaseModel):
    """What shall be brought."""

    model_config = ConfigDict(extra="forbid")

    paths: Annotated[list[str], Field(min_length=1, max_length=MOST)]
    columns: Annotated[list[str], Field(min_length=1, max_length=MOST)] | None = None
    """Names or globs (``Muon_*``, ``Events/nMuon``) of columns; none: whole files."""
    tree: str | None = None
    """The tree or RNTuple of the columns."""
    wait: bool = True
    """Whether the answer tells the progress until the end; an answer that is left gives the files up."""


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
        bearer.set(token)  # what is fetched for a command is fetched in the caller's name
        return await verifier.verify(token)

    someone = Annotated[Identity, Depends(who)]
    routes = APIRouter(tags=["cache"], route_class=known_first(who))
    rights = _Rights(gate)
    _looking(routes, cache, rights, someone)
    _keeping(routes, cache, rights, someone)
    _bringing(routes, cache, rights, someone)
    return routes


class _Rights:
    """Who may name which path for what."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def path(self, caller: Identity, verb: Verb, path: str | None) -> str:
        """A path, canonical but for a trailing ``/``, if the caller may."""
        if not path:
            raise BadRequest("path: is missing; name the object, as in ?path=/a/b")
        clean = checked(path)
        if OPERATOR not in caller.scopes:
            self._gate.decide(caller, verb, clean, is_dir=path.endswith("/"))
        return clean + "/" if path.endswith("/") and clean != "/" else clean

    def operator(self, caller: Identity, what: str) -> None:
        """Refuse everybody but operators."""
        if OPERATOR not in caller.scopes:
            raise Forbidden(f"{what}: the token of {caller} needs the scope {OPERATOR}", scope=OPERATOR)


def _looking(routes: APIRouter, cache: CacheStore, rights: _Rights, someone: Any) -> None:
    """What is here, and is it sound."""

    @routes.get("/api/v1/cache/stats")
    async def stats(caller: someone) -> Stats:
        """What was counted since the start: bytes by class, counts, disk and memory in use."""
        return cache.stats()

    @routes.get("/api/v1/cache/objects")
    async def cached(caller: someone, path: str | None = None) -> Holding:
        """The holding of a file that could be read now without its origin; else 504."""
        return cache.cached(rights.path(caller, Verb.STAT, path))

    @routes.post("/api/v1/cache/holdings")
    async def holdings(files: Files, caller: someone) -> Holdings:
        """How much of each file is here; asks no origin."""
        paths = [rights.path(caller, Verb.STAT, path) for path in files.paths]
        return _summed(list(await cache.holdings(paths)), None)

    @routes.get("/api/v1/cache/holdings")
    async def below(
        caller: someone,
        path: str | None = None,
        after: str = "",
        limit: Annotated[int, Field(ge=1, le=MOST)] = 1000,
    ) -> Holdings:
        """What lies at and below a path here, in the order of names; asks no origin."""
        found = list(await cache.holdings_below(rights.path(caller, Verb.LIST, path), after, limit))
        return _summed(found, found[-1].path if len(found) == limit else None)

    @routes.post("/api/v1/cache/verify")
    async def verify(caller: someone, path: str | None = None) -> Scrubbed:
        """Check one object's pages against their checksums; damaged ones are fetched again."""
        return await cache.verify(rights.path(caller, Verb.MODIFY, path))

    @routes.get("/api/v1/cache/scrub")
    async def scrub(caller: someone) -> Pass:
        """What the background scrub found in its present pass, or its last."""
        rights.operator(caller, "scrub")
        return cache.scrubber.now


def _keeping(routes: APIRouter, cache: CacheStore, rights: _Rights, someone: Any) -> None:
    """Pins, and what has to go."""

    @routes.get("/api/v1/cache/pins")
    async def pins(caller: someone, path: str = "/", after: str = "", everybody: bool = False) -> list[Pin]:
        """The caller's pins at and below a path, in the order of names; an operator may see everybody's."""
        if everybody:
            rights.operator(caller, "everybody's pins")
        return await cache.pins.pins(None if everybody else _owner(caller), checked(path), after, MOST)

    @routes.put("/api/v1/cache/pins/{path:path}")
    async def pin(caller: someone, path: str, lifetime: float | None = None) -> Pin:
        """Keep a file for a time, also one that is not here yet; a second pin of the caller replaces it."""
        return await cache.pin(rights.path(caller, Verb.MODIFY, "/" + path), _owner(caller), lifetime)

    @routes.delete("/api/v1/cache/pins/{path:path}", status_code=204)
    async def unpin(caller: someone, path: str, everybody: bool = False) -> None:
        """Take the caller's pin away, an operator also everybody's."""
        if everybody:
            rights.operator(caller, "everybody's pins")
        await cache.pins.unpin(checked("/" + path), None if everybody else _owner(caller))

    @routes.post("/api/v1/cache/purge")
    async def purge(caller: someone, dry_run: bool = False) -> Purged:
        """Free disk down to the low mark; ``dry_run`` only says what would go, and why."""
        rights.operator(caller, "purge")
        gone = await cache.purge(dry_run=dry_run)
        total = sum(victim.used for victim in gone)
        return Purged(dry_run=dry_run, objects=list(gone[:MOST]), count=len(gone), bytes=total)

    @routes.post("/api/v1/cache/purge_first")
    async def purge_first(
        caller: someone, paths: Annotated[list[str], Field(min_length=1, max_length=MOST)]
    ) -> Lined:
        """Let objects, or all below directories, be the first to go at the next purge."""
        done, missing = [], []
        for path in [rights.path(caller, Verb.MODIFY, path) for path in paths]:
            try:
                done.append(await cache.evict(path))
            except NotFound:
                missing.append(path)
        return Lined(evicted=done, missing=missing)

    @routes.api_route("/pelican/api/v1.0/evict", methods=["GET", "POST", "DELETE"], operation_id="evict")
    async def evict(
        request: Request,
        caller: someone,
        path: str | None = None,
        immediate: bool = False,
        force: bool = False,
    ) -> Response:
        """Give an object up, or all below a directory: first at the next purge, or now; or in any case."""
        clean = rights.path(caller, Verb.MODIFY, path)
        done = await cache.evict(clean, immediate=immediate, force=force)
        if "json" in request.headers.get("accept", ""):
            return JSONResponse(asdict(done))
        when = "now" if done.immediate else "at the next purge"
        busy = f", {done.busy} left because they are being read" if done.busy else ""
        pinned = f", {done.pinned} left because they are pinned" if done.pinned else ""
        return PlainTextResponse(
            f"{done.path}: {done.objects} objects, {done.bytes} bytes {when}{busy}{pinned}\n"
        )


def _bringing(routes: APIRouter, cache: CacheStore, rights: _Rights, someone: Any) -> None:
    """Prestage."""

    @routes.get("/pelican/api/v1.0/prestage")
    async def prestage(request: Request, caller: someone, path: str | None = None) -> Response:
        """Bring a file; lines tell the progress. Whoever leaves gives it up, what came stays."""
        job = await cache.prestage(rights.path(caller, Verb.READ, path))
        if "json" in request.headers.get("accept", ""):
            done = await job.done()
            return JSONResponse({"path": done.path, "status": done.status, "size": done.size})
        return StreamingResponse(lines(job), media_type="text/plain")

    @routes.post("/api/v1/cache/prestage")
    async def prestage_all(wanted: Wanted, caller: someone) -> Response:
        """Bring files, or columns of them; each line is a JSON object, the last one tells the sum."""
        paths = [rights.path(caller, Verb.READ, path) for path in wanted.paths]
        jobs = await cache.prestage_all(paths, wanted.columns, wanted.tree)
        if not wanted.wait:
            return JSONResponse({"queued": len(jobs)}, 202)
        return StreamingResponse(objects(jobs), media_type="application/x-ndjson")


def _owner(caller: Identity) -> str:
    return f"{caller.issuer}#{caller.subject}"


def _summed(files: list[Holding], after: str | None) -> Holdings:
    return Holdings(
        files=files,
        size=sum(file.size or 0 for file in files),
        cached=sum(file.cached for file in files),
        complete=sum(file.complete for file in files),
        after=after,
    )
