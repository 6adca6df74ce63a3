"""ServiceX's REST routes over the column service. Wire spellings live here only.

Source: servicex.md §3 of the project's contracts.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from doma import __version__
from doma.auth.bearer import bearer_of
from doma.auth.verifier import Verifier
from doma.columns import model
from doma.columns.model import FileState, Grant, Submission
from doma.columns.query import CODEGENS
from doma.columns.service import ColumnService
from doma.core.errors import BadQuery, BadRequest, LimitExceeded, Unauthenticated

T = TypeVar("T", bound=BaseModel)
MAX_BODY = 32 << 20
LONG_POLL = 3.0
CAPABILITIES = [
    "poll_local_transformation_results",
    "long_sample_titles_10240",
    "post_cancel_transform",
    "generate_file_urls",
]


class SubmitBody(BaseModel):
    """§3.2; clients send more keys than mean anything here."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, strict=True)

    selection: str
    title: str | None = Field(default=None, max_length=10240)
    did: str | None = None
    file_list: list[str] | None = Field(default=None, alias="file-list")
    codegen: str = "uproot"
    destination: Literal["object-store", "volume"] = Field(default="object-store", alias="result-destination")
    format: Literal["parquet", "root-file", "root-rntuple"] = Field(default="parquet", alias="result-format")


class UrlsBody(BaseModel):
    """§3.5."""

    model_config = ConfigDict(extra="ignore")

    request_id: str
    file_list: list[str] = Field(max_length=100_000)
    scheme: Literal["http", "xrootd"] = "http"


def router(service: ColumnService, verifier: Verifier, *, log_url: str, results_url: str) -> APIRouter:
    """The routes; the app mounts them under the prefix that is the client's endpoint.

    Args:
        service: What answers.
        verifier: Every route needs a token that it accepts; the owner is ``issuer#subject``.
        log_url: Address that tells about a request once its id is appended.
        results_url: https URL of the result endpoint.
    """
    api = APIRouter(tags=["columns"], redirect_slashes=False)

    async def caller(request: Request) -> Grant:
        token = bearer_of(request.headers.get("authorization"))
        if token is None:
            raise Unauthenticated(f"{request.url.path}: this needs a bearer token")
        return Grant.of(await verifier.verify(token))

    Caller = Annotated[Grant, Depends(caller)]

    def record(found: model.Request, *, keys: bool) -> dict[str, Any]:
        entry = _record(found, f"{log_url.rstrip('/')}/{found.id}")
        return entry | _object_store(results_url) if keys else entry

    @api.get("/servicex")
    async def info(who: Caller) -> dict[str, Any]:
        return {
            "app-version": f"doma {__version__}",
            "code-gen-image": dict.fromkeys(CODEGENS, "builtin"),
            "capabilities": CAPABILITIES,
        }

    @api.post("/servicex/transformation")
    async def submit(request: Request, who: Caller) -> dict[str, str]:
        return {"request_id": await service.submit(who, _submission(await _body(request, SubmitBody)))}

    @api.get("/servicex/transformation")
    async def listing(who: Caller) -> dict[str, Any]:
        return {"requests": [record(r, keys=False) for r in await service.list(who.owner)]}

    @api.post("/servicex/transformation/file-urls")
    async def file_urls(request: Request, who: Caller) -> dict[str, Any]:
        body = await _body(request, UrlsBody)
        urls = await service.urls(who.owner, body.request_id, body.file_list)
        return {"uris": {n: [u.url, dict(u.headers), u.expires] for n, u in urls.items()}}

    @api.get("/servicex/transformation/{id_}")
    async def one(id_: str, who: Caller) -> dict[str, Any]:
        return record(await service.wait(who.owner, id_, LONG_POLL), keys=True)

    @api.get("/servicex/transformation/{id_}/status")
    async def status(
        id_: str,
        who: Caller,
        details: str = "",
        wait: Annotated[float, Query(ge=0, le=LONG_POLL)] = LONG_POLL,
    ) -> dict[str, Any]:
        found = await service.wait(who.owner, id_, wait)
        rows = await service.results(who.owner, id_) if details.lower() in {"true", "1", "yes"} else None
        entry = record(found, keys=False)
        return entry if rows is None else {**entry, "details": [_result(r) for r in rows]}

    @api.get("/servicex/transformation/{id_}/results")
    async def results(id_: str, who: Caller, later_than: str = "") -> dict[str, Any]:
        rows = await service.results(who.owner, id_, _instant(later_than))
        return {"results": [_result(r) for r in rows]}

    @api.api_route("/servicex/transformation/{id_}/cancel", methods=["GET", "POST"])
    async def cancel(id_: str, who: Caller) -> dict[str, str]:
        await service.cancel(who.owner, id_)
        return {"message": f"Canceled transform request {id_}"}

    @api.delete("/servicex/transformation/{id_}")
    async def delete(id_: str, who: Caller) -> dict[str, str]:
        await service.delete(who.owner, id_)
        return {"message": f"Deleted transform request {id_}"}

    return api


