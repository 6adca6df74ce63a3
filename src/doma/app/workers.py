"""Several processes on one port: the main process runs every role, its workers serve files beside it.

The kernel deals connections out to all of them (``SO_REUSEPORT``). A worker answers for the endpoints that
any number of processes can serve (:data:`doma.app.endpoints.SHAREABLE`) and hands everything else to the
main process (:mod:`doma.app.forward`). A worker that dies is started again; when the main process dies, the
workers see the end of their input and stop.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doma.app.forward import trusted
from doma.app.handover import Taker
from doma.core.config import Config, Listen
from doma.core.errors import ServiceUnavailable
from doma.monitor.metrics import Metrics
from doma.net.bridge import App
from doma.net.listener import Listener

log = logging.getLogger(__name__)

START = 60.0
"""Seconds that a worker may take to be ready."""
AGAIN = 1.0
"""Seconds before a worker that ended is started again."""
REPORT = "/.worker/report"
"""Where workers tell their numbers, behind the private listener."""


class Workers:
    """The further processes of a system.

    Args:
        count: How many.
        app: What answers in the main process.
        order: What a worker needs to know (:func:`order_for`).
        metrics: Takes their numbers.
        wake: Called when a worker has written events.
        root: Serves a root:// connection that a worker has accepted.
        viewed: Takes what a worker has served of caches that it only looks into, by endpoint.
    """

    def __init__(
        self,
        count: int,
        app: App,
        order: dict[str, Any],
        metrics: Metrics,
        wake: Callable[[], None],
        root: Callable[[socket.socket], None],
        viewed: Callable[[dict[str, Any]], None],
    ) -> None:
        self._count, self._order, self._metrics, self._wake = count, order, metrics, wake
        self._root, self._viewed = root, viewed
        self._secret = secrets.token_urlsafe(32)
        own = Starlette(routes=[Route(REPORT, self._report, methods=["POST"])])
        self._listener = Listener(
            trusted(app, self._secret, own),
            fast=None,
            listen=Listen(address="127.0.0.1:0", idle_timeout=3600, max_connections=100_000),
            tls=None,
        )
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start them and wait until all accept connections. Raises ServiceUnavailable."""
        host, port = await self._listener.start()
        self._order |= {"main": f"http://{host}:{port}", "secret": self._secret}
        ready = [asyncio.get_running_loop().create_future() for _ in range(self._count)]
        self._keepers = [asyncio.create_task(self._keep(i, ready[i])) for i in range(self._count)]
        try:
            async with asyncio.timeout(START):
                await asyncio.gather(*ready)
        except TimeoutError as e:
            raise ServiceUnavailable(f"listen.workers: not ready after {START:.0f} s; see the log") from e

    async def stop(self) -> None:
        """Stop them; their running answers may finish."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._listener.stop()

    async def _keep(self, number: int, ready: "asyncio.Future[None]") -> None:
        """One worker, again and again."""
        while True:
            taker = Taker(self._root)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "from doma.app.worker import main; main()",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
                pass_fds=[taker.theirs.fileno()],
            )  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            mine = {"number": number, "root": taker.theirs.fileno()}
            try:
                process.stdin.write(json.dumps({**self._order, **mine}).encode() + b"\n")
                with contextlib.suppress(ConnectionError):
                    await process.stdin.drain()
                said = await process.stdout.readline()
                if said == b"ready\n" and not ready.done():
                    ready.set_result(None)
                code = await process.wait()
                log.warning("worker %d ended with %d; starting it again", number, code)
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await process.wait()
                raise
            finally:
                taker.close()
                self._metrics.keep(f"worker {number}")
            await asyncio.sleep(AGAIN)

    async def _report(self, request: Request) -> Response:
        said = await request.json()
        if "numbers" in said:
            self._metrics.take(f"worker {said['number']}", said["numbers"])
            self._viewed(said["viewed"])
        if said["events"]:
            self._wake()
        return Response(status_code=204)


def order_for(
    home: Path, config: Config, roles: frozenset[str], data: Path | None, endpoints: Collection[str]
) -> dict[str, Any]:
    """What a worker is told at its start; ``endpoints`` are the names of all."""
    return {
        "endpoints": sorted(endpoints),
        "home": str(home),
        "config": config.model_dump(mode="json", context={"secrets": True}),
        "roles": sorted(roles),
        "data": str(data) if data is not None else None,
    }
