"""Access keys for whoever holds a token: our own route, and STS's AssumeRoleWithWebIdentity.

A key never allows more than the token that asked for it, nor for longer. boto3, obstore and others renew such
keys by themselves when they are given a role and a token file: the role's name is the endpoint and the
prefix, ``arn:aws:iam::000000000000:role/site/user/ada``.

Source: AWS Security Token Service API Reference, AssumeRoleWithWebIdentity.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity, Verb
from doma.auth.revoked import mark_of
from doma.cache.routes_body import known_first
from doma.core.errors import BadRequest, DomaError, Forbidden, NotFound, Unauthenticated
from doma.core.paths import checked
from doma.doors.s3_call import Door, Receive, Scope, Send
from doma.doors.s3_keys import HANDED, Key, Right, within
from doma.doors.s3_xml import DECLARATION, element, instant, tag

LIFETIME = 3600.0
MAX_FORM = 64 << 10
_STS = "https://sts.amazonaws.com/doc/2011-06-15/"


class Wanted(BaseModel):
    """What a key shall allow."""

    model_config = ConfigDict(extra="forbid")

    endpoint: str
    prefix: str = "/"
    """Path within the endpoint; a trailing slash says "directory"."""
    verbs: Annotated[list[Verb], Field(min_length=1)] = [Verb.READ]
    lifetime: Annotated[float, Field(gt=0)] = LIFETIME
    """Seconds; at most what is left of the token, and what the server grants."""


class Granted(BaseModel):
    """A key pair, and where to use it."""

    access_key: str
    secret_key: str
    session_token: str
    """Empty for most; clients take it where they ask for one."""
    endpoint_url: str
    bucket: str
    prefix: str
    """What keys in the bucket begin with, without slash in front."""
    expires: float
    """Unix seconds."""


def grant(door: Door, who: Identity, wanted: Wanted, longest: float) -> Key:
    """A key for the holder of a token.

    Raises:
        NotFound: no such endpoint. Forbidden: the token does not allow all of it. BadRequest.
    """
    endpoint = door.site.endpoints.get(wanted.endpoint)
    if endpoint is None:
        raise NotFound(f"endpoint {wanted.endpoint[:80]!r}: there is none of this name here")
    clean = checked(wanted.prefix)
    prefix = clean + "/" if wanted.prefix.endswith("/") and clean != "/" else clean
    now = door.clock()
    expires = min(now + min(wanted.lifetime, longest), who.expires)
    mark = mark_of(who.jti)
    right = Right(endpoint.name, prefix, tuple(wanted.verbs), who.issuer, who.subject, expires, mark)
    within(endpoint.gate, who, right)
    return door.keys.issue(right)


def router(door: Door, url: str, longest: float) -> APIRouter:
    """The route that gives keys.

    Args:
        door: Has the endpoints and makes the keys.
        url: ``https://host:port`` of the server, what clients call the endpoint URL.
        longest: Seconds that a key may live.
    """

    async def holder(request: Request) -> Identity:
        token = bearer_of(request.headers.get("authorization"), request.url.query)
        if token is None:
            raise Unauthenticated(
                f"{request.url.path}: a token is needed; send it as 'Authorization: Bearer …'"
            )
        return await door.site.verifier.verify(token)

    routes = APIRouter(tags=["s3"], route_class=known_first(holder, MAX_FORM))

    @routes.post("/api/v1/s3/keys")
    async def keys(wanted: Wanted, request: Request) -> Granted:
        """Exchange the token for an access key of the s3 door, never wider than the token."""
        key = grant(door, await holder(request), wanted, longest)
        return Granted(
            access_key=key.access_key,
            secret_key=key.secret_key,
            session_token=key.session_token,
            endpoint_url=url,
            bucket=key.right.endpoint,
            prefix=key.right.prefix[1:],
            expires=int(key.right.expires),
        )

    return routes


def is_sts(scope: Scope) -> bool:
    """Whether a request is for :func:`sts`: only a POST to the top can be."""
    return bool(scope["method"] == "POST" and scope["path"] == "/")


async def sts(door: Door, longest: float, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer AssumeRoleWithWebIdentity."""
    status, text = 200, ""
    try:
        form = await _form(scope, receive)
        if form.get("Action") != "AssumeRoleWithWebIdentity":
            raise BadRequest("Action: only AssumeRoleWithWebIdentity is offered here")
        text = _assumed(await _assume(door, longest, form), form)
    except DomaError as e:
        status = 403 if isinstance(e, Unauthenticated | Forbidden) else 400 if e.http < 500 else e.http
        code = {403: "AccessDenied", 400: "ValidationError"}.get(status, "InternalFailure")
        said = element("Error", [("Type", "Sender"), ("Code", code), ("Message", e.message)])
        text = f'<ErrorResponse xmlns="{_STS}">{said}</ErrorResponse>'
    body = (DECLARATION + text).encode()
    headers = [(b"content-type", b"text/xml"), (b"content-length", str(len(body)).encode())]
    headers.append((b"cache-control", b"no-store"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _assume(door: Door, longest: float, form: Mapping[str, str]) -> Key:
    token, role, seconds = (form.get(n, "") for n in ("WebIdentityToken", "RoleArn", "DurationSeconds"))
    name, _, rest = role.partition(":role/")[2].partition("/")
    endpoint = door.site.endpoints.get(name)
    if not token or endpoint is None:
        raise BadRequest(
            "RoleArn must be like arn:aws:iam::000000000000:role/<endpoint>/<prefix>, with a token"
        )
    if seconds and not (seconds.isascii() and seconds.isdigit() and 0 < int(seconds[:9]) < 1e8):
        raise BadRequest("DurationSeconds: must be a number of seconds")
    who = await door.site.verifier.verify(token)
    clean, lifetime = checked("/" + rest), float(seconds or LIFETIME)
    verbs: Sequence[Verb] = [verb for verb in HANDED if endpoint.gate.may(who, verb, clean, True)]
    if not verbs:
        raise Forbidden(f"{role[:200]}: the token of {who} allows nothing there")
    prefix = clean if clean == "/" else clean + "/"
    wanted = Wanted(endpoint=name, prefix=prefix, verbs=list(verbs), lifetime=lifetime)
    return grant(door, who, wanted, longest)


def _assumed(key: Key, form: Mapping[str, str]) -> str:
    credentials = element(
        "Credentials",
        [
            ("AccessKeyId", key.access_key),
            ("SecretAccessKey", key.secret_key),
            # clients insist on one; the door does not look at it unless the id needs it
            ("SessionToken", key.session_token or "none"),
            ("Expiration", instant(key.right.expires)),
        ],
    )
    name = form.get("RoleSessionName", "")[:64]
    user = element("AssumedRoleUser", [("Arn", form["RoleArn"][:2048]), ("AssumedRoleId", f"doma:{name}")])
    subject = tag("SubjectFromWebIdentityToken", key.right.subject)
    result = (
        f"<AssumeRoleWithWebIdentityResult>{subject}{credentials}{user}</AssumeRoleWithWebIdentityResult>"
    )
    about = element("ResponseMetadata", [("RequestId", key.access_key[-8:])])
    name = "AssumeRoleWithWebIdentityResponse"
    return f'<{name} xmlns="{_STS}">{result}{about}</{name}>'


async def _form(scope: Scope, receive: Receive) -> dict[str, str]:
    """The fields, from the query (obstore) and the body (boto3)."""
    data = bytearray(scope.get("query_string", b"")) + b"&"
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("the body ended early")
        data += message.get("body", b"")
        if len(data) > MAX_FORM:
            raise BadRequest(f"the form may have at most {MAX_FORM} bytes")
        if not message.get("more_body"):
            break
    try:
        return dict(parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError as e:
        raise BadRequest("the form must be UTF-8 with at most 100 fields") from e
