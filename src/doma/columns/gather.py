"""Small write transactions in one: whoever comes while one is committed goes along in the next.

A commit costs the same for one row or fifty, and there is one writer.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

from doma.core.errors import DomaError
from doma.db.engine import Database

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST = 64
"""Pieces of work in one transaction."""

Work = Callable[[Connection], Any]


class Gathered:
    """Write transactions of one process, gathered.

    Args:
        db: Where they go.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        self._draining: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """As ``Database.run``, in one transaction with others. Cancelling the caller does not undo it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
            self._draining.add_done_callback(_say)
        return await future

    async def close(self) -> None:
        """Wait for what was asked. Idempotent."""
        if self._draining is not None:
            await asyncio.gather(self._draining, return_exceptions=True)

    async def _drain(self) -> None:
        batch: list[tuple[Work, asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._together([(w, f) for w, f in batch if not f.done()])
        finally:
            for _, future in (*batch, *self._waiting):
                if not future.done():  # the loop ends, or a piece of work is broken
                    future.cancel()
            self._waiting = []

    async def _together(self, batch: list[tuple[Work, asyncio.Future[Any]]]) -> None:
        try:
            results = await self._db.run(lambda tx: [work(tx) for work, _ in batch])
        except DomaError as e:
            if len(batch) == 1:
                _settle(batch[0][1], error=e)
                return
            for one in batch:  # whose fault it is shows when each goes by itself
                await self._together([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            _settle(future, result)


def _say(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("columns: a transaction ended in an unexpected way", exc_info=error)


def _settle(future: asyncio.Future[Any], result: Any = None, error: DomaError | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
