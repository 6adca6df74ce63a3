"""Signatures of S3 requests: version 4 in the header or the query, version 2 in the query.

Everything is pure: a :class:`Signed` says what a request claims, :meth:`Signed.check` whether the secret key
was known to whoever made it. Paths and queries are taken as they stand on the wire. S3 encodes a path once;
clients that left a character bare which the rule encodes are understood too.

Source: AWS "Signature Version 4 for S3" (header, query, chunk and trailer signatures), "Signature Version 2";
servicex.md §5 of the project's contracts.
"""

import base64
import hmac
import re
from calendar import timegm
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from doma.core.errors import BadRequest, Forbidden
from doma.store.s3_signature import ALGORITHM, LONGEST, UNSIGNED, Asked, Scope, canonical, to_sign

SKEW = 900.0
"""Seconds that the clocks may differ."""

_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_SUBRESOURCES = frozenset(
    {
        "acl", "cors", "delete", "lifecycle", "location", "logging", "notification", "partNumber", "policy",
        "requestPayment", "tagging", "torrent", "uploadId", "uploads", "versionId", "versioning", "versions",
        "website", "response-cache-control", "response-content-disposition", "response-content-encoding",
        "response-content-language", "response-content-type", "response-expires",
    }
)  # fmt: skip
"""Query parameters that version 2 signs."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What the signature of a request claims; nothing of it is proven before :meth:`check`."""

    access_key: str
    signature: str
    token: str
    """Session token."""
    payload: str
    """Hash of the body, or one of the words that stand for it."""
    begins: float
    ends: float
    """When it is good, Unix seconds."""
    candidates: Sequence[bytes] = ()
    """Strings to sign, one of which must fit."""
    scope: Scope | None = None
    """None: version 2."""
    date: str = ""
    loose: Sequence[str] = field(default=())
    """Headers that had to be signed and were not."""

    def check(self, secret: str, now: float) -> None:
        """Raise Forbidden unless whoever made this knew the secret, and meant now."""
        if self.scope is None:
            found = [
                base64.b64encode(hmac.digest(secret.encode(), c, "sha1")).decode() for c in self.candidates
            ]
        else:
            key = self.scope.key(secret)
            found = [hmac.digest(key, c, "sha256").hex() for c in self.candidates]
        # all are compared, so that the time tells nothing
        if not sum(hmac.compare_digest(one.encode(), self.signature.encode()) for one in found):
            raise Forbidden(
                "signature: does not fit the request; check the secret key, and that nothing between here and"
                " the client changes host, path, query or headers",
                s3="SignatureDoesNotMatch",
            )
        if self.loose:
            raise Forbidden(f"signature: does not cover {', '.join(self.loose)}; sign it", s3="AccessDenied")
        if now < self.begins:
            raise Forbidden("signature: is from the future; set your clock", s3="RequestTimeTooSkewed")
        if now > self.ends:
            late = "RequestTimeTooSkewed" if self.ends - self.begins == 2 * SKEW else "AccessDenied"
            raise Forbidden("signature: Request has expired; sign it anew and check your clock", s3=late)


def claimed(asked: Asked) -> Signed | None:
    """The signature that a request carries; None if it has none.

    Raises:
        BadRequest: it is malformed. Forbidden: it asks for a longer life than there is.
    """
    query = dict(asked.query)
    authorization = asked.headers.get("authorization", "")
    if authorization.startswith(ALGORITHM):
        return _from_header(asked, authorization)
    if "X-Amz-Algorithm" in query:
        return _from_query(asked, query)
    if "AWSAccessKeyId" in query and "Signature" in query:
        return _version2(asked, query)
    return None


def parsed(query: str) -> list[tuple[str, str]]:
    """The pairs of a query string as S3 reads it.

    Raises:
        BadRequest: bytes that are no UTF-8.

    >>> parsed("a=1+1&b&c=%2F")
    [('a', '1+1'), ('b', ''), ('c', '/')]
    """
    try:
        return [
            (unquote_to_bytes(name).decode(), unquote_to_bytes(value).decode())
            for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)
        ]
    except UnicodeError as e:
        raise BadRequest("query: must be UTF-8, percent-encoded") from e


def _from_header(asked: Asked, authorization: str) -> Signed:
    pairs = (pair.partition("=") for pair in authorization.removeprefix(ALGORITHM).split(","))
    parts = {name.strip(): value.strip() for name, _, value in pairs}
    stamp = asked.headers.get("x-amz-date", "")
    payload = asked.headers.get("x-amz-content-sha256", "")
    try:
        credential, names, signature = parts["Credential"], parts["SignedHeaders"], parts["Signature"]
    except KeyError as e:
        raise BadRequest("Authorization: Credential, SignedHeaders or Signature is missing") from e
    key, scope = _credential(credential)
    if not payload and scope.service == "s3":
        raise BadRequest("x-amz-content-sha256: is missing; send the hash, or UNSIGNED-PAYLOAD")
    at = _instant(stamp, scope)
    token = asked.headers.get("x-amz-security-token", "")
    return _signed4(asked, key, scope, stamp, names, payload, signature, token, (at - SKEW, at + SKEW))


