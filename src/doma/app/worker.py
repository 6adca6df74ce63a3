"""A worker: the process that serves files beside the main one (:mod:`doma.app.workers`).

It reads one line of JSON from its input, prints ``ready`` when it accepts connections, and stops at SIGTERM
or when its input ends, which is when the main process has gone.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import uvloop
from starlette.types import Receive, Scope, Send

from doma.app.endpoints import views
from doma.app.forward import Forward
from doma.app.handover import Giver
from doma.app.home import Home
from doma.app.opened import open_site, settle
from doma.app.workers import REPORT
from doma.auth.redact import Redactor
from doma.cache.viewer import CacheView
from doma.core.config import Config
from doma.core.errors import DomaError
from doma.core.paths import normalise
from doma.doors import webdav
from doma.doors.endpoint import Site
from doma.doors.fast import FastDoor
from doma.doors.landing import text_headers
from doma.doors.s3 import is_signed
from doma.monitor.counted import counted
from doma.monitor.metrics import Metrics
from doma.net.bridge import App
from doma.net.exchange import Answer, Buffer, Request, Sink
from doma.net.listener import Listener

log = logging.getLogger(__name__)

TELL = 2.0
"""Seconds between two reports of numbers …"""
SOON = 0.1
"""… and between two of events that were written."""


def main() -> None:
    """Run one worker in this process."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(Redactor())
    os.umask(0o077)
    order = json.loads(sys.stdin.buffer.readline())
    try:
        uvloop.run(_run(order))
    except DomaError as e:
        log.error("worker %d: %s", order["number"], e)  # noqa: TRY400 - one line says it
        sys.exit(1)


async def _run(order: dict[str, Any]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    config, data = Config.model_validate(order["config"]), order["data"]
    async with AsyncExitStack() as stack:
        roles = frozenset(order["roles"])
        opened = await open_site(
            Home(Path(order["home"])), config, roles, Path(data) if data else None, stack, shared=True
        )
        metrics = Metrics(process=False)
        forward = Forward(order["main"], order["secret"], opened.site.name)
        stack.push_async_callback(forward.close)
        near = frozenset(opened.site.endpoints)
        viewed = views(opened.site.endpoints)
        own = near - frozenset(viewed)
        doors = counted(webdav.app(opened.site), metrics, endpoints=opened.site.endpoints)

        def count(name: str, method: str, status: int, got: int, sent: int, took: float, times: int) -> None:
            metrics.request("https", name, method, status, took, got, sent, times)

        async def others(scope: Scope, receive: Receive, send: Send) -> None:
            if viewed and _endpoint_of(scope["path"]) in viewed:
                opened.background.spawn(_learn(opened.site, scope))
            await forward(scope, receive, send)

        listener = Listener(
            own_or_forwarded(doors, others, own, frozenset(order["endpoints"]) - own),
            fast=_Near(FastDoor(opened.site, count=count), near),
            listen=config.listen,
            tls=opened.tls,
            root=Giver(order["root"]).give,
            reuse_port=True,
        )
        await listener.start()
        stack.push_async_callback(listener.stop)
        wrote = asyncio.Event()

        def told() -> None:
            loop.call_soon_threadsafe(wrote.set)

        opened.db.after_commit.append(told)
        opened.background.spawn(_tell(forward, metrics, order["number"], wrote, viewed))
        settle()
        print("ready", flush=True)  # noqa: T201 - the main process waits for this line
        await stop.wait()


class _Near:
    """The quick side of the door, asked about our own endpoints and the caches that we look into."""

    def __init__(self, door: FastDoor, own: frozenset[str]) -> None:
        self._door, self._own = door, {name.encode() for name in own}

    def head(self, request: Request) -> Answer | Sink | None:
        return self._door.head(request) if self._is_own(request) else None

    def whole(self, request: Request, body: Buffer) -> Answer | None:
        return self._door.whole(request, body) if self._is_own(request) else None

    def _is_own(self, request: Request) -> bool:
        return request.target[1:].partition(b"/")[0] in self._own


def own_or_forwarded(doors: App, forward: App, own: frozenset[str], others: frozenset[str]) -> App:
    """Requests to our endpoints go to their doors, all others to the main process.

    Args:
        doors: Serves ``own``.
        forward: Serves everything.
        own: Names of endpoints that are served here.
        others: Names of those that are not: a MOVE or COPY that leads to one is not ours either.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["path"].lstrip("/").partition("/")[0] in own and not is_signed(scope)
        if ours and others and scope["method"] in {"COPY", "MOVE"}:
            named = [v for n, v in scope["headers"] if n in {b"destination", b"source"}]
            ours = all(_endpoint_of(value.decode("latin-1")) not in others for value in named)
        await (doors if ours else forward)(scope, receive, send)

    return app


def _endpoint_of(address: str) -> str:
    """The first part of the path of a URL or path; of any server's, so that none of ours is missed."""
    place = address.partition("://")[2]
    with suppress(DomaError):
        path = normalise(("/" + place.partition("/")[2] if place else address).partition("?")[0])
        return path[1:].partition("/")[0]
    return ""


async def _learn(site: Site, scope: Scope) -> None:
    """Verify the token of a request that goes to the main process: the next one can be judged here."""
    headers = text_headers(scope["headers"])
    with suppress(DomaError):
        await site.identify(headers.get("authorization"), "")


async def _tell(
    forward: Forward, metrics: Metrics, number: int, wrote: asyncio.Event, viewed: Mapping[str, CacheView]
) -> None:
    """Tell the main process our numbers now and then, and at once, in few words, when events were written."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await wrote.wait()
        said: dict[str, Any] = {"number": number, "events": wrote.is_set()}
        wrote.clear()
        seen: dict[str, Any] = {}
        if loop.time() >= due:
            due = loop.time() + TELL
            seen = {name: view.report() for name, view in viewed.items()}
            said |= {"numbers": metrics.give(), "viewed": seen}
        with suppress(DomaError):
            await forward.post(REPORT, said)
            for name in seen:
                viewed[name].reported(seen[name])
        await asyncio.sleep(SOON)
