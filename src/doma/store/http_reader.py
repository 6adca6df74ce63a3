"""Reading one version of a remote file; where the server redirected to is remembered.

Source: cache contract O11.
"""

import asyncio
from typing import TYPE_CHECKING

from doma.core.errors import DomaError
from doma.store.protocol import Buffer, Stat
from doma.store.writing import check_span

if TYPE_CHECKING:
    from doma.store.http import HttpStore

SENT = 60.0
"""Seconds for which a reader goes to where it was redirected without asking again."""


class HttpReader:
    """One version of one remote file; for a while it goes straight to where the server has sent it."""

    def __init__(self, store: "HttpStore", stat: Stat, token: str | None) -> None:
        self._store = store
        self._stat = stat
        self._token = token
        self._sent = ("", 0.0)
        """The URL of the last redirect, and until when to go there."""

    @property
    def stat(self) -> Stat:
        return self._stat

    async def read(self, start: int, stop: int) -> Buffer:
        check_span(self._stat, start, stop)
        if start == stop:
            return b""
        into, now = memoryview(bytearray(stop - start)), asyncio.get_running_loop().time()
        place, until = self._sent
        if now < until:
            try:
                await self._store.fill(self._stat, start, stop, into, self._token, at=place)
            except DomaError:
                self._sent = ("", 0.0)  # the server may know another place by now
            else:
                return into
        sent = await self._store.fill(self._stat, start, stop, into, self._token)
        if sent is not None:
            self._sent = sent, now + SENT
        return into

    async def close(self) -> None:
        pass
