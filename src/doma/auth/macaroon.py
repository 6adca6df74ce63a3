"""Macaroons: tokens that the storage itself makes, for one path, which anybody can narrow and nobody widen.

A macaroon is a list of packets: location, identifier, caveats, and a chain of HMAC-SHA256 over identifier and
caveats. What is needed to judge it stands in it, so no table is asked: the identifier holds who got it and by
which token, the first caveats what he could do then. Every further caveat takes rights away; one that is not
understood takes all.

Source: Birgisson et al., "Macaroons: Cookies with Contextual Caveats" (NDSS 2014); libmacaroons' version 1
packets; dCache's and XRootD's caveats; §10 of the token contract.
"""

import hmac
import json
import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from doma.auth.model import Capability, Identity, Verb
from doma.auth.scopes import shown
from doma.core.errors import BadRequest, DomaError, InvalidToken
from doma.core.paths import checked, covers

MAX_BYTES = 8 << 10
"""Bytes of the largest macaroon."""
MAX_CAVEATS = 64

ACTIVITIES: dict[str, Verb] = {
    "DOWNLOAD": Verb.READ,
    "UPLOAD": Verb.CREATE,
    "LIST": Verb.LIST,
    "DELETE": Verb.MODIFY,
    "MANAGE": Verb.CREATE,
    "READ_METADATA": Verb.STAT,
    "UPDATE_METADATA": Verb.MODIFY,
    "STAGE": Verb.STAGE,
}
"""Each activity and the right that one needs to get it."""

_GIVES: tuple[tuple[frozenset[str], Verb], ...] = (
    (frozenset({"DOWNLOAD"}), Verb.READ),
    (frozenset({"LIST"}), Verb.LIST),
    (frozenset({"READ_METADATA"}), Verb.STAT),
    (frozenset({"UPLOAD"}), Verb.CREATE),
    # Replacing a file is both; whoever may only delete must not be able to put something else in its place.
    (frozenset({"UPLOAD", "DELETE"}), Verb.MODIFY),
)
"""What activities give together. Not STAGE: the tape interface takes tokens only."""

_GENERATOR = b"macaroons-key-generator"
_HEX = re.compile(rb"[0-9a-f]{4}")
_FORM = re.compile(r"[A-Za-z0-9_-]{32,}={0,2}")
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?Z")


@dataclass(frozen=True, slots=True)
class Macaroon:
    """The parts of a macaroon; whether its signature is good, :meth:`signed_by` tells."""

    location: str
    identifier: bytes
    caveats: tuple[bytes, ...]
    signature: bytes

    def signed_by(self, key: bytes) -> bool:
        """Whether the key made the chain."""
        return hmac.compare_digest(_chain(key, self.identifier, self.caveats), self.signature)


def serialised(location: str, identifier: bytes, caveats: Sequence[bytes], key: bytes) -> str:
    """A macaroon in text: version 1 packets as base64url without padding."""
    packets = [_packet(b"location", location.encode()), _packet(b"identifier", identifier)]
    packets += [_packet(b"cid", caveat) for caveat in caveats]
    packets.append(_packet(b"signature", _chain(key, identifier, caveats)))
    return urlsafe_b64encode(b"".join(packets)).rstrip(b"=").decode()


def parsed(text: str) -> Macaroon:
    """Take a macaroon apart.

    Raises:
        InvalidToken: it is none, too large, or has caveats of third parties.
    """
    if len(text) > MAX_BYTES or not _FORM.fullmatch(text):
        raise InvalidToken(f"macaroon: is not base64url of at most {MAX_BYTES} characters")
    try:
        data = b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except ValueError as e:
        raise InvalidToken("macaroon: is not base64url") from e
    packets = _packets(data)
    names = [name for name, _ in packets]
    caveats = tuple(value for name, value in packets[2:-1])
    if (
        names[:2] != [b"location", b"identifier"]
        or names[-1] != b"signature"
        or any(name != b"cid" for name in names[2:-1])
        or not 0 < len(caveats) <= MAX_CAVEATS
    ):
        raise InvalidToken("macaroon: must have a location, an identifier, own caveats and a signature")
    return Macaroon(packets[0][1].decode("latin-1"), packets[1][1], caveats, packets[-1][1])


