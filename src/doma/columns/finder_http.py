"""What finders ask over HTTP: JSON and lines of JSON of bounded size, of servers that the site has chosen."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from doma.columns.remote_http import refusal
from doma.core.errors import ConfigError, DomaError, Forbidden, OriginFailed, TooManyRequests
from doma.core.url import origin_of
from doma.net.client import RangeClient, Response
from doma.net.pool import Limits
from doma.store.http_trust import AddressGuard, context_of

LINE = 4 << 20
"""Bytes of one line, …"""
DOCUMENT = 64 << 20
"""… of a document …"""
TOTAL = 512 << 20
"""… and of all lines: a description of the largest dataset."""
LARGEST = 1 << 46
"""Bytes or events of one file: of a dataset of the most files, they still are a number of a database."""
TURN = 500
"""Lines after which others get their turn."""


class Catalogue:
    """A catalogue's HTTP server.

    Args:
        url: ``https://host[:port][/prefix]``.
        ca_file: Authorities to trust besides the system's.
        cert_file: PEM file with the certificate, or proxy, and key to show.

    Raises:
        ConfigError: the URL or a file is no good.
    """

    def __init__(self, url: str, ca_file: str = "", cert_file: str = "") -> None:
        try:
            host = origin_of(url).host
        except DomaError as e:
            raise ConfigError(f"datasets: {e.message}") from e
        self.url = url.rstrip("/")
        context = context_of(ca_file)
        if cert_file:
            try:
                context.load_cert_chain(cert_file)
            except OSError as e:
                raise ConfigError(f"{cert_file}: cannot be used as a certificate with key: {e}") from e
        # A redirect must not lead into a private network, unless the catalogue itself lies in one.
        self._client = RangeClient(context, Limits(first_byte=120), AddressGuard(host, None))

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """The answer, if it is a good one.

        Raises:
            NotFound, Forbidden, TooManyRequests, StorageUnavailable, OriginFailed: what the server says.
        """
        fields = {"Accept": "application/json, application/x-json-stream", **headers}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        # Redirects are followed where no credential can leak.
        follow = not any(name.lower().startswith("x-rucio") for name in headers)
        answer = await self._client.request(method, self.url + path, fields, body, follow=follow)
        if 200 <= answer.status < 300:
            return answer
        async with answer:
            said = await answer.read(64 << 10)
        who = f"{self.url}{path}: the catalogue"
        raise refusal(who, answer.status, said, {401: Forbidden, 429: TooManyRequests})

    async def json(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        """A document. Raises as :meth:`ask`; OriginFailed: it is no JSON, or too long."""
        async with await self.ask("GET", path, headers or {}) as answer:
            return await asyncio.to_thread(self.parsed, await answer.read(DOCUMENT), path)

    async def lines(self, answer: Response, path: str) -> AsyncIterator[Any]:
        """The documents of an answer, one a line. Raises OriginFailed."""
        rest, total, count = b"", 0, 0
        async with answer:
            async for piece in answer.pieces():
                total += len(piece)
                whole = (rest + piece).split(b"\n")
                rest = whole.pop()
                if len(rest) > LINE or total > TOTAL:
                    raise OriginFailed(f"{self.url}{path}: the catalogue's answer is too long")
                for line in whole:
                    if line.strip():
                        yield self.parsed(line, path)
                        count += 1
                        if not count % TURN:
                            await asyncio.sleep(0)
            if rest.strip():
                yield self.parsed(rest, path)

    def parsed(self, text: bytes, path: str) -> Any:
        """JSON. Raises OriginFailed."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise OriginFailed(f"{self.url}{path}: the catalogue's answer is not JSON") from e

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def whole(value: Any) -> int:
    """A size or a number of events; 0 for anything else, and for what no sum over a dataset could hold."""
    return value if type(value) is int and 0 <= value < LARGEST else 0


def adler(value: Any) -> str | None:
    """An adler32, with or without its name in front; None for anything else."""
    text = value.lower().removeprefix("adler32:") if isinstance(value, str) else ""
    good = 0 < len(text) <= 8 and all(c in "0123456789abcdef" for c in text)
    return text.zfill(8) if good else None
