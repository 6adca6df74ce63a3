"""The bytes of one version of one file of an HTTP server, over connections that the files of a worker share.

Ranges only; the version (ETag) of the first answer is demanded of every other, so a file that changes
underneath fails instead of mixing. The token goes to the named origin only, and a private address is
contacted only if the configuration names it.
"""

import re
from collections.abc import Mapping
from concurrent.futures import CancelledError
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit

from doma.columns.remote_blocks import BLOCK, Blocks
from doma.columns.remote_loop import CLIENTS
from doma.core.checksum import read_digests
from doma.core.errors import (
    BadRequest,
    DomaError,
    Forbidden,
    InvalidToken,
    NotFound,
    OriginFailed,
    StorageUnavailable,
    TimedOut,
    Unsupported,
)
from doma.core.text import line_of
from doma.core.url import redacted
from doma.net.client import RangeClient, Response
from doma.net.pool import Limits
from doma.net.sinks import Fill, Head
from doma.store.http_trust import AddressGuard, RemoteGuard, context_of

WHOLE = 64 << 20
"""A file whose server knows no ranges is read whole up to this size."""
TIMEOUT = 30.0
REDIRECTS = 5
SAID = 64 << 10
"""Bytes that are read of a refusal."""
LIMITS = Limits(first_byte=TIMEOUT, idle=TIMEOUT, connect=TIMEOUT)


class RemoteFile:
    """A file of an HTTP server.

    Args:
        url: For messages, and what is read unless ``place`` says otherwise.
        token: Bearer token for the origin.
        ca_file: Authorities to trust besides the system's.
        allow: Origins that may lie in a private network.
        lazy: Learn version and size by HEAD where that tells them: no byte is read before it is asked for.
        digest: Ask for the adler32, too.
        place: What is read: a URL with a signature.
    """

    def __init__(
        self,
        url: str,
        token: str,
        ca_file: str,
        allow: tuple[str, ...],
        *,
        lazy: bool = False,
        digest: bool = False,
        place: str = "",
    ) -> None:
        self.url, self.taken, self.version, self.size, self.adler32 = redacted(url), 0, "", 0, ""
        self._start = self._place = place or url
        self._token, self._allow, self._ca_file = token, allow, ca_file
        self._origin_token, self._digest = token, digest
        self._whole: bytes | None = None
        self._etag = ""
        block = b"" if lazy and self._look() else self._begin()
        self._blocks = Blocks(self.url, self.size, self._fetch)
        if block:
            self._blocks.keep(0, block)

    def read(self, start: int, stop: int) -> bytes:
        if self._whole is not None and 0 <= start <= stop <= self.size:
            return self._whole[start:stop]
        return self._blocks.read(start, stop)

    def close(self) -> None:
        """Forget what was read; the connections are kept for other files."""
        self._blocks.clear()

    def _look(self) -> bool:
        """Version and size without a byte; False: this server's answer does not tell them."""
        answer, _ = self._followed("HEAD")
        if answer.status in {404, 410}:
            raise refusal(f"{self.url}: its server", answer.status, b"")
        coded = answer.get("content-encoding", "identity") != "identity"
        if answer.status != 200 or answer.length is None or coded:
            self._place, self._token = self._start, self._origin_token
            return False
        self._learn(answer)
        self.size = answer.length
        return True

    def _begin(self) -> bytes:
        """The first block, which tells size and version."""
        answer, body = self._followed("GET")
        self._learn(answer)
        if answer.status == 416:
            self.size = 0
        elif answer.status == 200:
            self._whole, self.size = body, len(body)
        else:
            match = re.fullmatch(r"bytes 0-(\d+)/(\d+)", answer.get("content-range"))
            if match is None or int(match[1]) + 1 != len(body):
                raise OriginFailed(f"{self.url}: its server answered a range without a usable Content-Range")
            self.size = int(match[2])
            return body
        return b""

    def _learn(self, answer: Head) -> None:
        self._etag = answer.get("etag")
        self.version = self._etag.strip('"') if not self._etag.startswith("W/") else ""
        self.adler32 = read_digests(answer.fields).get("adler32", "")

    def _followed(self, method: str, start: int = 0, stop: int = BLOCK) -> tuple[Head, bytes]:
        """An answer, for the first block at first, behind redirects, which are remembered."""
        for _ in range(REDIRECTS):
            answer, body = self._ask(method, start, stop)
            if answer.status not in {301, 302, 303, 307, 308}:
                return answer, body
            target = urljoin(self._place, answer.get("location"))
            if urlsplit(target).scheme not in {"http", "https"} or not urlsplit(target).hostname:
                raise OriginFailed(f"{self.url}: its server redirects to something that is no HTTP URL")
            if urlsplit(target)[:2] != urlsplit(self._place)[:2]:
                self._token = ""
            self._place = target
        raise OriginFailed(f"{self.url}: more than {REDIRECTS} redirects")

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            answer, body = self._ask("GET", start, stop)
        except DomaError:
            if self._place == self._start:
                raise
            # Where a redirect led to may be good for a while only.
            self._place, self._token = self._start, self._origin_token
            answer, body = self._followed("GET", start, stop)
        if answer.status == 412 or answer.get("etag") != self._etag:
            raise OriginFailed(f"{self.url}: the file changed while it was read; submit again")
        if answer.status == 200 and len(body) == self.size:
            self._whole = body  # known by its HEAD, and only now that its server gives no ranges
            return body[start:stop]
        if answer.status != 206 or len(body) != stop - start:
            raise OriginFailed(
                f"{self.url}: asked for {stop - start} bytes, got {len(body)} ({answer.status})"
            )
        return body

    def _ask(self, method: str, start: int, stop: int) -> tuple[Head, bytes]:
        """One request, whatever is answered, but for refusals of a GET."""
        headers = {}
        if method == "GET":
            headers["Range"] = f"bytes={start}-{stop - 1}"
        elif self._digest:
            headers["Want-Digest"] = "adler32"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self.version:
            headers["If-Match"] = self._etag
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(self._place))
        try:
            client = _client(self._ca_file, trusted=origin in self._allow)
            answer, body = CLIENTS.run(self._answer(client, method, headers, stop - start))
        except TimedOut as e:
            raise StorageUnavailable(f"{self.url}: no answer for {TIMEOUT:.0f} s") from e
        except CancelledError as e:
            raise StorageUnavailable(f"{self.url}: the connection was given up") from e
        except Forbidden as e:
            told = f"{self.url}: {origin} lies in a private network; the administrator can allow it"
            raise Forbidden(told) from e
        except (BadRequest, OriginFailed, StorageUnavailable) as e:
            told = e.message.removeprefix(f"{origin}: ")
            raise StorageUnavailable(f"{self.url}: cannot be read: {told}") from e
        if method == "GET":
            if answer.status >= 400 and answer.status not in {412, 416}:
                raise refusal(f"{self.url}: its server", answer.status, body)
            self.taken += len(body)
        return answer, body

    async def _answer(
        self, client: RangeClient, method: str, headers: dict[str, str], due: int
    ) -> tuple[Head, bytes]:
        """An answer and its body, which is as long as was asked for, or the whole file."""
        into = bytearray()

        def judge(head: Head) -> Fill | None:
            nonlocal into
            most = {200: WHOLE, 206: due}.get(head.status)
            if method != "GET" or most is None:
                return None
            if head.status == 200 and (head.length is None or head.length > most):
                raise Unsupported(
                    f"{self.url}: its server serves no byte ranges, and the file is too large to load"
                )
            into = bytearray(min(most, most if head.length is None else head.length))
            return Fill(memoryview(into))

        response = await client.request(method, self._place, headers, on_head=judge, follow=False)
        async with response:
            if into:
                await response.finished()
                return response.head, bytes(into)
            return response.head, await _beginning(response)