class Macaroons:
    """Makes and judges the macaroons of one system.

    Args:
        location: Name of the server, for people.
        keys: Gives the secrets: the first signs, all verify.
        longest: Seconds of validity at most.
    """

    def __init__(self, location: str, keys: Callable[[], Sequence[bytes]], longest: float) -> None:
        self.longest = longest
        self._location = location
        self._keys = keys

    def issue(
        self, who: Identity, path: str, activities: Iterable[str], until: float, caveats: Sequence[str] = ()
    ) -> str:
        """A macaroon for somebody who may do the activities on the path, as the caller has decided.

        Args:
            who: Gets it.
            path: ``/<endpoint>/…``, canonical but for a trailing slash that says "directory".
            activities: Some of :data:`ACTIVITIES`.
            until: Unix seconds.
            caveats: Further ones, that the client asked for.

        Raises:
            BadRequest: a caveat is not understood, or too much is asked for.
        """
        facts = {"i": who.issuer, "s": who.subject, "v": who.vo, "c": who.client, "j": who.jti}
        stamp = datetime.fromtimestamp(int(until), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        own = [f"name:{who.subject}", f"activity:{','.join(activities)}", f"path:{path}", f"before:{stamp}"]
        try:
            _limits([*own, *caveats], who.subject, who.jti)
            listed = [caveat.encode() for caveat in [*own, *caveats]]
        except (InvalidToken, UnicodeError) as e:
            raise BadRequest(f"macaroon request: {e}") from e
        identifier = json.dumps(facts, separators=(",", ":")).encode()
        made = serialised(self._location, identifier, listed, self._keys()[0])
        if len(made) > MAX_BYTES:
            raise BadRequest(f"macaroon request: would need more than {MAX_BYTES} bytes; send fewer caveats")
        return made

    def verify(self, text: str, now: float) -> Identity:
        """The identity that a macaroon stands for, limited to one endpoint.

        Raises:
            InvalidToken: it is not ours, has expired, or has a caveat that is not understood.
        """
        found = parsed(text)
        if not any(found.signed_by(key) for key in self._keys()):
            raise InvalidToken("macaroon: its signature is not of this server, or of a secret gone by")
        try:
            facts = json.loads(found.identifier)
            caveats = [caveat.decode() for caveat in found.caveats]
        except ValueError as e:  # whoever holds a macaroon can append any bytes
            raise InvalidToken("macaroon: its caveats must be UTF-8") from e
        try:
            limits = _limits(caveats, facts["s"], facts["j"])
        except InvalidToken as e:
            raise InvalidToken(f"macaroon: {e.message}") from e
        if now >= limits.before:
            raise InvalidToken("macaroon: has expired (before); ask for a new one")
        endpoint, _, rest = limits.path[1:].partition("/")
        verbs = [verb for needed, verb in _GIVES if needed <= limits.activities]
        return Identity(
            issuer=facts["i"],
            subject=facts["s"],
            expires=limits.before,
            vo=facts["v"],
            client=facts["c"],
            capabilities=tuple(Capability(verb, "/" + rest) for verb in verbs),
            jti=facts["j"],
            only=endpoint,
        )


@dataclass(slots=True)
class _Limits:
    """What all caveats together leave."""

    activities: frozenset[str]
    path: str
    before: float


def _limits(caveats: Sequence[str], subject: str, jti: str) -> _Limits:
    """The intersection of all caveats.

    Raises:
        InvalidToken: one is not understood, or they leave no path.
    """
    if len(caveats) > MAX_CAVEATS:
        raise InvalidToken(f"has more than {MAX_CAVEATS} caveats")
    activities: frozenset[str] = frozenset(ACTIVITIES)
    path, before = "", float("inf")
    for caveat in caveats:
        name, _, value = caveat.partition(":")
        if name == "activity":
            asked = frozenset(value.split(","))
            if not asked <= ACTIVITIES.keys():
                raise InvalidToken(f"caveat {shown(caveat)}: activities are {', '.join(ACTIVITIES)}")
            activities &= asked
        elif name == "path":
            path = _deeper(path, _path(value))
        elif name == "before":
            before = min(before, _instant(value))
        elif (name, value) not in {("name", subject), ("id", jti)}:
            raise InvalidToken(f"caveat {shown(caveat)}: is not understood here")
    if path.strip("/") == "" or before == float("inf"):
        # without an endpoint's name it would count everywhere
        raise InvalidToken("has no path below an endpoint, or no end (before)")
    return _Limits(activities, path, before)


def _path(value: str) -> str:
    try:
        clean = checked(value)
    except DomaError as e:
        raise InvalidToken(f"caveat path: {e.message}") from e
    return f"{clean}/" if value.endswith("/") and clean != "/" else clean


def _deeper(one: str, other: str) -> str:
    """The path that both cover."""
    if not one or covers(one, other.rstrip("/") or "/"):
        # "/a/" and "/a": only the directory is in both
        return one if one == f"{other}/" else other
    if covers(other, one.rstrip("/") or "/"):
        return one
    raise InvalidToken("its caveats allow no path in common")


def _instant(value: str) -> float:
    match = _INSTANT.fullmatch(value)
    try:
        return datetime.fromisoformat(match[1] + "+00:00").timestamp() if match else _no_instant(value)
    except (ValueError, OverflowError):
        return _no_instant(value)


def _no_instant(value: str) -> float:
    raise InvalidToken(f"caveat before:{shown(value)}: must be like 2026-01-31T12:00:00Z")


def _chain(key: bytes, identifier: bytes, caveats: Sequence[bytes]) -> bytes:
    signature = hmac.digest(hmac.digest(_GENERATOR, key, "sha256"), identifier, "sha256")
    for caveat in caveats:
        signature = hmac.digest(signature, caveat, "sha256")
    return signature


def _packet(name: bytes, value: bytes) -> bytes:
    return f"{len(name) + len(value) + 6:04x}".encode() + name + b" " + value + b"\n"


def _packets(data: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    place = 0
    while place < len(data):
        head = data[place : place + 4]
        size = int(head, 16) if _HEX.fullmatch(head) else 0
        body = data[place + 4 : place + size]
        name, blank, value = body[:-1].partition(b" ")
        if size < 6 or len(body) != size - 4 or not blank or not body.endswith(b"\n"):
            raise InvalidToken("macaroon: its packets do not fit together")
        found.append((name, value))
        place += size
    if len(found) < 3:
        raise InvalidToken("macaroon: is not whole")
    return found
