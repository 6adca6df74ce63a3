"""Requests to an S3 service: addressed, signed, and their refusals in our words.

Source: Amazon S3 API Reference; AWS "Signature Version 4 for S3".
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5, sha256
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlsplit
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from doma.core.errors import (
    ConfigError,
    Conflict,
    DomaError,
    Forbidden,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageFull,
    StorageUnavailable,
    TooManyRequests,
    Unsupported,
)
from doma.core.url import origin_of
from doma.net.client import RangeClient, Response
from doma.net.pool import Limits
from doma.store.http_trust import AddressGuard, Authorities, context_of
from doma.store.s3_signature import (
    EMPTY,
    UNSIGNED,
    Asked,
    Credentials,
    Pairs,
    encoded_query,
    signed,
)

LARGEST = 8 << 20
"""Bytes of a document that is read: a page of the longest keys has some 4 MiB."""
PAGE = 1000
"""Keys of one listing or one deletion."""

_FAILED = re.compile(rb"\s*(<\?xml[^>]*\?>)?\s*<Error>")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_BY_CODE: Mapping[str, type[DomaError]] = {
    "NoSuchKey": NotFound,
    "NoSuchUpload": NotFound,
    "NoSuchBucket": OriginFailed,
    "NotFound": NotFound,
    "PreconditionFailed": PreconditionFailed,
    "ConditionalRequestConflict": PreconditionFailed,
    "InvalidRange": RangeNotSatisfiable,
    "SlowDown": TooManyRequests,
    "InsufficientStorage": StorageFull,
    "XMinioStorageFull": StorageFull,
    "QuotaExceeded": StorageFull,
    "NotImplemented": Unsupported,
    "MethodNotAllowed": Unsupported,
    "InvalidObjectState": Conflict,
}
_BY_STATUS: Mapping[int, type[DomaError]] = {
    403: Forbidden, 401: Forbidden, 404: NotFound, 409: Conflict, 412: PreconditionFailed,
    416: RangeNotSatisfiable, 429: TooManyRequests, 500: StorageUnavailable, 501: Unsupported,
    502: StorageUnavailable, 503: StorageUnavailable, 507: StorageFull,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """A bucket, or the part of it below a prefix."""

    endpoint: str
    """``https://host[:port]``."""
    bucket: str
    prefix: str
    """Empty, or ``a/b/``."""
    region: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def address_of(url: str) -> Address:
    """Read ``s3://bucket/prefix?endpoint=…&region=…``.

    Raises:
        ConfigError: it is no such address, or holds a credential.

    >>> address_of("s3://b/a/c?endpoint=http://127.0.0.1:9000")
    Address(endpoint='http://127.0.0.1:9000', bucket='b', prefix='a/c/', region='us-east-1')
    """
    parts = urlsplit(url)
    shown = f"s3://{parts.netloc.rpartition('@')[2]}{parts.path}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    region = options.pop("region", "us-east-1")
    endpoint = options.pop("endpoint", f"https://s3.{region}.amazonaws.com").rstrip("/")
    if parts.scheme != "s3" or "@" in parts.netloc or not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError(f"{shown}: write s3://bucket/prefix; keys belong in [s3.buckets.<bucket>]")
    if options:
        raise ConfigError(f"{shown}: unknown option {min(options)[:40]!r}; known are endpoint and region")
    try:
        origin = origin_of(endpoint)
    except DomaError as e:
        raise ConfigError(f"{shown}: {e.message}; correct its endpoint") from e
    if origin.scheme not in {"http", "https"} or urlsplit(endpoint).path:
        raise ConfigError(f"{shown}: the endpoint must be http(s)://host[:port] without a path")
    prefix = unquote(parts.path).strip("/")
    if any(part in {"", ".", ".."} for part in prefix.split("/")) and prefix:
        raise ConfigError(f"{shown}: the prefix must be a plain path")
    return Address(str(origin), parts.netloc, prefix + "/" if prefix else "", region)


def credentials_of(environ: Mapping[str, str]) -> Credentials | None:
    """The keys of AWS's environment variables; None: requests go unsigned."""
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    return Credentials(access, secret, environ.get("AWS_SESSION_TOKEN", "")) if access and secret else None


