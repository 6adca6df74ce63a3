"""The s3 door: every request that carries an AWS signature, path-style, on the port of all other doors.

Source: Amazon S3 API Reference (2006-03-01); servicex.md §5, storage.md §8 of the project's contracts.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping

from doma.auth.model import bearer
from doma.cache.freshness import as_asked
from doma.core.errors import DomaError, NotAllowed, Unsupported
from doma.doors import s3_listing, s3_multipart, s3_objects
from doma.doors.landing import text_headers
from doma.doors.s3_call import Call, Door, Receive, Scope, Send, recognised
from doma.doors.s3_routes import is_sts
from doma.doors.s3_xml import DECLARATION, code_of, refusal

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_Work = Callable[[Call], Awaitable[None]]

SWEEP = 3600.0
"""Seconds between two looks for stale uploads."""

_MARKS = (b"X-Amz-Algorithm=", b"AWSAccessKeyId=")


def is_signed(scope: Scope) -> bool:
    """Whether a request carries an AWS signature, right or wrong, and so belongs to this door."""
    if any(n == b"authorization" and v.startswith(b"AWS4-HMAC") for n, v in scope["headers"]):
        return True
    query = scope.get("query_string", b"")
    return bool(query) and any(mark in query for mark in _MARKS)


def app(door: Door) -> App:
    """The ASGI application of the door."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request_id, reply = secrets.token_hex(8).upper(), _Reply(send)
        # no token to hand on to an origin: a key is good here only
        held = bearer.set(None)
        try:
            with as_asked(text_headers(scope["headers"])):
                call = recognised(door, scope, receive, reply, request_id)
                await _chosen(call)(call)
        except DomaError as e:
            if reply.started:
                raise  # the status has gone out: only a broken connection can tell the client now
            await _refuse(scope, reply, e, request_id)
        except Exception:  # the outermost line of a request: say it, and keep the server
            if reply.started:
                raise
            log.exception("s3: %s failed", scope["method"])
            await _refuse(
                scope, reply, DomaError("internal error; the server's log has the cause"), request_id
            )
        finally:
            bearer.reset(held)

    return application


def beside(own: App, keys: App, others: App) -> App:
    """Share a port: what is signed for S3 goes to this door, what asks STS for keys to :func:`sts`.

    Args:
        own: The door, :func:`app`.
        keys: :func:`doma.doors.s3_routes.sts` of the door.
        others: Gets all other requests.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        http = scope["type"] == "http"
        chosen = own if http and is_signed(scope) else keys if http and is_sts(scope) else others
        await chosen(scope, receive, send)

    return application


async def sweep_forever(door: Door, life: float) -> None:
    """Remove multipart uploads that nothing has come for in ``life`` seconds, now and every hour."""
    while True:
        try:
            await s3_multipart.sweep(door.uploads, door.clock() - life)
        except DomaError as e:
            log.warning("stale multipart uploads could not be removed: %s", e)
        await asyncio.sleep(SWEEP)


class _Reply:
    """``send`` that remembers whether the status has gone out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Scope) -> None:
        self.started = True
        await self._send(message)


def _chosen(call: Call) -> _Work:
    """What a request asks for, by method and by the parameters that stand for operations."""
    for name in call.headers:
        if name.startswith(_NOT_KEPT):
            raise Unsupported(f"{call.shown}: {name[:80]} is not offered here; leave it out")
    level = "object" if call.key else "bucket" if call.bucket else "service"
    for name, work in _TABLE.get((level, call.asked.method), {}).items():
        if not name or name in call.query or name in call.headers:
            return work
    named = [name for name in _NOT_OFFERED if name in call.query]
    if named:
        raise Unsupported(f"{call.shown}: ?{named[0]} is not offered here")
    raise NotAllowed(f"{call.shown}: {call.asked.method} is not offered on a {level}")


async def _get(call: Call) -> None:
    _must_be_plain(call)
    await s3_objects.get(call)


async def _put(call: Call) -> None:
    _must_be_plain(call)
    await s3_objects.put(call)


async def _delete(call: Call) -> None:
    _must_be_plain(call)
    await s3_objects.delete(call)


async def _list(call: Call) -> None:
    _must_be_plain(call)
    await s3_listing.objects(call)


async def _make(call: Call) -> None:
    _must_be_plain(call)
    await s3_listing.make(call)


async def _remove(call: Call) -> None:
    _must_be_plain(call)
    await s3_listing.remove(call)


def _must_be_plain(call: Call) -> None:
    """Refuse what would be mistaken for the plain operation: ``DELETE ?tagging`` deletes no object."""
    for name in _NOT_OFFERED:
        if name in call.query:
            raise Unsupported(f"{call.shown}: ?{name} is not offered here")
    if call.query.get("versionId", "null") != "null":
        raise Unsupported(f"{call.shown}: versions are not kept here; leave versionId out")


_NOT_OFFERED = (
    "accelerate", "acl", "analytics", "attributes", "cors", "encryption", "intelligent-tiering", "inventory",
    "legal-hold", "lifecycle", "logging", "metrics", "notification", "object-lock", "ownershipControls",
    "policy", "policyStatus", "publicAccessBlock", "renameObject", "replication", "requestPayment", "restore",
    "retention", "select", "tagging", "torrent", "versions", "website",
)  # fmt: skip

_NOT_KEPT = (
    "x-amz-server-side-encryption", "x-amz-object-lock-", "x-amz-write-offset-bytes", "x-amz-rename-source",
    "x-amz-copy-source-server-side-encryption",
)  # fmt: skip
"""Headers that promise something which leaving them out of account would break: without the client's key the
content would lie open, without the offset an append would replace the whole."""

_TABLE: Mapping[tuple[str, str], Mapping[str, _Work]] = {
    ("service", "GET"): {"": s3_listing.buckets},
    ("bucket", "GET"): {
        "location": s3_listing.location,
        "versioning": s3_listing.versioning,
        "uploads": s3_multipart.uploads,
        "": _list,
    },
    ("bucket", "HEAD"): {"": s3_listing.head},
    ("bucket", "PUT"): {"": _make},
    ("bucket", "DELETE"): {"": _remove},
    ("bucket", "POST"): {"delete": s3_objects.delete_many},
    ("object", "GET"): {"uploadId": s3_multipart.parts, "": _get},
    ("object", "HEAD"): {"": _get},
    ("object", "PUT"): {"uploadId": s3_multipart.part, "x-amz-copy-source": s3_objects.copy, "": _put},
    ("object", "POST"): {"uploads": s3_multipart.begin, "uploadId": s3_multipart.complete},
    ("object", "DELETE"): {"uploadId": s3_multipart.abort, "": _delete},
}
"""Level and method to operations by parameter or header; the first that is there counts, ``""`` always."""


async def _refuse(scope: Scope, send: Send, error: DomaError, request_id: str) -> None:
    code, status = code_of(error)
    path = scope["raw_path"].partition(b"?")[0].decode("latin-1")
    body = (DECLARATION + refusal(error, path, request_id)).encode()
    headers = {"content-type": "application/xml", "x-amz-request-id": request_id}
    if scope["method"] == "HEAD":
        headers["x-amz-error-code"] = code
        body = b""
    else:
        headers["content-length"] = str(len(body))
    if "size" in error.detail and status == 416:
        headers["content-range"] = f"bytes */{error.detail['size']}"
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if status == 405:
        headers["allow"] = "GET, HEAD, PUT, POST, DELETE"
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
