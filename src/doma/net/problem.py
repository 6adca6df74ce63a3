"""Errors over HTTP: the one handler of every ASGI app, and the client's way back to the same class.

Source: RFC 9457; RFC 6750 §3 for ``WWW-Authenticate``; rules W21 and tokens.md §6 of the contracts.
"""

import json
import logging
from collections.abc import Mapping

import httpx
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from doma.core.errors import (
    BadCredential,
    BadRequest,
    DomaError,
    Forbidden,
    InvalidToken,
    OnTape,
    RangeNotSatisfiable,
    Unauthenticated,
    from_problem,
    problem,
)
from doma.core.paths import must_be_nameable

log = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds to wait where an error that passes names none."""


def headers_of(error: DomaError, realm: str) -> dict[str, str]:
    """The answer headers that belong to an error: code, challenge, ``Retry-After``, ``Content-Range``."""
    headers = {"X-Error-Code": error.code}
    text = _quoted(error.message)
    if isinstance(error, InvalidToken):
        headers["WWW-Authenticate"] = (
            f'Bearer realm="{realm}", error="invalid_token", error_description="{text}"'
        )
    elif isinstance(error, BadCredential):
        headers["WWW-Authenticate"] = (
            f'Bearer realm="{realm}", error="invalid_request", error_description="{text}"'
        )
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = f'Bearer realm="{realm}"'
    elif isinstance(error, Forbidden):
        scope = error.detail.get("scope")
        tail = f', scope="{_quoted(str(scope))}"' if scope else ""
        headers["WWW-Authenticate"] = (
            f'Bearer realm="{realm}", error="insufficient_scope", error_description="{text}"{tail}'
        )
    elif isinstance(error, RangeNotSatisfiable) and "size" in error.detail:
        headers["Content-Range"] = f"bytes */{error.detail['size']}"
    elif isinstance(error, OnTape):
        headers["X-Locality"] = "TAPE"
    if "offset" in error.detail:
        headers["X-Upload-Offset"] = str(error.detail["offset"])
    if error.retry_after is not None or error.http in {429, 503}:
        headers["Retry-After"] = str(max(1, round(error.retry_after or RETRY)))
    return headers


def render(error: DomaError, accept: str, realm: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body of an error: a line of text, or problem+json where JSON is accepted by name."""
    headers = headers_of(error, realm)
    if "json" in accept:
        headers["Content-Type"] = "application/problem+json"
        # ``message`` is what ServiceX's client reads; it is the same text.
        return error.http, headers, json.dumps({**problem(error), "message": error.message}).encode()
    headers["Content-Type"] = "text/plain; charset=utf-8"
    return error.http, headers, (error.message + "\n").encode()


def install(app: Starlette, realm: str = "localhost", *, json_by_default: bool = True) -> None:
    """Make every error of an app a problem answer. What is not a DomaError is logged and answered bare.

    Args:
        app: A Starlette or FastAPI application.
        realm: Host name for the challenge.
        json_by_default: What a client gets that accepts ``*/*``: JSON (services) or text (WebDAV, rule W21).
    """

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, DomaError)
        accept = request.headers.get("accept", "*/*")
        if json_by_default and "*/*" in accept and "text/" not in accept:
            accept = "application/json"
        status, headers, body = render(error, accept, realm)
        return Response(body, status, headers)

    async def unknown(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await known(
            request,
            DomaError(f"{request.method} {request.url.path}: internal error; the server's log has the cause"),
        )

    async def routing(request: Request, error: Exception) -> Response:
        # the framework's own refusals: no such route, method not offered on it
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path}: {error.detail}"
        return await known(request, from_problem({"detail": text}, error.status_code))

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return await known(
            request, BadRequest(f"{request.method} {request.url.path}: {place}: {first['msg']}")
        )

    async def gone(request: Request, error: Exception) -> Response:
        # nobody reads it; what matters is that a client that leaves is no fault of ours
        text = f"{request.method} {request.url.path}: the body of the request ended early"
        return await known(request, BadRequest(text))

    app.add_exception_handler(DomaError, known)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(Exception, unknown)


def nameable_only(app: ASGIApp, realm: str) -> ASGIApp:
    """The app for paths without control characters; others are answered 400 whatever the app's routes are.

    A route's pattern ends in ``$``, which also matches before a newline: ``/health%0a`` would be ``/health``.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                must_be_nameable(scope["path"])
            except DomaError as e:
                accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
                status, headers, body = render(e, accept, realm)
                await Response(body, status, headers)(scope, receive, send)
                return
        await app(scope, receive, send)

    return application


def raise_for(response: httpx.Response) -> httpx.Response:
    """The response itself, or the error that it stands for."""
    if response.status_code < 400:
        return response
    body: object = None
    if "json" in response.headers.get("content-type", ""):
        try:
            body = response.json()
        except ValueError:
            body = None
    if not isinstance(body, Mapping):
        place = f"{response.request.method} {response.request.url.copy_with(query=None)}"
        body = {"detail": f"{place}: {response.text[:500].strip() or response.reason_phrase}"}
    raise from_problem(body, response.status_code)


def _quoted(text: str) -> str:
    return "".join(c if " " <= c < "\x7f" and c not in '"\\' else "'" if c in '"\\' else "?" for c in text)[
        :500
    ]
