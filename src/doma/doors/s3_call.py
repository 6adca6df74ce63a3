"""One S3 request: whose key signed it, which bucket and key it names, and the ways to answer."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from doma.auth.model import Identity, Verb
from doma.core.errors import BadPath, BadRequest, Forbidden, NotAllowed, NotFound
from doma.core.events import Event
from doma.core.paths import checked, encode
from doma.doors.endpoint import Endpoint, Site
from doma.doors.landing import Landing, text_headers
from doma.doors.s3_body import Body
from doma.doors.s3_keys import Clock, Keys, Right, identity_of
from doma.doors.s3_sign import Signed, claimed, parsed
from doma.doors.s3_walk import Walks
from doma.doors.s3_xml import DECLARATION
from doma.store.protocol import Store
from doma.store.s3_signature import Asked

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Door:
    """What all requests share.

    Args:
        site: The endpoints.
        keys: Recognises access keys.
        uploads: Holds the parts of multipart uploads until they are complete; nobody else's.
        clock: Unix seconds.
    """

    site: Site
    keys: Keys
    uploads: Store
    clock: Clock
    walks: Walks = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "walks", Walks(self.clock))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket and a key lead."""

    endpoint: Endpoint
    path: str
    """Canonical, within the endpoint."""
    is_dir: bool
    """The key is empty or ends in ``/``: it means a directory."""


