"""Sums of equal reads, told about once a second: telling costs more than a read's own share."""

import asyncio
from time import perf_counter

from doma.auth.model import Identity
from doma.doors.intake import Count
from doma.doors.usage import Usage

BATCH = 1.0
"""Seconds after which reads are told at the latest."""


class Tally:
    """Adds up reads.

    Args:
        count: Told of equal ones together.
        usage: Told who has read how much.
    """

    def __init__(self, count: Count, usage: Usage | None) -> None:
        self._count, self._usage = count, usage
        self._sums: dict[tuple[str, int, int], _Sums] = {}
        self._armed = False

    def read(self, endpoint: str, status: int, identity: Identity | None, sent: int, began: float) -> None:
        """One answer; from the event loop.

        Args:
            endpoint: Its name.
            status: Of the answer.
            identity: Who asked.
            sent: Bytes of the answer's body.
            began: Seconds of ``perf_counter``.
        """
        # The sums hold the identity, so its id cannot come to name another one before they are told.
        key = endpoint, status, id(identity)
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = _Sums(identity)
        sums.number += 1
        sums.sent += sent
        sums.seconds += perf_counter() - began
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(BATCH, self.tell)

    def tell(self) -> None:
        """Hand on what was added up."""
        told, self._sums, self._armed = self._sums, {}, False
        for (endpoint, status, _), sums in told.items():
            self._count(endpoint, "GET", status, 0, sums.sent, sums.seconds, sums.number)
            if self._usage is not None:
                self._usage.read(endpoint, sums.identity, sums.sent, sums.number)


class _Sums:
    """Sums of equal reads."""

    __slots__ = ("identity", "number", "seconds", "sent")

    def __init__(self, identity: Identity | None) -> None:
        self.identity = identity
        self.number = self.sent = 0
        self.seconds = 0.0
