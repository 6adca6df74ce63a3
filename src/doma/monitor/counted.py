"""An ASGI application whose requests are counted; what goes past ASGI counts itself."""

import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from doma.monitor.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def counted(
    app: App,
    metrics: Metrics,
    *,
    door: str = "https",
    endpoints: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> App:
    """Count every request of ``app``: status, bytes both ways, seconds.

    Args:
        app: What answers.
        metrics: Where to count.
        door: Its label.
        endpoints: Names of which the first path component is one, or the label stays empty.
        clock: Seconds that only grow.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began, status, received, sent = clock(), 0, 0, 0

        async def take() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def give(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, take, give)
        finally:
            # 499: the client was gone, or we failed, before there was a status (nginx's habit).
            name = scope["path"].split("/", 2)[1] if "/" in scope["path"] else ""
            metrics.request(
                door,
                name if name in endpoints else "",
                scope["method"],
                status or 499,
                clock() - began,
                received,
                sent,
            )

    return application
