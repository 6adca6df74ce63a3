"""Access keys of the s3 door, derived from one secret of the home: there is no table of them.

An access key id *is* the right that it stands for (endpoint, prefix, verbs, subject, issuer, expiry) in
base64url; its secret key is ``HMAC(master, id)``. Whoever alters the id does not know the secret that
belongs to it, so the id needs no signature of its own. A right too long for an id (128 characters, what
AWS allows) travels as session token, and the id holds its digest.

Buckets: the name of an endpoint is the top of that endpoint (``s3://site/a/b`` is ``/site/a/b``); any other
name is a top-level directory of the key's own endpoint. So a ServiceX client reads the bucket
``<request id>`` with a key for endpoint ``results``, prefix ``/<request id>`` and the verb ``read``::

    keys.issue(Right("results", f"/{request_id}", (Verb.READ,), issuer, subject, expires), session=False)

Source: servicex.md §5, tokens.md §5 of the project's contracts.
"""

import base64
import binascii
import hmac
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from hashlib import sha256

from doma.auth.gate import Gate
from doma.auth.model import Capability, Identity, Verb
from doma.auth.scopes import SATISFIED_BY
from doma.core.errors import BadRequest, Forbidden
from doma.core.paths import checked, covers

LONGEST = 128
"""Characters of an access key id."""
MAX_TOKEN = 2048
"""Characters of a session token."""

HANDED = (Verb.READ, Verb.CREATE, Verb.MODIFY, Verb.STAGE)
"""What a key can allow."""
_PLAIN, _DIGEST = "DK", "DS"
_PLAIN_RIGHT, _MARKED = 1, 2
"""First byte of a right: without and with the mark of a token."""
_STARTS = {_PLAIN_RIGHT: 10, _MARKED: 18}
"""Where its texts begin."""


@dataclass(frozen=True, slots=True)
class Right:
    """What a key allows, and in whose name."""

    endpoint: str
    prefix: str
    """Path within the endpoint; a trailing slash says "directory", as in a scope (T13)."""
    verbs: tuple[Verb, ...]
    issuer: str
    subject: str
    expires: float
    """Unix seconds."""
    token: bytes = b""
    """:func:`doma.auth.revoked.mark_of` the token that it was got with; empty: with none."""

    def covers(self, verb: Verb, path: str, *, is_dir: bool = False) -> bool:
        """Whether this is a right to ``verb`` a path of the endpoint."""
        enough = SATISFIED_BY[verb]
        if not any(held in enough for held in self.verbs):
            return False
        if verb is Verb.STAT and covers(path, self.prefix.rstrip("/") or "/"):
            return True
        if path == self.prefix.rstrip("/") and self.prefix.endswith("/") and path:
            return is_dir
        return covers(self.prefix, path)


@dataclass(frozen=True, slots=True)
class Key:
    """A pair of keys as its owner gets it."""

    access_key: str
    secret_key: str
    session_token: str
    """Empty when the access key id says it all."""
    right: Right


