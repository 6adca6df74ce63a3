"""Codes that a client trades for tokens once a user has agreed: of devices, and of redirects.

A code stands in the tables as its SHA-256 only. Every step is one transaction that names the state it begins
from, so two who use a code at once do not both get tokens.

Source: RFC 8628 §3, RFC 6749 §4.1, RFC 9700 §2.1.1 (a code used twice ends what it gave).
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from doma.auth.ledger import Ledger
from doma.auth.oauth import OAuthError
from doma.auth.tables import codes

PENDING, APPROVED, DENIED, USED, AGAIN = "PENDING", "APPROVED", "DENIED", "USED", "AGAIN"
"""Where a code stands; ``AGAIN``: somebody came with it once more after it was used."""

PAUSE = 5
"""Seconds between two questions of a device; asking sooner adds as many."""


class Codes:
    """The codes of one issuer. Every method blocks for a transaction: call them in a thread.

    Args:
        ledger: Its memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._db = ledger.db
        self._ledger = ledger

    def keep(
        self,
        code: str,
        client: str,
        scope: str,
        audience: Sequence[str],
        details: Mapping[str, Any],
        *,
        now: float,
        life: float,
        user_code: str | None = None,
        subject: str | None = None,
        auth_time: float | None = None,
    ) -> None:
        """Remember a code: agreed to already if it has a subject. Raises Conflict: the user code is taken."""
        row = {
            "id": hashed(code), "user_code": user_code, "client": client, "scope": scope,
            "audience": list(audience), "details": dict(details), "subject": subject, "auth_time": auth_time,
            "state": PENDING if subject is None else APPROVED, "pause": PAUSE, "made": now,
            "expires": now + life,
        }  # fmt: skip
        self._db.run_sync(lambda tx: tx.execute(insert(codes).values(**row)))

    def pending(self, now: float, peer: str | None = None) -> int:
        """How many devices wait for their users: all, or those whose details name this peer."""
        wanted = (
            select(func.count()).select_from(codes).where(codes.c.expires > now, codes.c.state == PENDING)
        )
        if peer is not None:
            wanted = wanted.where(codes.c.details["peer"].as_string() == peer)
        return self._db.look_sync(lambda tx: int(tx.execute(wanted).scalar_one()))

    def waiting(self, user_code: str, now: float) -> Row[Any] | None:
        """The device request that waits for a user's word under this user code."""
        wanted = select(codes).where(
            codes.c.user_code == user_code, codes.c.state == PENDING, codes.c.expires > now
        )
        return self._db.look_sync(lambda tx: tx.execute(wanted).first())

    def decide(self, number: str, subject: str, auth_time: float, *, agreed: bool, now: float) -> bool:
        """Write down the user's word on a device request; False if it does not wait any more."""
        still = (codes.c.id == number) & (codes.c.state == PENDING) & (codes.c.expires > now)
        word = {"state": APPROVED if agreed else DENIED, "subject": subject, "auth_time": auth_time}
        return bool(
            self._db.run_sync(lambda tx: tx.execute(update(codes).where(still).values(**word)).rowcount)
        )

    def take(self, code: str, client: str, kind: str, now: float) -> Row[Any]:
        """What a code gives, once.

        Args:
            code: As the client sent it.
            client: Who sent it.
            kind: ``device`` or ``redirect``.
            now: Unix seconds.

        Raises:
            OAuthError: the user has not decided yet, or said no; the code is unknown, expired or used.
        """

        def work(tx: Connection) -> tuple[Row[Any] | None, str]:
            mine = codes.c.id == hashed(code)
            row = tx.execute(select(codes).where(mine).with_for_update()).first()
            if row is None or row.client != client or row.details.get("kind") != kind:
                return None, "invalid_grant"
            if row.state in {USED, AGAIN}:
                tx.execute(update(codes).where(mine).values(state=AGAIN))
                return row, "invalid_grant"
            if now >= row.expires:
                return None, "expired_token" if kind == "device" else "invalid_grant"
            if row.state == DENIED:
                return None, "access_denied"
            if row.state == PENDING:
                hasty = row.polled is not None and now - row.polled < row.pause
                pause = row.pause + (PAUSE if hasty else 0)
                tx.execute(update(codes).where(mine).values(polled=now, pause=pause))
                return None, "slow_down" if hasty else "authorization_pending"
            tx.execute(update(codes).where(mine).values(state=USED))
            return row, ""

        row, error = self._db.run_sync(work)
        if row is not None and error:
            self._end(row.family, row.details.get("gave"), now)
        if row is None or error:
            raise OAuthError(error, _WHY[error])
        return row

    def gave(self, row: Row[Any], family: str, jti: str, expires: float, now: float) -> None:
        """Remember what a code gave, to end it if the code comes again.

        Args:
            row: From :meth:`take`.
            family: Its refresh tokens; empty: none.
            jti: Its access token.
            expires: When that ends.
            now: Unix seconds.

        Raises:
            OAuthError: the code has come again already; nothing that it gave is good.
        """
        mine = (codes.c.id == row.id) & (codes.c.state == USED)
        given = {"family": family or None, "details": {**row.details, "gave": [jti, expires]}}
        if not self._db.run_sync(lambda tx: tx.execute(update(codes).where(mine).values(**given)).rowcount):
            self._end(family, (jti, expires), now)
            raise OAuthError("invalid_grant", _WHY["invalid_grant"])

    def _end(self, family: str | None, access: Sequence[Any] | None, now: float) -> None:
        if family:
            self._ledger.end_family(family, now)
        if access:
            self._ledger.revoke(access[0], access[1], now)


_WHY = {
    "invalid_grant": "the code is not known, has expired, or was used",
    "expired_token": "the code has expired; begin again",
    "access_denied": "the user has refused",
    "authorization_pending": "the user has not decided yet",
    "slow_down": "asked too soon; wait 5 s longer between two questions",
}


def hashed(code: str) -> str:
    """How a code stands in the tables."""
    return sha256(code.encode("utf-8", "surrogatepass")).hexdigest()
