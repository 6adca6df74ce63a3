"""The progress of a stage request as Server-Sent Events: ``changed`` with paths, ``completed`` last.

What a client missed it asks by a poll; the stream begins with ``status``, the counts of now.

Source: WHATWG HTML §9.2; rule W96 of the storage contract.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import Row

from doma.bus.local import LAGGED, Bus
from doma.core.errors import NotFound, TooManyRequests
from doma.store.tape_requests import StageRequests

HEARTBEAT = 10.0
"""Seconds of silence after which the request is looked at again, and a comment sent."""
STREAMS = 1000


class Progress:
    """The running streams of one server.

    Args:
        bus: Tells of changes.
        requests: The rows.
        clock: Unix seconds.
    """

    def __init__(self, bus: Bus, requests: StageRequests, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._requests, self._clock = bus, requests, clock
        self._open = 0

    def check_room(self) -> None:
        """Raise TooManyRequests when no further stream is taken."""
        if self._open >= STREAMS:
            raise TooManyRequests(f"stage events: {STREAMS} streams are open; poll instead", retry_after=30)

    async def lines(self, row: Row[Any], may_see: Callable[[str], bool], until: float) -> AsyncIterator[str]:
        """The stream of one request, until it is complete or a token expires.

        Args:
            row: The request.
            may_see: Whether the client may see a path.
            until: Unix seconds.
        """
        self._open += 1
        try:
            # Subscribed before the row is read anew: nothing falls between.
            async with self._bus.subscribe(("stage.*", LAGGED), owner=row.owner) as notices:
                now = await self._now(row)
                yield _frame("status", now)
                while now["open"] and self._clock() < until:
                    try:
                        async with asyncio.timeout(HEARTBEAT):
                            notice = await anext(notices)
                    except TimeoutError:
                        yield ": still waiting\n\n"
                    except StopAsyncIteration:
                        return  # the server stops
                    else:
                        if notice.subject != row.id:
                            continue
                        if paths := [path for path in notice.data.get("paths", ()) if may_see(path)]:
                            yield _frame("changed", {**notice.data, "paths": paths})
                    now = await self._now(row)
                yield _frame("completed" if not now["open"] else "status", now)
        finally:
            self._open -= 1

    async def _now(self, row: Row[Any]) -> dict[str, Any]:
        try:
            found = await self._requests.find(row.id, row.issuer)
        except NotFound:
            return {"id": row.id, "files": row.files, "open": 0, "removed": True}
        return {"id": found.id, "files": found.files, "open": found.open}


def _frame(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