class Wire:
    """The service, asked about one bucket.

    Args:
        address: Where.
        who: Whose keys; None: nobody's, for public buckets.
        clock: Unix seconds.
        ca_file: Authorities to trust besides the system's.
        limits: Times and counts.
    """

    def __init__(
        self,
        address: Address,
        who: Credentials | None,
        clock: Callable[[], float],
        ca_file: Authorities = None,
        limits: Limits | None = None,
    ) -> None:
        self.address, self._who, self._clock = address, who, clock
        origin = origin_of(address.endpoint)
        self._host, self._plain = str(origin).partition("://")[2], origin.scheme == "http"
        context = None if self._plain else context_of(ca_file)
        self.client = RangeClient(context, limits, AddressGuard(origin.host, None))

    def signed(
        self, method: str, key: str | None, query: Pairs, headers: Mapping[str, str], payload: str
    ) -> tuple[str, dict[str, str]]:
        """URL and headers of a request; ``key`` without the prefix, None for the bucket itself."""
        bucket, prefix = self.address.bucket, self.address.prefix
        path = f"/{bucket}" if key is None else quote(f"/{bucket}/{prefix}{key}", safe="/-_.~")
        tail = f"?{encoded_query(query)}" if query else ""
        every = dict(headers)
        if self._who is not None:
            asked = Asked(method, path, query, {**headers, "host": self._host})
            every |= signed(asked, payload, self._who, now=self._clock(), region=self.address.region)
        return f"{self.address.endpoint}{path}{tail}", every

    async def ask(
        self,
        method: str,
        key: str | None,
        query: Pairs = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send a request; the caller judges the status. Names of headers must be in lower case."""
        payload = EMPTY
        if body:
            # Without TLS nothing else keeps the body as it was sent.
            payload = sha256(body).hexdigest() if self._plain and self._who else UNSIGNED
        url, every = self.signed(method, key, query, headers or {}, payload)
        if body is None and method in {"PUT", "POST"}:
            body = b""
        return await self.client.request(method, url, every, body, follow=False)

    async def told(
        self,
        method: str,
        key: str | None,
        query: Pairs = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        path: str = "",
    ) -> tuple[Response, bytes]:
        """The answer, with its whole body, to a request that must succeed.

        Raises:
            DomaError: what the service said, also where it said so in a 200.
        """
        async with await self.ask(method, key, query, headers, body) as answer:
            if answer.status not in {200, 204}:
                raise await self.refused(answer, path or key or "/")
            data = await answer.read(LARGEST) if method != "HEAD" else b""
            if _FAILED.match(data):
                raise self._error(data, 200, path or key or "/")
            return answer, data

    async def refused(self, answer: Response, path: str) -> DomaError:
        """The error that an answer stands for."""
        try:
            data = await answer.read(64 << 10)
        except DomaError:
            data = b""
        if answer.status in {301, 307, 308}:
            region = answer.get("x-amz-bucket-region", "another one")[:40]
            return OriginFailed(f"{path}: {self.address} lies in region {region}; correct its address")
        # HEAD has no body: some services, ours too, name the code in a header
        code = answer.get("x-amz-error-code") or answer.get("x-minio-error-code")
        return self._error(data, answer.status, path, code)

    async def pages(self, query: Pairs) -> AsyncIterator[Element]:
        """The documents of a ListObjectsV2.

        Raises:
            OriginFailed: they do not get on: what was listed comes again.
        """
        token, last = "", ""
        while True:
            more = [("continuation-token", token)] if token else []
            _, data = await self.told(
                "GET", None, [("list-type", "2"), ("encoding-type", "url"), *query, *more]
            )
            page = document(data)
            keys = [unquote_plus(text_of(one, "Key")) for one in children(page, "Contents")]
            keys += [unquote_plus(text_of(one, "Prefix")) for one in children(page, "CommonPrefixes")]
            if keys and max(keys) <= last:
                raise OriginFailed(f"{self.address}: the service lists the same again and again")
            last = max(keys, default=last)
            yield page
            before, token = token, text_of(page, "NextContinuationToken")
            if text_of(page, "IsTruncated") != "true":
                return
            if token in {"", before}:
                raise OriginFailed(f"{self.address}: the service lists a part and does not go on")

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete up to a thousand keys at once.

        Raises:
            OriginFailed: some stayed; which, and why.
        """
        named = "".join(f"<Object><Key>{escape(self.address.prefix + key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{named}</Delete>".encode()
        digest = b64encode(md5(body, usedforsecurity=False).digest()).decode()
        headers = {"content-md5": digest, "content-type": "application/xml"}
        _, data = await self.told("POST", None, [("delete", "")], headers, body)
        for failed in children(document(data), "Error"):
            name, why = text_of(failed, "Key"), text_of(failed, "Message")
            raise OriginFailed(f"{name}: could not be deleted from {self.address}: {why[:200]}")

    def _error(self, data: bytes, status: int, path: str, code: str = "") -> DomaError:
        said = ""
        try:
            root = document(data) if data else None
        except OriginFailed:
            root = None
        if root is not None:
            code, said = text_of(root, "Code"), text_of(root, "Message")
        text = "".join(c for c in f"{code or status} {said}"[:300] if c.isprintable())
        kind = _BY_CODE.get(code) or _BY_STATUS.get(status, OriginFailed)
        return kind(f"{path}: {self.address.endpoint} says about {self.address}: {text.strip()}")


def document(data: bytes) -> Element:
    """The root of an answer. Raises OriginFailed when it is no XML."""
    try:
        root = fromstring(data, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except (ParseError, ValueError, LookupError) as e:
        raise OriginFailed("the S3 service answered something that is no XML") from e
    assert isinstance(root, Element)
    return root


def stated(data: bytes, name: str) -> str:
    """What an answer must say. Raises OriginFailed when it does not."""
    said = text_of(document(data), name).strip('"')
    if not said:
        raise OriginFailed(f"the S3 service told no {name} where one is due; nothing is known to be written")
    return said


def children(parent: Element, name: str) -> list[Element]:
    """The children of a name, in whatever namespace."""
    return [child for child in parent if str(child.tag).rpartition("}")[2] == name]


def text_of(parent: Element, name: str) -> str:
    """The text of the first child of a name; empty if there is none."""
    found = children(parent, name)
    return (found[0].text or "") if found else ""
