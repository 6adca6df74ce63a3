"""What the built-in issuer remembers: refresh families and revoked tokens, shared by all its processes.

A refresh token is a name and a MAC of it, so the tables hold nothing that could be used. The tokens of one
family are numbered; using the newest makes the next. The one before stays good for a grace and gives the same
next one again, since an answer can be lost on its way; used later it is stolen, and ends the family.

Source: RFC 6749 §6, RFC 9700 §4.14.2 (rotation), RFC 7009; §8 of the token contract.
"""

import hmac
import re
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from doma.auth.oauth import OAuthError
from doma.auth.tables import codes, families, revoked, rotations
from doma.core.errors import Conflict

T = TypeVar("T")

_REFRESH = re.compile(r"doma-rt\.([0-9a-f-]{36})\.([0-9]{1,9})\.([A-Za-z0-9_-]{43})")

# Built once: at some hundred tokens a second, building them would cost as much as running them.
_BEGIN = insert(families)
_FAMILY = select(families).where(families.c.id == bindparam("family"))
_LOCK = _FAMILY.with_for_update()
_NEXT = update(families).where(families.c.id == bindparam("family")).values(number=bindparam("newest"))
_ROTATED = insert(rotations)
_VOID = select(revoked.c.jti).where(revoked.c.jti == bindparam("void"))


class Tables(Protocol):
    """The database, as :class:`doma.db.engine.Database` gives it."""

    def run_sync(self, work: Callable[[Connection], T]) -> T:
        """Run a write transaction."""

    def look_sync(self, work: Callable[[Connection], T]) -> T:
        """Run a reading one."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a refresh token stands for."""

    id: str
    client: str
    subject: str
    scope: str
    audience: tuple[str, ...]
    details: Mapping[str, Any]
    """``groups``, ``act``, ``auth_time`` of its tokens."""
    expires: float
    """Unix seconds."""


