"""Macaroons asked for: by POST on the path itself, as dCache and XRootD have it, or in OAuth's form.

Who asks proves himself with a token (or another macaroon) and gets what he may do on the path at this moment,
for a time; no more than he asked for. gfal2 tries the OAuth form first.

Source: §10 of the token contract.
"""

import json
import re
import time
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from doma.auth.macaroon import ACTIVITIES, Macaroons
from doma.auth.model import Identity
from doma.core.errors import (
    BadRequest,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotAllowed,
    Unauthenticated,
    UnsupportedType,
)
from doma.core.paths import checked, encode
from doma.doors.dav_call import ALLOW, Call
from doma.doors.endpoint import Endpoint, Site
from doma.net.problem import render

TYPE = "application/macaroon-request"
MAX_BODY = 64 << 10

_DURATION = re.compile(r"P(?:(\d{1,5})D)?(?:T(?:(\d{1,7})H)?(?:(\d{1,9})M)?(?:(\d{1,9})S)?)?")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?")


async def issue(call: Call) -> None:
    """Answer ``POST application/macaroon-request``.

    Raises:
        UnsupportedType: a POST of another kind. Unauthenticated, Forbidden: who asks may do none of it.
        BadRequest: the request is no JSON of the form, or has a caveat that is not understood.
    """
    macaroons = _offered(call.site, call.shown)
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != TYPE:
        raise UnsupportedType(f"{call.shown}: POST takes {TYPE} only, to ask for a macaroon")
    asked = _asked(await call.body(MAX_BODY))
    directory = str(call.scope["path"]).endswith("/")
    activities, caveats, seconds = _read(asked)
    made, life = _made(
        macaroons, call.endpoint, call.path, call.identity, activities, caveats, seconds, directory=directory
    )
    host = call.headers.get("host", "")
    base = f"https://{host if _HOST.fullmatch(host) else call.site.name}"
    target = f"{base}/{call.endpoint.name}{encode(call.path)}"
    found = {
        "macaroon": made,
        "expires_in": life,
        "uri": {
            "targetWithMacaroon": f"{target}?authz={made}",
            "baseWithMacaroon": f"{base}/?authz={made}",
            "target": target,
            "base": f"{base}/",
        },
    }
    await call.answer(
        200, {"Content-Type": "application/json", "Cache-Control": "no-store"}, json.dumps(found).encode()
    )


def routes(site: Site, base: str) -> list[Route]:
    """The storage's own metadata and its token endpoint, the OAuth form of the same.

    Args:
        site: The endpoints.
        base: ``https://host:port`` of this server.
    """

    async def metadata(request: Request) -> Response:
        found = {
            "issuer": base,
            "token_endpoint": f"{base}/token",
            "grant_types_supported": ["client_credentials"],
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": ["none"],
        }
        return JSONResponse(found, headers={"Cache-Control": "max-age=3600"})

    async def token(request: Request) -> Response:
        try:
            found = await _token(site, request)
        except DomaError as e:
            status, headers, _ = render(e, "application/json", site.name)
            error = {401: "invalid_client", 403: "invalid_scope"}.get(status, "invalid_request")
            body = {"error": error, "error_description": e.message}
            return JSONResponse(body, status, {**headers, "Content-Type": "application/json"})
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    return [
        Route("/.well-known/oauth-authorization-server", metadata),
        Route("/token", token, methods=["POST"]),
    ]