async def _beginning(response: Response) -> bytes:
    """What a server says, up to a limit."""
    said = b""
    async for piece in response.pieces():
        said += piece
        if len(said) > SAID:
            break
    return said


def _client(ca_file: str, *, trusted: bool) -> RangeClient:
    """The client for servers that the configuration names, or for any other."""

    def made() -> RangeClient:
        # The system's authorities and the file's: inputs lie at this site and elsewhere.
        def guard(host: str, address: str) -> bool:
            return guard_of(host, trusted=trusted)(host, address)

        return RangeClient(context_of(ca_file), LIMITS, guard)

    return CLIENTS.get(("http", ca_file, trusted), made)


MEANING = {
    401: "it wants a token, and takes none of ours",
    403: "the token of this request may not read it",
    404: "no such file; check the address",
    410: "the file is gone",
    429: "it has too much to do",
}
"""What an answer without a text says, such as one to HEAD."""


def refusal(
    who: str, status: int, body: bytes, kinds: Mapping[int, type[DomaError]] = MappingProxyType({})
) -> DomaError:
    """The error that an answer stands for, with the first line of what was said; ``kinds`` wins."""
    usual: Mapping[int, type[DomaError]] = {
        401: InvalidToken,
        403: Forbidden,
        404: NotFound,
        410: NotFound,
        429: StorageUnavailable,
    }
    kind = {**usual, **kinds}.get(status, StorageUnavailable if status >= 500 else OriginFailed)
    said = line_of(body[:300].decode("utf-8", "replace")) or MEANING.get(status, "")
    return kind(f"{who} answered {status}" + (f" ({said})" if said else ""))


def guard_of(host: str, *, trusted: bool) -> AddressGuard | RemoteGuard:
    """What judges the addresses of a server: one that the configuration names, or any other."""
    return AddressGuard(host, None) if trusted else RemoteGuard()
