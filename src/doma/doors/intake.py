"""The quick side's uploads: a body on its way from the socket into the store, past the application.

Source: dataplane.md §3.6 of the project's contracts.
"""

from collections.abc import Callable
from time import perf_counter

from doma.core.errors import DomaError
from doma.doors.endpoint import Site
from doma.doors.landing import Landing
from doma.doors.parts import landing
from doma.net.exchange import Answer, Buffer, Request, status_line
from doma.net.problem import render

Count = Callable[[str, str, int, int, int, float, int], None]
"""Told of equal requests together: endpoint, method, status, bytes received and sent, seconds, how many."""


class FastSink:
    """A :class:`Landing` between the socket and the store, whose errors are answers."""

    __slots__ = (
        "_accept",
        "_began",
        "_count",
        "_failed",
        "_landing",
        "_request",
        "_site",
        "_target",
    )

    _landing: Landing

    def __init__(
        self,
        site: Site,
        request: Request,
        count: Count | None,
    ) -> None:
        self._site, self._request, self._count = site, request, count
        self._failed: DomaError | None = None
        self._began = perf_counter()

    async def open(self) -> Answer | None:
        request = self._request
        path, _, query = request.target.partition(b"?")
        length = None if request.chunked else request.length
        self._target = path.decode("utf-8", "surrogateescape")
        self._landing = landing(self._site, self._target, query, request.headers, length)
        self._accept = request.fields.get(b"accept", b"").decode("latin-1")
        try:
            await self._landing.open()
        except DomaError as e:
            return self._refusal(e)
        return None

    def feed(self, data: memoryview) -> bool:
        try:
            return self._landing.feed(data)
        except DomaError as e:
            self._failed = e  # told by the write that follows
            return False

    async def write(self, data: Buffer) -> Answer | None:
        try:
            if self._failed is not None:
                raise self._failed
            await self._landing.write(data)
        except DomaError as e:
            await self._landing.abort("")
            return self._refusal(e)
        return None

    async def commit(self) -> Answer:
        try:
            status, headers = await self._landing.commit()
        except DomaError as e:
            return self._refusal(e)
        self._tell(status, 0)
        return Answer(status_line(status) + lines(headers))

    async def abort(self, reason: str) -> Answer:
        return self._refusal(await self._landing.abort(reason))

    def _refusal(self, error: DomaError) -> Answer:
        self._site.name_in_full(error, self._target)
        status, headers, body = render(error, self._accept, self._site.name)
        headers["Content-Length"] = str(len(body))
        if status == 405:
            headers["Allow"] = "OPTIONS, GET, HEAD, DELETE, PROPFIND"
        self._tell(status, len(body))
        return Answer(status_line(status) + lines(list(headers.items())), (body,))

    def _tell(self, status: int, sent: int) -> None:
        if self._count is not None:
            one, seconds = self._landing, perf_counter() - self._began
            self._count(one.where, "PUT", status, one.received, sent, seconds, 1)


def lines(headers: list[tuple[str, str]]) -> bytes:
    """Header lines as on the wire."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
