"""Requests that a worker does not answer itself go to the main process, over loopback.

The worker sends the target, the peer and the scheme in headers of their own beside a secret of this start;
the main process takes them from nobody else, and judges the request as if it had come to itself.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from doma.core.errors import BadRequest, DomaError
from doma.net.client import RangeClient
from doma.net.pool import Limits
from doma.net.problem import render

SECRET, WHERE = "x-doma-worker", "x-doma-where"

_OWN_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
        "proxy-connection",
    }
)
_LONG = 24 * 3600.0
"""Seconds: how long an answer may take is the main process's business."""


class Forward:
    """The ASGI application of a worker for everything that it does not serve.

    Args:
        url: ``http://127.0.0.1:port`` of the main process's private listener.
        secret: What that expects.
        realm: Host name for errors.
    """

    def __init__(self, url: str, secret: str, realm: str) -> None:
        self._url, self._secret, self._realm = url, secret, realm
        limits = Limits(first_byte=_LONG, idle=_LONG, connections=10_000)
        self._client = RangeClient(limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._pass(scope, receive, send)

    async def post(self, path: str, value: Any) -> None:
        """Tell the main process something. Raises what the client raises."""
        headers = {SECRET: self._secret, "content-type": "application/json"}
        answer = await self._client.request("POST", self._url + path, headers, json.dumps(value).encode())
        answer.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, expects = self._headers(scope)
        body = _Body(receive)
        carries = "Content-Length" in headers or "transfer-encoding" in {
            name.decode("latin-1").lower() for name, _ in scope["headers"]
        }
        try:
            answer = await self._client.request(
                scope["method"], self._url + "/", headers, body.pieces() if carries else None,
                expect=expects, follow=False,
            )  # fmt: skip
        except DomaError as e:
            status, said, text = render(e, "", self._realm)
            said["content-length"] = str(len(text))
            raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in said.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": text})
            return
        # the client may leave an endless answer at any time: then ours is closed too
        gone = asyncio.ensure_future(asyncio.Event().wait() if carries and not body.over else body.gone())
        gone.add_done_callback(lambda task: None if task.cancelled() else answer.close())
        try:
            fields = [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in answer.head.fields
                if name not in _OWN_HOP
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": fields})
            async for piece in answer.pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except DomaError:
            if not gone.done():
                raise
        finally:
            gone.cancel()
            answer.close()

    def _headers(self, scope: Scope) -> tuple[dict[str, str], bool]:
        client, server = scope.get("client") or ("", 0), scope.get("server") or ("", 0)
        where = {
            "target": quote(scope["raw_path"], safe="/"),
            "query": quote(scope["query_string"], safe=""),
            "client": list(client),
            "server": list(server),
            "scheme": scope["scheme"],
        }
        headers, expects = {SECRET: self._secret, WHERE: json.dumps(where)}, False
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1").lower()
            expects = expects or name == "expect"
            if name in _OWN_HOP or name in {SECRET, WHERE}:
                continue
            name = {"host": "Host", "content-length": "Content-Length"}.get(name, name)
            text = value.decode("latin-1")
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
        return headers, expects


class _Body:
    """The request's body, and whether its client is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.over = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as the main process wants it."""
        while not self.over:
            message = await self._receive()
            if message["type"] != "http.request":
                raise BadRequest("request: the client went away in the middle of it")
            self.over = not message.get("more_body")
            if message.get("body"):
                yield bytes(message["body"])

    async def gone(self) -> bool:
        """Return when the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        return True


def trusted(app: ASGIApp, secret: str, told: ASGIApp) -> ASGIApp:
    """The application behind the main process's private listener: only its workers may speak to it.

    Args:
        app: Answers what a worker passes on, which anybody may have sent.
        secret: What all of them know.
        told: Takes what a worker says itself: it names nobody that it comes from.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        found: dict[bytes, bytes] = dict(scope["headers"])
        given, where = found.get(SECRET.encode(), b""), found.get(WHERE.encode(), b"")
        if not hmac.compare_digest(given, secret.encode()):
            empty: Message = {
                "type": "http.response.start",
                "status": 403,
                "headers": [(b"content-length", b"0")],
            }
            await send(empty)
            await send({"type": "http.response.body", "body": b""})
            return
        if not where:
            await told(scope, receive, send)
            return
        said: dict[str, Any] = json.loads(where)
        scope["raw_path"] = unquote_to_bytes(said["target"])
        scope["path"] = unquote(scope["raw_path"].decode("latin-1"))
        scope["query_string"] = unquote_to_bytes(said["query"])
        scope["client"], scope["server"] = tuple(said["client"]), tuple(said["server"])
        scope["scheme"] = said["scheme"]
        scope["headers"] = [
            (name, value) for name, value in scope["headers"] if name not in {SECRET.encode(), WHERE.encode()}
        ]
        await app(scope, receive, send)

    return application