class Ledger:
    """The issuer's memory. Every method blocks for a transaction: call them in a thread.

    Args:
        db: Where the tables are.
        key: Makes refresh tokens unforgeable; shared by all processes of the issuer.
        grace: Seconds for which a rotated refresh token stays good.
        longer: Seconds for which what an access token gave (a macaroon) may outlive it.
    """

    def __init__(self, db: Tables, key: bytes, *, grace: float = 86400.0, longer: float = 0.0) -> None:
        self.db = db
        self._key = key
        self._grace = grace
        self.longer = longer

    def mac(self, text: str) -> str:
        """A seal of this issuer over a text, as base64url."""
        return urlsafe_b64encode(hmac.digest(self._key, text.encode(), "sha256")).rstrip(b"=").decode()

    def begin(
        self,
        *,
        client: str,
        subject: str,
        scope: str,
        audience: Sequence[str],
        details: Mapping[str, Any],
        now: float,
        expires: float,
    ) -> tuple[str, str]:
        """A new family: its id and its first refresh token."""
        family = str(uuid.uuid4())
        row = {
            "id": family, "client": client, "subject": subject, "scope": scope, "number": 1, "made": now,
            "audience": list(audience), "details": dict(details), "expires": expires,
        }  # fmt: skip
        self.db.run_sync(lambda tx: tx.execute(_BEGIN, row))
        return family, self._token(family, 1)

    def rotate(
        self, token: str, client: str, now: float, use: Callable[[Family], Any] = lambda family: family
    ) -> tuple[Any, str]:
        """What ``use`` makes of a refresh token's family, and the token that follows it.

        Used again within the grace it gives the same one. If ``use`` refuses, nothing was used up.

        Raises:
            OAuthError: ``invalid_grant``: forged, expired, revoked, of another client, or used again too
                late (which ends the family); or what ``use`` raises.
        """
        family, number = self._read(token)

        def work(tx: Connection) -> tuple[Any, str]:
            row = tx.execute(_LOCK, {"family": family}).first()
            problem = _unusable(row, client, number, now)
            if row is None or problem:
                return None, problem
            if number < row.number and self._late(tx, family, number, now):
                tx.execute(update(families).where(families.c.id == family).values(revoked=now))
                return None, "was used before; all tokens of its family are void now"
            used = use(_family(row))
            if number == row.number:
                tx.execute(_NEXT, {"family": family, "newest": number + 1})
                tx.execute(_ROTATED, {"family": family, "number": number + 1, "at": now})
            return used, ""

        used, problem = self.db.run_sync(work)
        if problem:
            raise OAuthError("invalid_grant", f"refresh token: {problem}; log in or exchange again")
        return used, self._token(family, number + 1)

    def find(self, token: str, client: str, now: float) -> Family | None:
        """The family of a refresh token that is good at this moment; nothing is changed."""
        try:
            family, number = self._read(token)
        except OAuthError:
            return None

        def work(tx: Connection) -> Row[Any] | None:
            row = tx.execute(_FAMILY, {"family": family}).first()
            if row is None or _unusable(row, client, number, now):
                return None
            late = number < row.number and self._late(tx, family, number, now)
            return None if late else row

        row = self.db.look_sync(work)
        return _family(row) if row is not None else None

    def end(self, token: str, client: str, now: float) -> None:
        """Void a refresh token's family, if it is this client's. Idempotent."""
        try:
            family, _ = self._read(token)
        except OAuthError:
            return
        mine = (families.c.id == family) & (families.c.client == client) & families.c.revoked.is_(None)
        self.db.run_sync(lambda tx: tx.execute(update(families).where(mine).values(revoked=now)))

    def end_family(self, family: str, now: float) -> None:
        """Void a family by its id."""
        mine = families.c.id == family
        self.db.run_sync(lambda tx: tx.execute(update(families).where(mine).values(revoked=now)))

    def revoke(self, jti: str, expires: float, now: float) -> None:
        """Void an access token, and what it gave, until both expire by themselves. Idempotent."""

        def work(tx: Connection) -> None:
            if tx.execute(select(revoked.c.jti).where(revoked.c.jti == jti)).first() is None:
                tx.execute(insert(revoked).values(jti=jti, at=now, expires=expires + self.longer))

        try:
            self.db.run_sync(work)
        except Conflict:
            return  # another process was quicker

    def revoked_since(self, at: float, now: float) -> dict[str, float]:
        """Void tokens that were revoked at ``at`` or later, with their expiry."""
        wanted = select(revoked.c.jti, revoked.c.expires).where(revoked.c.at >= at, revoked.c.expires > now)
        return self.db.look_sync(lambda tx: {row.jti: row.expires for row in tx.execute(wanted)})

    def is_revoked(self, jti: str) -> bool:
        """Whether an access token is void, exactly as of now."""
        return self.db.look_sync(lambda tx: tx.execute(_VOID, {"void": jti}).first() is not None)

    def once(self, name: str, client: str, expires: float, now: float) -> bool:
        """Whether this name was never used before; it is used now, and kept until ``expires``."""
        row = {
            "id": name, "client": client, "scope": "", "audience": [], "details": {}, "state": "USED",
            "pause": 0, "made": now, "expires": expires,
        }  # fmt: skip
        try:
            self.db.run_sync(lambda tx: tx.execute(insert(codes).values(**row)))
        except Conflict:
            return False
        return True

    def prune(self, now: float) -> None:
        """Forget what has expired."""

        def work(tx: Connection) -> None:
            tx.execute(delete(rotations).where(rotations.c.at < now - self._grace))
            for table in (families, codes, revoked):
                tx.execute(delete(table).where(table.c.expires < now))

        self.db.run_sync(work)

    def _late(self, tx: Connection, family: str, number: int, now: float) -> bool:
        """Whether a token that is not the newest is used after its grace."""
        after = (rotations.c.family == family) & (rotations.c.number == number + 1)
        at = tx.execute(select(rotations.c.at).where(after)).scalar()
        return at is None or now - at > self._grace

    def _token(self, family: str, number: int) -> str:
        return f"doma-rt.{family}.{number}.{self.mac(f'refresh {family} {number}')}"

    def _read(self, token: str) -> tuple[str, int]:
        match = _REFRESH.fullmatch(token)
        if match is None or not hmac.compare_digest(token, self._token(match[1], int(match[2]))):
            raise OAuthError("invalid_grant", "refresh token: is not one of this issuer")
        return match[1], int(match[2])


def _unusable(row: Row[Any] | None, client: str, number: int, now: float) -> str:
    if row is None or row.client != client or number > row.number:
        return "is not known"
    if row.revoked is not None:
        return "was revoked"
    return "has expired" if now >= row.expires else ""


def _family(row: Row[Any]) -> Family:
    return Family(row.id, row.client, row.subject, row.scope, tuple(row.audience), row.details, row.expires)
