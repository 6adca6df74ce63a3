"""The issuer over HTTP: discovery, keys, and the token endpoint for client credentials.

Source: OpenID Connect Discovery 1.0, RFC 8414, RFC 7517, RFC 6749 §2.3, §4.4 and §5; §8 of the token
contract. FTS writes its form without percent-encoding, so blanks, ``:`` and ``/`` may come raw.
"""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_plus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from doma.auth.clients import Client
from doma.auth.issuer import Granted, Issuer, metadata
from doma.auth.scopes import shown
from doma.core.errors import BadRequest, DomaError, Forbidden, TooManyRequests

MAX_FORM = 64 << 10
"""Bytes of the largest form that is read."""
MAX_FIELDS = 100

_PUBLIC = {"Cache-Control": "max-age=3600"}
_SECRET = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_REPEATABLE = {"audience", "resource"}


class _OAuthError(Exception):
    """An answer of RFC 6749 §5.2."""

    def __init__(self, error: str, description: str, status: int = 400, **headers: str) -> None:
        super().__init__(description)
        self.error, self.description, self.status, self.headers = error, description, status, headers


@dataclass(frozen=True, slots=True)
class _Form:
    single: Mapping[str, str]
    audience: tuple[str, ...] = field(default=())


def issuer_app(issuer: Issuer) -> Starlette:
    """The app of an issuer; its routes are relative to ``/<vo>``, see :attr:`Issuer.path`."""

    async def discovery(request: Request) -> Response:
        return JSONResponse(metadata(issuer), headers=_PUBLIC)

    async def jwks(request: Request) -> Response:
        return JSONResponse(issuer.keys.jwks(), headers=_PUBLIC)

    async def token(request: Request) -> Response:
        try:
            form = _parsed(await _body(request))
            # scrypt and an RSA signature: 40 ms and 1 ms that the event loop has better use for
            got = await asyncio.to_thread(_token, issuer, form, request.headers.get("authorization"))
        except _OAuthError as e:
            body = {"error": e.error, "error_description": _plain(e.description)}
            return JSONResponse(body, e.status, {**_SECRET, **e.headers})
        return JSONResponse(
            {
                "access_token": got.token,
                "token_type": "Bearer",
                "expires_in": int(got.lifetime),
                "scope": got.scope,
            },
            headers=_SECRET,
        )

    return Starlette(
        routes=[
            Route("/.well-known/openid-configuration", discovery),
            Route("/jwks", jwks),
            Route("/token", token, methods=["POST"]),
        ]
    )


def metadata_route(issuer: Issuer) -> Route:
    """``/.well-known/oauth-authorization-server/<vo>`` of RFC 8414 §3.1, relative to the server."""

    async def discovery(request: Request) -> Response:
        return JSONResponse(metadata(issuer), headers=_PUBLIC)

    return Route(f"/.well-known/oauth-authorization-server{issuer.path}", discovery)


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_FORM:
            raise _OAuthError("invalid_request", f"the form is larger than {MAX_FORM} bytes", 413)
    return bytes(data)


def _parsed(body: bytes) -> _Form:
    """The form, blanks and other characters taken raw or encoded; only the audience may repeat."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as e:
        raise _OAuthError("invalid_request", "the body is not a form in UTF-8 of at most 100 fields") from e
    single: dict[str, str] = {}
    audience: dict[str, None] = {}
    for name, value in pairs:
        if name in _REPEATABLE:
            audience.update((word, None) for word in value.split())
        elif single.setdefault(name, value) != value:
            raise _OAuthError("invalid_request", f"{shown(name)} is given twice")
    return _Form(single, tuple(audience))


def _token(issuer: Issuer, form: _Form, authorization: str | None) -> Granted:
    """Authenticate, decide, sign; every refusal as the error that OAuth has for it."""
    client = _client(issuer, form, authorization)
    grant = form.single.get("grant_type")
    if not grant:
        raise _OAuthError(
            "invalid_request", "grant_type is missing; send a form with grant_type=client_credentials"
        )
    if grant != "client_credentials":
        raise _OAuthError(
            "unsupported_grant_type", f"grant_type {shown(grant)}: only client_credentials is offered here"
        )
    try:
        scope = issuer.allowed(client, form.single.get("scope", ""))
    except Forbidden as e:
        raise _OAuthError("access_denied", e.message) from e
    except BadRequest as e:
        raise _OAuthError("invalid_scope", e.message) from e
    try:
        return issuer.grant(client, scope, form.audience)
    except BadRequest as e:
        raise _OAuthError("invalid_request", e.message) from e


def _client(issuer: Issuer, form: _Form, authorization: str | None) -> Client:
    """The client that the request comes from (RFC 6749 §2.3.1)."""
    posted_id, posted = form.single.get("client_id", ""), form.single.get("client_secret")
    if authorization is not None:
        attempts = _basic(authorization)
        if posted is not None:
            raise _OAuthError(
                "invalid_request", "the client authenticates twice; use Basic or the form, not both"
            )
        if posted_id and posted_id not in {client_id for client_id, _ in attempts}:
            raise _OAuthError("invalid_request", "client_id is not the client that authenticates")
    elif posted is not None:
        attempts = [(posted_id, posted)]
    else:
        raise _refused("the client must authenticate, by Basic or by client_id and client_secret")
    try:
        for client_id, secret in attempts:
            client = issuer.clients.authenticate(client_id, secret)
            if client is not None:
                return client
    except TooManyRequests as e:
        raise _OAuthError("temporarily_unavailable", e.message, 429, **{"Retry-After": "60"}) from e
    except DomaError as e:
        raise _OAuthError("server_error", "the clients cannot be read now; the log has the cause", 500) from e
    raise _refused("unknown client or wrong secret")


def _basic(authorization: str) -> list[tuple[str, str]]:
    """User and password, percent-decoded as the standard says, then raw as many clients send them."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        raise _refused("the token endpoint takes Basic or client_secret_post authentication")
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError as e:
        raise _refused("the Basic credential is not base64 of 'id:secret'") from e
    user, colon, password = text.partition(":")
    if not colon:
        raise _refused("the Basic credential is not base64 of 'id:secret'")
    decoded = (unquote_plus(user), unquote_plus(password))
    return list(dict.fromkeys([decoded, (user, password)]))


def _refused(why: str) -> _OAuthError:
    return _OAuthError("invalid_client", why, 401, **{"WWW-Authenticate": 'Basic realm="token"'})


def _plain(text: str) -> str:
    """RFC 6749 §5.2: printable ASCII without quote and backslash."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "'" for c in text)
