"""The asyncio clients of a worker process, for its threads: they run in a loop of a thread of their own."""

import asyncio
import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Protocol, TypeVar

KEPT = 24
"""Clients, by what they were made for."""
CLOSE = 10.0
"""Seconds that they may take to close their connections."""

T = TypeVar("T")


class Client(Protocol):
    """What is closed when nobody has used it for the longest time."""

    async def close(self) -> None: ...


C = TypeVar("C", bound=Client)


class Clients:
    """Clients that the files of a process share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], C]) -> C:
        """The client for one purpose; made once."""
        old: Client | None = None
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                if len(self._kept) > KEPT:
                    old = self._kept.popitem(last=False)[1]
            self._kept.move_to_end(key)
            client: C = self._kept[key]
        if old is not None:
            self.forget(old.close())
        return client

    def run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """The result of a coroutine, run in the loop. Raises TimeoutError."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise

    def forget(self, work: Coroutine[Any, Any, None]) -> None:
        """Have a coroutine run, whatever comes of it."""
        asyncio.run_coroutine_threadsafe(work, self._running())

    def close(self) -> None:
        """Close every client and end the thread; whoever asks later gets new ones. Idempotent."""
        with self._lock:
            clients, self._kept = list(self._kept.values()), OrderedDict()
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
        if loop is None or thread is None:
            return

        async def all_of_them() -> None:
            for client in clients:
                await client.close()
            await loop.shutdown_default_executor()

        with suppress(TimeoutError, CancelledError):
            asyncio.run_coroutine_threadsafe(all_of_them(), loop).result(CLOSE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
                self._thread.start()
                atexit.unregister(self.close)
                atexit.register(self.close)
            return self._loop


CLIENTS = Clients()
"""Of this process: a worker reads one file after the other from the same few servers."""
