"""The issuer over HTTP: discovery, keys, and the endpoints of OAuth.

Source: OpenID Connect Discovery 1.0, RFC 8414, RFC 7517, RFC 6749, RFC 7009, RFC 7662; §8 of the token
contract.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from doma.auth.flows import WAYS, Flows
from doma.auth.issuer import Issuer
from doma.auth.oauth import MAX_FORM, Form, OAuthError, read_form
from doma.auth.revoked import Revocations
from doma.auth.scopes import WLCG

PUBLIC = {"Cache-Control": "max-age=3600"}
SECRET = {"Cache-Control": "no-store", "Pragma": "no-cache"}

Endpoint = Callable[[Request], Awaitable[Response]]


def issuer_app(issuer: Issuer, revocations: Revocations | None = None) -> Starlette:
    """The app of an issuer; its routes are relative to ``/<vo>``, see :attr:`Issuer.path`.

    Args:
        issuer: Whose.
        revocations: Told at once of what is revoked here.
    """
    flows = Flows(issuer)

    async def discovery(request: Request) -> Response:
        return JSONResponse(metadata(issuer), headers=PUBLIC)

    async def jwks(request: Request) -> Response:
        return JSONResponse(issuer.keys.jwks(), headers=PUBLIC)

    async def revoke(request: Request) -> Response:
        answer = await answered(flows.revoke)(request)
        if revocations is not None and answer.status_code == 200:
            await revocations.look()
        return answer

    routes = [
        Route("/.well-known/openid-configuration", discovery),
        Route("/jwks", jwks),
        Route("/token", answered(flows.token), methods=["POST"]),
    ]
    if issuer.ledger is not None:
        routes += [
            Route("/introspect", answered(flows.introspect), methods=["POST"]),
            Route("/revoke", revoke, methods=["POST"]),
        ]
    return Starlette(routes=routes)


def metadata_route(issuer: Issuer) -> Route:
    """``/.well-known/oauth-authorization-server/<vo>`` of RFC 8414 §3.1, relative to the server."""

    async def discovery(request: Request) -> Response:
        return JSONResponse(metadata(issuer), headers=PUBLIC)

    return Route(f"/.well-known/oauth-authorization-server{issuer.path}", discovery)


def metadata(issuer: Issuer) -> dict[str, Any]:
    """The document of OpenID Connect Discovery 1.0 and RFC 8414: what this issuer really offers."""
    offered = Flows(issuer).offered()
    found: dict[str, Any] = {
        "issuer": issuer.url,
        "jwks_uri": f"{issuer.url}/jwks",
        "token_endpoint": f"{issuer.url}/token",
        "scopes_supported": [*WLCG, "wlcg.groups"],
        "grant_types_supported": [wire for wire, way in WAYS.items() if way in offered],
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }
    if issuer.ledger is None:
        return found
    found["scopes_supported"] += ["wlcg.capabilityset", "offline_access"]
    found["token_endpoint_auth_methods_supported"] += ["private_key_jwt", "none"]
    found["token_endpoint_auth_signing_alg_values_supported"] = ["RS256", "ES256"]
    found["introspection_endpoint"] = f"{issuer.url}/introspect"
    found["revocation_endpoint"] = f"{issuer.url}/revoke"
    return found


def answered(work: Callable[[Form, str | None], dict[str, Any] | None]) -> Endpoint:
    """A JSON endpoint that reads a form and works in a thread, where scrypt and signatures disturb nobody."""

    async def endpoint(request: Request) -> Response:
        try:
            form = read_form(await body_of(request))
            found = await asyncio.to_thread(work, form, request.headers.get("authorization"))
        except OAuthError as e:
            return JSONResponse(e.body(), e.status, {**SECRET, **e.headers})
        return JSONResponse(found, headers=SECRET) if found is not None else Response(headers=SECRET)

    return endpoint


async def body_of(request: Request) -> bytes:
    """The body, read no further than a form may be long."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_FORM:
            break
    return bytes(data)
