"""Bodies of commands: only those who are known may send one, and not more of it than a command may be long.

The framework by itself reads a body, of any length, before it looks who sends it.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from doma.core.errors import BadRequest, LimitExceeded

LONGEST = 16 << 20
"""Bytes of a body: 10,000 paths, and room."""


def known_first(who: Callable[[Request], Awaitable[object]], longest: int = LONGEST) -> type[APIRoute]:
    """The class of routes whose bodies are read once ``who`` has let the caller pass.

    Args:
        who: Raises DomaError for somebody who is not known.
        longest: Bytes of a body.
    """

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            if self.body_field is None:
                return handle

            async def bounded(request: Request) -> Response:
                await who(request)
                return await handle(Request(request.scope, _given(await _body(request, longest), request)))

            return bounded

    return Route


async def _body(request: Request, longest: int) -> bytes:
    """The whole body. Raises LimitExceeded, and BadRequest if the client goes away in the middle."""
    data = bytearray()
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise BadRequest(f"{request.url.path}: the body of the request ended early")
        data += message.get("body", b"")
        if len(data) > longest:
            raise LimitExceeded(f"{request.url.path}: a body may have at most {longest} bytes; send less")
        if not message.get("more_body"):
            return bytes(data)


def _given(body: bytes, request: Request) -> Callable[[], Awaitable[Message]]:
    """What the framework reads the body from, and later learns from that the client has left."""
    rest = iter((body,))

    async def receive() -> Message:
        for data in rest:
            return {"type": "http.request", "body": data, "more_body": False}
        return await request.receive()

    return receive