async def _token(site: Site, request: Request) -> dict[str, object]:
    """``grant_type=client_credentials&expire_in=<s>&scopes=<ACTIVITY>:<path> …``."""
    macaroons = _offered(site, "/token")
    identity = await site.identify(request.headers.get("authorization"), request.url.query)
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise LimitExceeded(f"/token: the form may have at most {MAX_BODY} bytes")
    try:
        form = dict(parse_qsl(data.decode(), max_num_fields=20))
    except ValueError as e:
        raise BadRequest("/token: the body is not a form in UTF-8") from e
    if form.get("grant_type") != "client_credentials":
        raise BadRequest("/token: grant_type must be client_credentials")
    scope = form.get("scopes") or form.get("scope", "")
    pairs = [word.partition(":") for word in scope.split()]
    named = {unquote(path) for _, _, path in pairs}
    if len(named) != 1:
        raise BadRequest("/token: scopes must be ACTIVITY:/endpoint/path words, all with the same path")
    path = named.pop()
    life = form.get("expire_in", "")
    if life and not re.fullmatch(r"\d{1,9}", life):
        raise BadRequest("/token: expire_in must be a number of seconds")
    endpoint, inside = site.find(checked(path))
    activities = _known([activity for activity, _, _ in pairs])
    made, seconds = _made(
        macaroons, endpoint, inside, identity, activities, (), float(life or 0), directory=path.endswith("/")
    )
    return {"access_token": made, "token_type": "Bearer", "expires_in": seconds, "scope": scope}


def _offered(site: Site, where: str) -> Macaroons:
    if site.verifier.macaroons is None:
        raise NotAllowed(f"{where}: POST is not offered (no macaroons here); allowed are {ALLOW}")
    return site.verifier.macaroons


def _made(
    macaroons: Macaroons,
    endpoint: Endpoint,
    path: str,
    who: Identity | None,
    activities: Sequence[str],
    caveats: Sequence[str],
    seconds: float,
    *,
    directory: bool,
) -> tuple[str, int]:
    """A macaroon for those of the activities that the identity may do itself, and its seconds."""
    where = f"/{endpoint.name}{path}"
    if who is None:
        raise Unauthenticated(
            f"{where}: a token is needed to get a macaroon; send it as 'Authorization: Bearer'"
        )
    may = [name for name in activities if endpoint.gate.may(who, ACTIVITIES[name], path, directory)]
    if not may:
        endpoint.gate.decide(who, ACTIVITIES[activities[0]], path, directory)
        raise Forbidden(f"{where}: none of {', '.join(activities)} is allowed to {who}")
    now = time.time()
    until = min(now + min(seconds or macaroons.longest, macaroons.longest), who.expires if who.only else 9e9)
    place = where if not directory or path == "/" else f"{where}/"
    return macaroons.issue(who, place, may, until, caveats), max(0, int(until - now))


def _asked(body: bytes) -> dict[str, object]:
    try:
        asked = json.loads(body or b"{}")
    except (ValueError, RecursionError) as e:
        raise BadRequest("macaroon request: the body must be JSON") from e
    if not isinstance(asked, dict):
        raise BadRequest('macaroon request: the body must be {"caveats": [...], "validity": "PT30M"}')
    return asked


def _read(asked: dict[str, object]) -> tuple[list[str], list[str], float]:
    """Activities, further caveats, and seconds of validity (0: as long as may be)."""
    listed = asked.get("caveats", [])
    if not isinstance(listed, list) or not all(isinstance(caveat, str) for caveat in listed):
        raise BadRequest("macaroon request: caveats must be a list of texts")
    activities: list[str] | None = None
    for caveat in listed:
        name, _, value = caveat.partition(":")
        if name == "activity":
            words = _known(value.split(","))
            activities = words if activities is None else [word for word in activities if word in words]
    if activities == []:
        raise BadRequest("macaroon request: the activities asked for have none in common")
    rest = [caveat for caveat in listed if not caveat.startswith("activity:")]
    validity = asked.get("validity", "")
    match = _DURATION.fullmatch(validity) if isinstance(validity, str) else None
    if validity and (match is None or not any(match.groups())):
        raise BadRequest("macaroon request: validity must be a duration of ISO 8601 such as PT30M")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    return (
        list(ACTIVITIES) if activities is None else activities,
        rest,
        float(((days * 24 + hours) * 60 + minutes) * 60 + seconds),
    )


def _known(words: Sequence[str]) -> list[str]:
    unknown = [word for word in words if word not in ACTIVITIES]
    if unknown or not words:
        raise BadRequest(f"macaroon request: activities are {', '.join(ACTIVITIES)}")
    return list(dict.fromkeys(words))
