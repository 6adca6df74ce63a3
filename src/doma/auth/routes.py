"""The issuer over HTTP: discovery, keys, and the endpoints of OAuth.

Source: OpenID Connect Discovery 1.0, RFC 8414, RFC 7517, RFC 6749, RFC 7009, RFC 7662; §8 of the token
contract.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from doma.auth import pages
from doma.auth.bearer import bearer_of
from doma.auth.flows import WAYS, Flows
from doma.auth.issuer import Issuer
from doma.auth.login import UserFlows
from doma.auth.oauth import MAX_FORM, Form, OAuthError, read_form
from doma.auth.revoked import Revocations
from doma.auth.scopes import WLCG
from doma.auth.turns import Turns
from doma.core.errors import BadCredential, DomaError

log = logging.getLogger(__name__)

PUBLIC = {"Cache-Control": "max-age=3600"}
SECRET = {"Cache-Control": "no-store", "Pragma": "no-cache"}

Endpoint = Callable[[Request], Awaitable[Response]]


def issuer_app(issuer: Issuer, revocations: Revocations | None = None) -> Starlette:
    """The app of an issuer; its routes are relative to ``/<vo>``, see :attr:`Issuer.path`.

    Args:
        issuer: Whose.
        revocations: Told at once of what is revoked here.
    """
    flows, turns = flows_of(issuer), Turns()
    answered = partial(_answered, turns)

    async def jwks(request: Request) -> Response:
        return JSONResponse(issuer.keys.jwks(), headers=PUBLIC)

    async def revoke(request: Request) -> Response:
        answer = await answered(flows.revoke)(request)
        if revocations is not None and answer.status_code == 200:
            with suppress(DomaError):  # it is written down; the next look finds it
                await revocations.look()
        return answer

    routes = [
        Route("/.well-known/openid-configuration", _metadata(flows)),
        Route("/jwks", jwks),
        Route("/token", answered(flows.token), methods=["POST"]),
    ]
    if issuer.ledger is not None:
        routes += [
            Route("/introspect", answered(flows.introspect), methods=["POST"]),
            Route("/revoke", revoke, methods=["POST"]),
        ]
    if isinstance(flows, UserFlows):
        routes += _user_routes(flows, turns)
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # it would go to the host that the request names
    return app


def flows_of(issuer: Issuer) -> Flows:
    """What an issuer can do, by what it has."""
    if issuer.ledger is None or issuer.users is None:
        return Flows(issuer)
    return UserFlows(issuer, issuer.ledger, issuer.users)


def metadata_route(issuer: Issuer) -> Route:
    """``/.well-known/oauth-authorization-server/<vo>`` of RFC 8414 §3.1, relative to the server."""
    path = f"/.well-known/oauth-authorization-server{issuer.path}"
    return Route(path, _metadata(flows_of(issuer)))


def _metadata(flows: Flows) -> Endpoint:
    async def discovery(request: Request) -> Response:
        return JSONResponse(metadata(flows), headers=PUBLIC)

    return discovery


def metadata(flows: Flows) -> dict[str, Any]:
    """The document of OpenID Connect Discovery 1.0 and RFC 8414: what this issuer really offers."""
    issuer, offered = flows.issuer, flows.offered()
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
    if isinstance(flows, UserFlows):
        found["scopes_supported"].append("openid")
        found["authorization_endpoint"] = f"{issuer.url}/authorize"
        found["device_authorization_endpoint"] = f"{issuer.url}/devicecode"
        found["userinfo_endpoint"] = f"{issuer.url}/userinfo"
        found["code_challenge_methods_supported"] = ["S256"]
        found["authorization_response_iss_parameter_supported"] = True
    return found


def _user_routes(flows: UserFlows, turns: Turns) -> list[Route]:
    """Pages and endpoints of the ways with a user."""
    paged = partial(_paged, turns, flows)

    async def devicecode(request: Request) -> Response:
        return await _answered(turns, partial(flows.device, peer=_address(request)))(request)

    async def device(request: Request) -> Response:
        if request.method == "GET":
            return pages.login(flows.issuer.vo, "device", user_code=request.query_params.get("user_code", ""))
        return await paged(request, flows.device_page)

    async def authorize(request: Request) -> Response:
        if request.method == "GET":
            return await paged(request, flows.authorize_page)
        return await paged(request, flows.authorize_form)

    async def userinfo(request: Request) -> Response:
        try:
            token = bearer_of(request.headers.get("authorization"))
        except BadCredential:
            token = None
        found = await asyncio.to_thread(flows.userinfo, token)
        if found is None:
            return Response(
                status_code=401, headers={**SECRET, "WWW-Authenticate": 'Bearer realm="userinfo"'}
            )
        return JSONResponse(found, headers=SECRET)

    return [
        Route("/devicecode", devicecode, methods=["POST"]),
        Route("/device", device, methods=["GET", "POST"]),
        Route("/authorize", authorize, methods=["GET", "POST"]),
        Route("/userinfo", userinfo, methods=["GET", "POST"]),
    ]


async def _paged(
    turns: Turns, flows: UserFlows, request: Request, work: Callable[[Form], Response]
) -> Response:
    """A page from a form, or from the query of a GET; a form that another site sends is refused."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    ours = {request.headers.get("host", ""), urlsplit(flows.issuer.url).netloc}
    try:
        if request.method == "GET":
            form = read_form(request.url.query.encode())
        elif site not in {"same-origin", "none"} or (origin and origin.partition("://")[2] not in ours):
            return pages.told("Not possible", "This form came from another site.", status=403)
        else:
            form = read_form(await body_of(request))
        async with turns.of(_address(request)):
            return await asyncio.to_thread(work, form)
    except OAuthError as e:
        return pages.told("Not possible", e.description, status=e.status)
    except DomaError as e:
        refusal = _broken(e)
        return pages.told("Not possible now", refusal.description, status=refusal.status)


def _answered(turns: Turns, work: Callable[[Form, str | None], dict[str, Any] | None]) -> Endpoint:
    """A JSON endpoint that reads a form and works in a thread, where scrypt and signatures disturb nobody."""

    async def endpoint(request: Request) -> Response:
        try:
            form = read_form(await body_of(request))
            async with turns.of(_address(request)):
                found = await asyncio.to_thread(work, form, request.headers.get("authorization"))
        except OAuthError as e:
            return JSONResponse(e.body(), e.status, {**SECRET, **e.headers})
        except DomaError as e:
            refusal = _broken(e)
            return JSONResponse(refusal.body(), refusal.status, {**SECRET, **refusal.headers})
        return JSONResponse(found, headers=SECRET) if found is not None else Response(headers=SECRET)

    return endpoint


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _broken(error: DomaError) -> OAuthError:
    """What a client learns when tables or files of the issuer fail; the log has the rest."""
    if error.http == 429:
        return OAuthError("temporarily_unavailable", error.message, 429, **{"Retry-After": "5"})
    log.error("the issuer cannot answer: %s", error.message)
    if error.http != 503:
        return OAuthError("server_error", "the issuer cannot answer now; the log has the cause", 500)
    return OAuthError("temporarily_unavailable", "the issuer is busy; try again", 503, **{"Retry-After": "5"})


async def body_of(request: Request) -> bytes:
    """The body, read no further than a form may be long."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_FORM:
            break
    return bytes(data)