def _from_query(asked: Asked, query: Mapping[str, str]) -> Signed:
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise BadRequest(
            f"X-Amz-Algorithm: only {ALGORITHM} is known here", s3="AuthorizationQueryParametersError"
        )
    try:
        key, scope = _credential(query["X-Amz-Credential"])
        stamp, life = query["X-Amz-Date"], query["X-Amz-Expires"]
        names, signature = query["X-Amz-SignedHeaders"], query["X-Amz-Signature"]
    except KeyError as e:
        raise BadRequest(f"{e.args[0]}: is missing", s3="AuthorizationQueryParametersError") from e
    if not (life.isascii() and life.isdigit() and len(life) < 8 and 0 < int(life) <= LONGEST):
        raise BadRequest(
            f"X-Amz-Expires: must be 1 to {LONGEST} seconds", s3="AuthorizationQueryParametersError"
        )
    at = _instant(stamp, scope)
    payload = asked.headers.get("x-amz-content-sha256", query.get("X-Amz-Content-Sha256", UNSIGNED))
    token = query.get("X-Amz-Security-Token", "")
    return _signed4(asked, key, scope, stamp, names, payload, signature, token, (at - SKEW, at + int(life)))


def _signed4(
    asked: Asked,
    key: str,
    scope: Scope,
    stamp: str,
    listed: str,
    payload: str,
    signature: str,
    token: str,
    good: tuple[float, float],
) -> Signed:
    names = listed.split(";")
    if "host" not in names or names != sorted(set(names)) or len(names) > 100:
        raise BadRequest("SignedHeaders: must be sorted, lower-case, and hold host")
    # A header that steers S3 must be signed: who carries a pre-signed URL may not add to what it does.
    loose = [
        name
        for name in asked.headers
        if name.startswith("x-amz-") and name not in {*names, "x-amz-content-sha256"}
    ]
    paths = dict.fromkeys((asked.path, _encoded(asked.path)))
    texts = [to_sign(canonical(asked, path, names, payload), stamp, scope) for path in paths]
    return Signed(key, signature, token, payload, *good, texts, scope, stamp, loose)


def _version2(asked: Asked, query: Mapping[str, str]) -> Signed:
    expires = query.get("Expires", "")
    if not (expires.isascii() and expires.isdigit() and len(expires) < 12):
        raise BadRequest("Expires: must be Unix seconds", s3="AuthorizationQueryParametersError")
    named = [(n, " ".join(v.split())) for n, v in asked.headers.items()] + [*asked.query]
    steering = [(n.lower(), v) for n, v in named if n.lower().startswith("x-amz-")]
    amz = dict(steering)
    if len(amz) < len(steering):
        raise BadRequest("x-amz-…: one of them came twice, and only one is signed; send each once")
    lines = "".join(f"{name}:{amz[name]}\n" for name in sorted(amz))
    extra = sorted(pair for pair in asked.query if pair[0] in _SUBRESOURCES)
    tail = "&".join(f"{name}={value}" if value else name for name, value in extra)
    kind, md5 = asked.headers.get("content-type", ""), asked.headers.get("content-md5", "")
    head, end = f"{asked.method}\n{md5}\n{kind}\n{expires}\n{lines}", f"{'?' if tail else ''}{tail}"
    texts = [f"{head}{path}{end}".encode() for path in dict.fromkeys((asked.path, _encoded(asked.path)))]
    token = query.get("x-amz-security-token", "")
    return Signed(query["AWSAccessKeyId"], query["Signature"], token, UNSIGNED, 0, float(expires), texts)


def _credential(text: str) -> tuple[str, Scope]:
    parts = text.rsplit("/", 4)
    if len(parts) != 5 or parts[4] != "aws4_request" or not 0 < len(parts[0]) <= 4096:
        raise BadRequest("Credential: must be key/date/region/s3/aws4_request")
    return parts[0], Scope(parts[1], parts[2], parts[3])


def _instant(stamp: str, scope: Scope) -> float:
    if not _DATE.fullmatch(stamp) or stamp[:8] != scope.date:
        raise BadRequest("x-amz-date: must be like 20260101T120000Z, on the day of the credential")
    year, month, day = int(stamp[:4]), int(stamp[4:6]), int(stamp[6:8])
    if not (year > 1970 and 1 <= month <= 12 and 1 <= day <= 31):
        raise BadRequest("x-amz-date: is no date")
    return float(timegm((year, month, day, int(stamp[9:11]), int(stamp[11:13]), int(stamp[13:15]))))


def _encoded(path: str) -> str:
    return quote(unquote_to_bytes(path), safe="/-_.~")
