"""An answer's head, and the places that its body can go to."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from doma.core.errors import DomaError, OriginFailed

Piece = bytes | memoryview


class Head:
    """Status and headers of an answer; header names in lower case."""

    __slots__ = ("fields", "status")

    def __init__(self, status: int, fields: list[tuple[str, str]]) -> None:
        self.status = status
        self.fields = fields

    def get(self, name: str, default: str = "") -> str:
        """All fields of that name (lower case), joined by commas as RFC 9110 §5.3 allows."""
        found = [value for key, value in self.fields if key == name]
        return ", ".join(found) if found else default

    @property
    def length(self) -> int | None:
        """``Content-Length``, if there is a valid one."""
        text = self.get("content-length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class Sink(Protocol):
    """Takes a body piece by piece; the view is valid during the call only."""

    def feed(self, data: Piece) -> None: ...


class Fill:
    """A buffer of exactly the body's size, received into directly."""

    __slots__ = ("got", "target")

    def __init__(self, target: memoryview) -> None:
        self.target = target
        self.got = 0

    def feed(self, data: Piece) -> None:
        stop = self.got + len(data)
        if stop > len(self.target):
            raise OriginFailed(f"the body is longer than the {len(self.target)} bytes asked for")
        self.target[self.got : stop] = data
        self.got = stop


class Pour:
    """Hands each piece to a synchronous function."""

    __slots__ = ("feed",)

    def __init__(self, take: Callable[[Piece], None]) -> None:
        self.feed = take


class Paused(Protocol):
    """A connection that can be held back."""

    def pause(self) -> None: ...

    def resume(self, sink: Sink) -> None: ...


class Flow:
    """Hands pieces on inside the read callback; what cannot be taken just then waits, and the connection too.

    Until :meth:`pour` names the taker everything waits, so a taker may be made after the head has come.
    """

    def __init__(self) -> None:
        self.got = 0
        """Bytes that were taken."""
        self._waiting: deque[bytes] = deque()
        self._take: Callable[[memoryview], bool] | None = None
        self._refusal: DomaError | None = None
        self._over = False
        self.error: DomaError | None = None
        """What ended the body early."""
        self._connection: Paused | None = None
        self._wake: asyncio.Future[None] | None = None

    def attach(self, connection: Paused) -> None:
        """The connection that will feed this sink; it is held back until there is a taker."""
        self._connection = connection
        connection.pause()

    def feed(self, data: Piece) -> None:
        if self._take is not None and not self._waiting and self._refusal is None:
            try:
                if self._take(memoryview(data)):
                    self.got += len(data)
                    return
            except DomaError as e:
                self._refusal = e  # the taker's trouble, none of the connection's
        self._waiting.append(bytes(data))
        if self._connection is not None:
            self._connection.pause()
        self._stir()

    def end(self, error: DomaError | None) -> None:
        """No more comes, because of an error or because that was all."""
        self._over, self.error = True, error
        self._stir()

    async def pour(
        self, take: Callable[[memoryview], bool], write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Let everything go to a taker until the body is over.

        Args:
            take: Takes a piece without waiting; False: not now.
            write: Takes a piece, waiting.

        Raises:
            DomaError: what the taker raised, or what ended the body early; ``got`` bytes were taken.
        """
        while True:
            while self._waiting and self._refusal is None:
                piece = self._waiting.popleft()
                if not take(memoryview(piece)):
                    await write(piece)
                self.got += len(piece)
            if self._refusal is not None:
                raise self._refusal
            if self._over:
                break
            self._take = take
            if self._connection is not None:
                self._connection.resume(self)
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
            self._take = None
        if self.error is not None:
            raise self.error

    def _stir(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
