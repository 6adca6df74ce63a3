"""Small write transactions in one: whoever comes while one is committed goes along in the next.

A commit costs the same for one row or fifty, there is one writer, and a statement for fifty rows costs little
more than for one.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from doma.core.errors import DomaError
from doma.db.engine import Database

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")
MOST = 256
"""Pieces of work in one transaction."""

Kind = Callable[[Connection, list[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    kind: Kind
    item: Any
    quiet: bool
    future: asyncio.Future[Any]


class Gathered:
    """Write transactions of one process, gathered.

    Args:
        db: Where they go.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: list[_Piece] = []
        self._draining: asyncio.Task[None] | None = None
        self.linger = 0.0
        """Seconds to the next transaction: the longer, the more go together."""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """As ``Database.run``, in one transaction with others. Cancelling the caller does not undo it."""
        found: T = await self.each(_alone, work)
        return found

    async def each(
        self, kind: Callable[[Connection, list[U]], Sequence[T]], item: U, *, quiet: bool = False
    ) -> T:
        """What ``kind`` gives for an item; it is called once for all items that go together.

        Args:
            kind: A function of a module, gives as many results as it gets items.
            item: One of them.
            quiet: It adds no event.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Piece(kind, item, quiet, future))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
            self._draining.add_done_callback(_say)
        return await future

    async def close(self) -> None:
        """Wait for what was asked. Idempotent."""
        self.linger = 0.0
        if self._draining is not None:
            await asyncio.gather(self._draining, return_exceptions=True)

    async def _drain(self) -> None:
        batch: list[_Piece] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._together([p for p in batch if not p.future.done()])
                if self.linger and len(self._waiting) < MOST:
                    await asyncio.sleep(self.linger)
        finally:
            for piece in (*batch, *self._waiting):
                if not piece.future.done():  # the loop ends, or a piece of work is broken
                    piece.future.cancel()
            self._waiting = []

    async def _together(self, batch: list[_Piece]) -> None:
        kinds = {p.kind: [q for q in batch if q.kind == p.kind] for p in batch}

        def work(tx: Connection) -> list[Sequence[Any]]:
            return [kind(tx, [p.item for p in pieces]) for kind, pieces in kinds.items()]

        try:
            results = await self._db.run(work, tell=not all(p.quiet for p in batch))
        except DomaError as e:
            if len(batch) == 1:
                _settle(batch[0].future, error=e)
                return
            for one in batch:  # whose fault it is shows when each goes by itself
                await self._together([one])
            return
        # In the order of the work: who looked before somebody else wrote goes on before that one does.
        for pieces, found in zip(kinds.values(), results, strict=True):
            for piece, result in zip(pieces, found, strict=True):
                _settle(piece.future, result)


def _alone(tx: Connection, works: list[Callable[[Connection], Any]]) -> list[Any]:
    return [work(tx) for work in works]


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
