"""What the connections of one loop share: the application, limits, one read buffer, the running tasks.

Source: dataplane.md §3.3, §3.10 of the project's contracts.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from doma.net.bridge import App
from doma.net.exchange import PIECE, Fast

log = logging.getLogger(__name__)


class Connection(Protocol):
    """What the listener asks of a connection."""

    def sweep(self, now: float) -> None: ...

    def quiet(self) -> bool: ...

    def close_softly(self) -> None: ...

    def cut(self) -> None: ...


class Hub:
    """What the connections of one loop share."""

    def __init__(self, app: App, fast: Fast | None, *, head: float, idle: float, body: float) -> None:
        self.app = app
        self.fast = fast
        self.head_timeout = head
        self.idle_timeout = idle
        self.body_timeout = body
        self.buffer = memoryview(bytearray(PIECE))
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.tail = b"\r\n"
        """``Date`` and the empty line that end every head."""
        self.tail_close = b"Connection: close\r\n\r\n"

    def tick(self, date: str) -> None:
        """Set the date that answers carry."""
        self.tail = f"Date: {date}\r\n\r\n".encode()
        self.tail_close = f"Date: {date}\r\nConnection: close\r\n\r\n".encode()

    def spawn(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a coroutine; the hub holds the task and logs what it raises."""
        task = loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request's task failed", exc_info=error)