async def _body(request: Request, kind: type[T]) -> T:
    """The JSON body as a model; everything wrong with it is a 400 whose message names the key."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise LimitExceeded(f"{request.url.path}: a body may have at most {MAX_BODY} bytes")
    try:
        fields = json.loads(bytes(data))
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"{request.url.path}: the body is not JSON") from e
    try:
        return kind.model_validate(fields)
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "body"
        raise BadRequest(f"Invalid transform request: {where}: {first['msg']}") from e


def _submission(body: SubmitBody) -> Submission:
    if (body.did is None) == (body.file_list is None):
        raise BadQuery("Invalid transform request: give either did or file-list, not both")
    if body.did is not None:
        scheme = body.did.partition("://")[0] if "://" in body.did else "rucio"
        raise BadQuery(f"did: no finder for {scheme[:20]!r} is configured; give the files as file-list")
    if body.destination != "object-store":
        raise BadQuery("result-destination: 'volume' is not offered; there is object-store")
    return Submission(
        body.selection,
        tuple(body.file_list or ()),
        body.title,
        None,
        body.codegen,
        body.format,
        body.destination,
    )


def _instant(text: str) -> int:
    """Microseconds of ``later_than``; without offset it is UTC. Raises BadQuery (never on a client's own)."""
    if not text:
        return -1
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as e:
        raise BadQuery(f"later_than: {text[:40]!r} is no ISO 8601 time") from e
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    if moment.year < 1970:
        return -1
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()) * 1_000_000 + moment.microsecond


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _object_store(results_url: str) -> dict[str, Any]:
    """Where results lie, in the words of the S3 client; it has no keys before there is an S3 door."""
    place = urlsplit(results_url)
    return {
        "minio-endpoint": place.netloc,
        "minio-secured": place.scheme == "https",
        "minio-access-key": "",
        "minio-secret-key": "",
    }


def _record(r: model.Request, log_url: str) -> dict[str, Any]:
    return {
        "request_id": r.id, "title": r.title, "did": r.did, "did_id": int.from_bytes(r.did.encode()[:3]),
        "selection": r.selection, "tree-name": None, "image": "builtin", "workers": 1,
        "result-destination": r.destination, "result-format": r.format, "generated-code-cm": "",
        "code-gen-image": "builtin", "app-version": f"doma {__version__}", "status": r.state.value,
        "failure-info": r.failure, "files": r.files, "files-completed": r.completed, "files-failed": r.failed,
        "files-remaining": r.files - r.completed - r.failed, "submit-time": _time(r.submitted),
        "finish-time": "None" if r.finished is None else _time(r.finished), "log-url": log_url,
    }  # fmt: skip


def _result(r: model.FileResult) -> dict[str, Any]:
    # Naive UTC: the client forces the offset on. Built from integers, so that no microsecond is lost.
    seconds, micro = divmod(r.visible, 1_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None, microsecond=micro)
    return {
        "id": r.id, "request-id": r.request, "file-id": r.number, "file-path": r.url,
        "transform_status": "success" if r.state is FileState.DONE else "failure",
        "transform_time": round(r.seconds), "total-events": r.events, "total-bytes": r.bytes,
        "avg-rate": r.events / r.seconds if r.seconds else 0.0, "s3-object-name": r.name or "",
        "created_at": moment.isoformat(timespec="microseconds"), "reason": r.reason,
        "input-bytes": r.read,
    }  # fmt: skip
