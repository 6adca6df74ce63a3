"""The tokens that are void before they expire, as every process of a system knows them.

Held in memory, since a look at the tables for each request would cost more than the request. This process
knows of its own revocations at once, of those of others within :data:`LOOK`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Protocol

from doma.core.errors import DomaError

log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds between two looks at what other processes have revoked."""
OVERLAP = 120.0
"""Seconds that a look reaches back behind the last: clocks differ, and transactions take their time."""
TIDY = 3600.0
"""Seconds between two removals of what has expired."""


class Source(Protocol):
    """Where revocations are kept, see :class:`doma.auth.ledger.Ledger`."""

    def revoked_since(self, at: float, now: float) -> dict[str, float]:
        """``jti`` and expiry of what was revoked at ``at`` or later."""

    def prune(self, now: float) -> None:
        """Forget what has expired."""


class Revocations:
    """A container of ``jti``.

    Args:
        source: The tables.
        clock: Unix seconds.
    """

    def __init__(self, source: Source, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock
        self._void: dict[str, float] = {}
        self.marks: set[bytes] = set()
        """:func:`mark_of` each."""
        self._seen = 0.0
        self.on_new: list[Callable[[Collection[str]], None]] = []
        """Told of each new ``jti``, on the event loop: whoever remembers verdicts drops them."""

    def __contains__(self, jti: object) -> bool:
        return jti in self._void

    async def look(self) -> None:
        """Take over what is new in the tables.

        Raises:
            DomaError: the database does not answer; what is known stays known.
        """
        now = self._clock()
        found = await asyncio.to_thread(self._source.revoked_since, self._seen - OVERLAP, now)
        new = found.keys() - self._void.keys()
        self._void.update(found)
        self.marks.update(map(mark_of, new))
        self._seen = now
        if new:
            for tell in self.on_new:
                tell(new)

    async def watch(self) -> None:
        """Look until cancelled; once an hour expired things are forgotten."""
        tidied = self._clock()
        while True:
            try:
                await self.look()
                if self._clock() - tidied >= TIDY:
                    tidied = self._clock()
                    self._void = {jti: at for jti, at in self._void.items() if at > tidied}
                    over = self.marks - set(map(mark_of, self._void))
                    self.marks -= over
                    await asyncio.to_thread(self._source.prune, tidied)
            except DomaError as e:
                log.warning("revoked tokens are not followed for the moment: %s", e.message)
            await asyncio.sleep(LOOK)


def mark_of(jti: str) -> bytes:
    """What stands for a token in a key that was got with it and has little room; empty for none."""
    return sha256(jti.encode("utf-8", "surrogatepass")).digest()[:8] if jti else b""