@dataclass(slots=True)
class Call:
    """A request whose signature was right."""

    door: Door
    asked: Asked
    signed: Signed
    right: Right
    receive: Receive
    send: Send
    request_id: str
    bucket: str
    key: str
    query: Mapping[str, str] = field(init=False)
    headers: Mapping[str, str] = field(init=False)
    """With what a signed URL says in their place: parameters whose names begin with ``x-amz-``."""

    def __post_init__(self) -> None:
        self.query = dict(self.asked.query)
        steering = {n: v.strip() for n, v in self.asked.query if n.startswith("x-amz-")}
        self.headers = {**steering, **self.asked.headers}

    @property
    def shown(self) -> str:
        return f"/{self.bucket}/{self.key}"

    def place(self, key: str | None = None, bucket: str | None = None) -> Place:
        """Where a key (this request's, if none is given) leads.

        Raises:
            NotFound: no such bucket. Forbidden: the key pair is for another endpoint. BadPath.
        """
        bucket, key = self.bucket if bucket is None else bucket, self.key if key is None else key
        endpoints = self.door.site.endpoints
        endpoint = endpoints.get(self.right.endpoint)
        if endpoint is None:
            raise NotFound(f"/{bucket}: its endpoint is not here any more", s3="NoSuchBucket")
        base = "" if bucket == endpoint.name else checked(f"/{bucket}")
        if base and bucket in endpoints:
            raise Forbidden(f"/{bucket}: this key is for {endpoint.name!r}; ask for another one")
        if base.count("/") > 1 or bucket in {"", "."}:
            raise BadPath(f"/{bucket}: is no name of a bucket", s3="InvalidBucketName")
        *above, last = key.split("/")
        if any(part in {"", "."} for part in above) or last == ".":
            # Stores know one way to write a path; two keys for one file would be two objects to S3.
            raise BadPath(f"/{bucket}/{key}: a key may not begin with '/', nor hold '//' or '.' as a name")
        return Place(endpoint, checked(f"{base}/{key}"), not last)

    def allow(self, verb: Verb, place: Place) -> Identity:
        """Who acts, if that may ``verb`` there: by the key, and by the endpoint's policy today.

        Raises:
            Forbidden.
        """
        if not self.right.covers(verb, place.path, is_dir=place.is_dir):
            raise Forbidden(
                f"{shown(place)}: this key does not allow to {verb} this; it is for"
                f" {', '.join(self.right.verbs)} below /{self.right.endpoint}{self.right.prefix}"
            )
        gate = place.endpoint.gate
        identity = identity_of(self.right, gate.areas_of(self.right.issuer))
        if identity is None:
            raise Forbidden(f"{shown(place)}: the issuer that this key came from has no area here any more")
        gate.decide(identity, verb, place.path, place.is_dir)
        return identity

    def allow_change(self, verb: Verb, place: Place) -> Identity:
        """As :meth:`allow`, for an endpoint that can be changed at all."""
        if not place.endpoint.writable:
            raise NotAllowed(f"{shown(place)}: the endpoint is read-only")
        return self.allow(verb, place)

    def body(self) -> Body:
        """The body with all that was said about it."""
        secret = self.door.keys.secret(self.signed.access_key)
        return Body(self.headers, self.receive, self.signed, secret, self.shown)

    def landing(self, place: Place, who: Identity, length: int | None, extra: Mapping[str, str]) -> Landing:
        """A write through the same checks, quotas and events as every other door's.

        Args:
            place: Where to.
            who: From :meth:`allow_change`.
            length: Bytes, if known.
            extra: Header lines that count besides the conditions of this request.
        """
        own = {n: v for n, v in self.headers.items() if n in {"if-match", "if-none-match"}}
        raw = [(n.encode(), v.encode("latin-1")) for n, v in (*own.items(), *extra.items())]
        return Landing(self.door.site, shown(place, encoded=True), b"", raw, length, identity=who)

    def tell(self, kind: str, place: Place, **data: Any) -> None:
        """Emit what has happened."""
        owner = f"{self.right.issuer}#{self.right.subject}"
        facts = {"endpoint": place.endpoint.name, **data}
        self.door.site.emit(Event(kind, shown(place), facts, owner))

    async def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send a whole answer."""
        sent = {"x-amz-request-id": self.request_id, **(headers or {})}
        if status != 204:
            sent.setdefault("Content-Length", str(len(body)))
        await start(self.send, status, sent.items())
        await self.send({"type": "http.response.body", "body": b"" if self.asked.method == "HEAD" else body})

    async def say(self, text: str, status: int = 200) -> None:
        """Send an XML document."""
        await self.answer(status, {"Content-Type": "application/xml"}, (DECLARATION + text).encode())


def recognised(door: Door, scope: Scope, receive: Receive, send: Send, request_id: str) -> Call:
    """The call, if its signature is right.

    Raises:
        DomaError: it is not, or there is none.
    """
    asked = asked_of(scope)
    signed = claimed(asked)
    if signed is None:
        raise Forbidden("the request is not signed; use an access key of /api/v1/s3/keys")
    right = door.keys.right(signed.access_key, signed.token)
    now = door.clock()
    signed.check(door.keys.secret(signed.access_key), now)
    door.keys.must_last(right, now)
    bucket, _, key = asked.path[1:].partition("/")
    return Call(door, asked, signed, right, receive, send, request_id, _plain(bucket), _plain(key))


def asked_of(scope: Scope) -> Asked:
    """The request as it stands on the wire."""
    raw: bytes = scope["raw_path"]
    try:
        path = raw.partition(b"?")[0].decode("ascii")
        query = scope.get("query_string", b"").decode("ascii")
    except UnicodeError as e:
        raise BadRequest("the path must be percent-encoded", s3="InvalidURI") from e
    names = [(n.lower(), v.strip()) for n, v in scope["headers"]]
    return Asked(scope["method"], path, parsed(query), text_headers(names))


def source_of(call: Call) -> tuple[Place, Mapping[str, str]]:
    """Where ``x-amz-copy-source`` points, and its conditions as plain headers."""
    text, _, version = call.headers["x-amz-copy-source"].partition("?versionId=")
    if version not in {"", "null"}:
        raise BadRequest("x-amz-copy-source: versions are not kept here; leave versionId out")
    bucket, _, key = _plain(text).removeprefix("/").partition("/")
    prefix = "x-amz-copy-source-"
    conditions = {n.removeprefix(prefix): v for n, v in call.headers.items() if n.startswith(prefix + "if-")}
    return call.place(key, bucket), conditions


def shown(place: Place, *, encoded: bool = False) -> str:
    """The URL path of a place."""
    tail = "/" if place.is_dir and place.path != "/" else ""
    if encoded:
        return f"/{quote(place.endpoint.name)}{encode(place.path)}{tail}"
    return f"/{place.endpoint.name}{place.path}{tail}"


async def start(send: Send, status: int, headers: Iterable[tuple[str, str]]) -> None:
    """Send the status and headers of an answer."""
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})


def _plain(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError as e:
        raise BadPath("a key must be UTF-8, percent-encoded") from e