class Keys:
    """Issues keys and recognises them.

    Args:
        master: 32 secret bytes; whoever changes them revokes all keys.
        issuers: Token issuers whose subjects may hold keys: the trusted ones.
        void: Marks of tokens that were revoked, with what was got by them.
    """

    def __init__(self, master: bytes, issuers: Sequence[str], void: Container[bytes] = frozenset()) -> None:
        self._master = master
        self._void = void
        self._issuers = {_mark(issuer): issuer for issuer in issuers}
        self._known: dict[str, Right] = {}

    def issue(self, right: Right, *, session: bool = True) -> Key:
        """A key pair for a right; whether somebody may hand it on is :func:`within`'s question.

        Args:
            right: What it shall allow.
            session: Whether a long right may need a session token; where the client has no place for one,
                False makes the id longer than :data:`LONGEST` instead.

        Raises:
            BadRequest: an unknown issuer, or a right that cannot be written down.
        """
        text = _encode(_packed(right))
        if len(_PLAIN) + len(text) <= LONGEST or not session:
            return Key(_PLAIN + text, self.secret(_PLAIN + text), "", right)
        if len(text) > MAX_TOKEN:
            raise BadRequest(
                f"key: the prefix {right.prefix[:80]} is too long for a key; choose a shorter one"
            )
        name = _DIGEST + _encode(sha256(text.encode()).digest()[:24])
        return Key(name, self.secret(name), text, right)

    def secret(self, access_key: str) -> str:
        """The secret key of an id, whoever made that up."""
        return _encode(hmac.digest(self._master, b"doma-s3-secret\0" + access_key.encode(), "sha256")[:30])

    def right(self, access_key: str, token: str = "") -> Right:
        """What an id stands for; believe it only once a signature with its secret was right.

        Raises:
            Forbidden: it is none of ours, or its session token is missing or another one.
        """
        known = self._known.get(access_key)
        if known is not None:
            return known
        text = access_key.removeprefix(_PLAIN)
        if access_key.startswith(_DIGEST):
            text = token
            if len(text) > MAX_TOKEN or not hmac.compare_digest(
                access_key.encode(), (_DIGEST + _encode(sha256(text.encode()).digest()[:24])).encode()
            ):
                raise Forbidden("key: its session token is missing or wrong; send both", s3="InvalidToken")
        elif not access_key.startswith(_PLAIN):
            raise _unknown()
        right = _unpacked(text, self._issuers)
        if len(self._known) >= 1024:
            self._known.clear()
        self._known[access_key] = right
        return right

    def must_last(self, right: Right, now: float) -> None:
        """Raise Forbidden if a right has ended."""
        if now >= right.expires:
            raise Forbidden("key: it has expired; ask for another one", s3="ExpiredToken")
        if right.token in self._void:
            raise Forbidden("key: the token that it came from was revoked", s3="ExpiredToken")


def within(gate: Gate, who: Identity, right: Right) -> None:
    """Return if whoever holds a token may do everything that a key would allow.

    Raises:
        Forbidden: the key would allow more.
    """
    path = right.prefix.rstrip("/") or "/"
    for verb in right.verbs:
        gate.decide(who, verb, path, is_dir=right.prefix.endswith("/") or path == "/")


def identity_of(right: Right, areas: Sequence[str]) -> Identity | None:
    """Who acts with a key, as gates see it; None where its issuer has no area.

    Scopes are relative to an issuer's areas, keys are not: where there are several areas the identity covers
    the same path in each, so :meth:`Right.covers` must be asked as well.
    """
    inside = [area for area in areas if covers(area, right.prefix.rstrip("/") or "/")]
    if not inside:
        return None
    nearest = max(inside, key=len).rstrip("/")
    path = right.prefix[len(nearest) :] or "/"
    held = tuple(Capability(verb, path) for verb in right.verbs)
    return Identity(right.issuer, right.subject, right.expires, capabilities=held, scopes=("storage.key",))


def _packed(right: Right) -> bytes:
    if not right.verbs or any(verb not in HANDED for verb in right.verbs):
        raise BadRequest(f"key: verbs must be some of {', '.join(HANDED)}")
    if not 0 < right.expires < 1 << 32:
        raise BadRequest("key: the expiry must be Unix seconds")
    verbs = sum(1 << i for i, verb in enumerate(HANDED) if verb in right.verbs)
    words = (right.endpoint, right.prefix, right.subject)
    if any("\0" in word for word in words):
        raise BadRequest("key: a NUL is not allowed in its endpoint, prefix or subject")
    head = int(right.expires).to_bytes(4, "big") + _mark(right.issuer) + right.token
    return bytes((_MARKED if right.token else _PLAIN_RIGHT, verbs)) + head + "\0".join(words).encode()


def _unpacked(text: str, issuers: "dict[bytes, str]") -> Right:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        start = _STARTS[data[0]]
        endpoint, prefix, subject = data[start:].decode().split("\0")
        issuer = issuers[data[6:10]]
        verbs = tuple(verb for i, verb in enumerate(HANDED) if data[1] >> i & 1)
        clean = checked(prefix)
    except (ValueError, binascii.Error, KeyError, IndexError, BadRequest) as e:
        raise _unknown() from e
    if clean != (prefix.rstrip("/") or "/"):
        raise _unknown()
    return Right(endpoint, prefix, verbs, issuer, subject, int.from_bytes(data[2:6], "big"), data[10:start])


def _unknown() -> Forbidden:
    return Forbidden(
        "key: this access key id is not one of this server; ask for one at /api/v1/s3/keys",
        s3="InvalidAccessKeyId",
    )


def _mark(issuer: str) -> bytes:
    return sha256(issuer.removesuffix("/").encode()).digest()[:4]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


Clock = Callable[[], float]
