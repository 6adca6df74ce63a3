"""ServiceX's REST routes over the column service; :mod:`doma.columns.wire` has the words.

Clients read what they get on GET, whatever a bare 400 says: info, lists and status answer 401, 404 or 5xx.

Source: servicex.md §3 of the project's contracts.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from doma.auth.bearer import bearer_of
from doma.auth.model import Verb
from doma.auth.verifier import Verifier
from doma.columns import model, wire
from doma.columns.model import Grant
from doma.columns.service import ColumnService
from doma.columns.wire import SubmitBody, UrlsBody
from doma.core.errors import BadCredential, BadRequest, LimitExceeded, Unauthenticated
from doma.doors.s3_keys import Keys, Right

T = TypeVar("T", bound=BaseModel)
MAX_BODY = 32 << 20
MAX_VALUES = 1_500_000
"""Commas and brackets of a JSON body: 100,000 files with three replicas each have some 900,000."""
HOLD = 2.0
"""Seconds for which a submission is held, so that a small request has ended at the first look."""
LONG_POLL = 3.0
"""The same for a look at it; the client waits 5 s."""
LARGE = 64 << 10
"""Bytes of a body from which on it is read in a thread, where it holds nobody up."""
MAX_DETAILS = 10_000
"""Files of one answer."""
DAY = 24 * 3600
CAPABILITIES = [
    "poll_local_transformation_results", "long_sample_titles_10240", "post_cancel_transform",
    "generate_file_urls",
]  # fmt: skip

Caller = Callable[[Request], Awaitable[Grant]]
"""Who asks, by the request; raises Unauthenticated, InvalidToken, IssuerUnavailable."""


def sent(request: Request) -> str | None:
    """The bearer token that came; None: there is none, or the ``None`` of a client that has none.

    Raises:
        Unauthenticated: another kind of credential came.
    """
    header = request.headers.get("authorization", "")
    if header.strip().lower() == "bearer":
        return None
    try:
        token = bearer_of(header)
    except BadCredential as e:
        raise Unauthenticated(e.message) from e
    return None if token == "None" else token  # noqa: S105 - the word itself


def caller_of(verifier: Verifier, alone: Callable[[Request], Grant | None] = lambda request: None) -> Caller:
    """Who asks.

    Args:
        verifier: Of bearer tokens; the owner is ``issuer#subject``.
        alone: Who asks without a token in open single-user mode; None: nobody.
    """

    async def caller(request: Request) -> Grant:
        token = sent(request)
        if token is None:
            found = alone(request)
            if found is None:
                raise Unauthenticated(
                    f"{request.url.path}: this needs a bearer token; see 'doma columns login'"
                )
            return found
        return Grant.of(await verifier.verify(token))

    return caller


def router(
    service: ColumnService,
    verifier: Verifier,
    *,
    log_url: str,
    results_url: str,
    keys: Keys | None = None,
    caller: Caller | None = None,
    retention: float = 30 * DAY,
    clock: Callable[[], float] = time.time,
) -> APIRouter:
    """The routes; the app mounts them under the prefix that is the client's endpoint.

    Args:
        service: What answers.
        verifier: Every route needs a token that it accepts.
        log_url: Address that tells about a request once its id is appended.
        results_url: https URL of the result endpoint.
        keys: Makes the key pair of each request; None: there is no S3 door.
        caller: Who asks, if not just by token.
        retention: Seconds that results are kept; keys live longer.
        clock: Unix seconds.
    """
    api = APIRouter(tags=["columns"], redirect_slashes=False)
    Who = Annotated[Grant, Depends(caller or caller_of(verifier))]
    _ending(api, service, Who)

    def shown(request: Request, found: model.Request) -> dict[str, Any]:
        return wire.record(found, _alike(request, f"{log_url.rstrip('/')}/{found.id}"))

    @api.get("/servicex")
    async def info(who: Who) -> dict[str, Any]:
        return {
            "app-version": wire.VERSION,
            "code-gen-image": dict.fromkeys(await service.languages(), "builtin"),
            "capabilities": CAPABILITIES,
        }

    @api.post("/servicex/transformation")
    async def submit(request: Request, who: Who, wait: str = "") -> dict[str, str]:
        id_ = await service.submit(who, (await body_of(request, SubmitBody)).submission())
        await service.wait(who.owner, id_, _seconds(wait, HOLD))
        return {"request_id": id_}

    @api.get("/servicex/transformation")
    async def listing(request: Request, who: Who) -> dict[str, Any]:
        return {"requests": [shown(request, r) for r in await service.list(who.owner)]}

    @api.post("/servicex/transformation/file-urls")
    async def file_urls(request: Request, who: Who) -> dict[str, Any]:
        body = await body_of(request, UrlsBody)
        urls = await service.urls(who.owner, body.request_id, body.file_list)
        place = _root if body.scheme == "xrootd" else lambda url: _alike(request, url)
        return {"uris": {n: [place(u.url), dict(u.headers), u.expires] for n, u in urls.items()}}

    @api.get("/servicex/transformation/{id_}")
    async def one(request: Request, id_: str, who: Who) -> dict[str, Any]:
        found = await service.wait(who.owner, id_, LONG_POLL)
        last = (found.finished or clock()) + retention
        return shown(request, found) | _object_store(_alike(request, results_url), found, keys, last)

    @api.get("/servicex/transformation/{id_}/status")
    async def status(
        request: Request, id_: str, who: Who, details: str = "", wait: str = ""
    ) -> dict[str, Any]:
        found = await service.wait(who.owner, id_, _seconds(wait, LONG_POLL))
        sums = await service.progress(who.owner, id_)
        entry = shown(request, found) | {"request-id": id_, "stats": wire.stats(sums)}
        if details.lower() in {"true", "1", "yes"}:
            entry["details"] = [wire.detail(r) for r in await service.files(who.owner, id_, MAX_DETAILS)]
        return entry

    @api.get("/servicex/transformation/{id_}/results")
    async def results(id_: str, who: Who, later_than: str = "") -> JSONResponse:
        rows = await service.results(who.owner, id_, wire.instant(later_than))
        return await written(lambda: {"results": [wire.result(r) for r in rows]})

    return api


def _ending(api: APIRouter, service: ColumnService, someone: Any) -> None:
    """The routes that stop requests and remove them."""

    @api.post("/servicex/transformation/cancel-all")
    async def cancel_all(who: someone) -> dict[str, Any]:
        stopped = await service.cancel_all(who.owner)
        return {"canceled": stopped, "message": f"Canceled {len(stopped)} transform requests"}

    @api.api_route("/servicex/transformation/{id_}/cancel", methods=["GET", "POST"])
    async def cancel(id_: str, who: someone) -> dict[str, str]:
        await service.cancel(who.owner, id_)
        return {"message": f"Canceled transform request {id_}"}

    @api.delete("/servicex/transformation/{id_}")
    async def delete(id_: str, who: someone) -> dict[str, str]:
        await service.delete(who.owner, id_)
        return {"message": f"Deleted transform request {id_}"}


async def body_of(
    request: Request, kind: type[T], what: str = "Invalid transform request", most: int = MAX_BODY
) -> T:
    """The JSON body as a model; everything wrong with it is a 400 whose message names the key.

    Raises:
        BadRequest: no JSON, or not of that kind; the message begins with ``what``. LimitExceeded: above
            ``most`` bytes or :data:`MAX_VALUES`.
    """
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > most:
            raise LimitExceeded(f"{request.url.path}: a body may have at most {most} bytes")
    if len(data) < LARGE:
        return _model(data, kind, what, request.url.path)
    return await asyncio.to_thread(_model, data, kind, what, request.url.path)


async def written(content: Callable[[], Any]) -> JSONResponse:
    """An answer that may be large: made and written in a thread, where it holds nobody up."""
    return await asyncio.to_thread(lambda: JSONResponse(content()))


def _model(data: bytearray, kind: type[T], what: str, path: str) -> T:
    # Parsing holds the interpreter, thread or not: 16 MiB of empty lists for 15 s.
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise LimitExceeded(f"{path}: a body may have at most {MAX_VALUES} values")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"{path}: the body is not JSON") from e
    try:
        return kind.model_validate(fields)
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "body"
        raise BadRequest(f"{what}: {where}: {first['msg']}") from e


def _seconds(text: str, most: float) -> float:
    """How long to wait; nonsense is the most, since a client would misread a 400 here."""
    try:
        found = float(text)
    except ValueError:
        return most
    return min(max(found, 0.0), most) if math.isfinite(found) else most


def _object_store(results_url: str, found: model.Request, keys: Keys | None, last: float) -> dict[str, Any]:
    """Where results lie, in the words of the S3 client, and a key pair that reads this bucket and no more.

    The bucket goes with the request, and with it what the keys open. The keys outlive the results, also those
    that a client got when the request began, and are the same in every answer of a day.
    """
    place = urlsplit(results_url)
    access = secret = ""
    if keys is not None:
        issuer, _, subject = found.owner.partition("#")
        expires = float((math.ceil(last / DAY) + 7) * DAY)
        endpoint = place.path.rpartition("/")[2]
        key = keys.issue(
            Right(endpoint, f"/{found.id}", (Verb.READ,), issuer, subject, expires), session=False
        )
        access, secret = key.access_key, key.secret_key
    return {
        "minio-endpoint": place.netloc,
        "minio-secured": place.scheme == "https",
        "minio-access-key": access,
        "minio-secret-key": secret,
    }


def _alike(request: Request, url: str) -> str:
    """An https URL of ours, with http for who came by http: on loopback, where no CA need be known."""
    secure = "https" in {request.url.scheme, request.headers.get("x-forwarded-proto")}
    return url if secure else "http" + url.removeprefix("https")


def _root(url: str) -> str:
    """The same object at the root:// door; the token goes along as XRootD's clients send it."""
    parts = urlsplit(url)
    query = parts.query.replace("authz=", "authz=Bearer%20", 1)
    return f"root://{parts.netloc}/{parts.path}" + (f"?{query}" if query else "")
