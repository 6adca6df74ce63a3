"""The bytes of one version of one file of an HTTP server, over connections that the files of a worker share.

Ranges only; the version (ETag) of the first answer is demanded of every other, so a file that changes
underneath fails instead of mixing. The token goes to the named origin only, and a private address is
contacted only if the configuration names it.
"""

import http.client
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit

from doma.columns.remote_blocks import BLOCK, Blocks
from doma.core.checksum import read_digests
from doma.core.errors import (
    DomaError,
    Forbidden,
    InvalidToken,
    NotFound,
    OriginFailed,
    StorageUnavailable,
    Unsupported,
)
from doma.core.text import line_of
from doma.core.url import redacted
from doma.store.http_trust import AddressGuard, RemoteGuard, context_of

WHOLE = 64 << 20
"""A file whose server knows no ranges is read whole up to this size."""
TIMEOUT = 30.0
REDIRECTS = 5
AGENT = "doma"
IDLE = 20.0
"""Seconds for which an unused connection is kept."""
KEPT = 8
"""Unused connections to one origin."""
ORIGINS = 32

Key = tuple[str, str, str, bool]
"""Scheme, host and port, CA file, trusted: what a connection was made for."""


class Connections:
    """Unused connections of a process, for whichever file needs one next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: OrderedDict[Key, list[tuple[float, http.client.HTTPConnection]]] = OrderedDict()

    def take(self, key: Key) -> http.client.HTTPConnection | None:
        """An unused connection, the youngest."""
        now = time.monotonic()
        with self._lock:
            kept = self._free.get(key, [])
            while kept:
                since, connection = kept.pop()
                if now - since < IDLE:
                    return connection
                connection.close()
        return None

    def give(self, key: Key, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose answer was read whole."""
        gone = []
        with self._lock:
            kept = self._free.setdefault(key, [])
            kept.append((time.monotonic(), connection))
            self._free.move_to_end(key)
            if len(kept) > KEPT:
                gone = [kept.pop(0)]
            if len(self._free) > ORIGINS:
                gone += self._free.popitem(last=False)[1]
        for _, old in gone:
            old.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            free, self._free = self._free, OrderedDict()
        for kept in free.values():
            for _, connection in kept:
                connection.close()


CONNECTIONS = Connections()
"""Of this process: a worker reads one file after the other from the same few servers."""


# The system's authorities and the file's: inputs lie at this site and elsewhere. Loading takes some 20 ms.
_context = lru_cache(8)(context_of)


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
        length = answer.getheader("Content-Length", "")
        if answer.status in {404, 410}:
            raise refusal(f"{self.url}: its server", answer.status, b"")
        told = answer.status == 200 and length.isascii() and length.isdigit() and len(length) < 19
        if not told or answer.getheader("Content-Encoding", "identity") != "identity":
            self._place, self._token = self._start, self._origin_token
            return False
        self._learn(answer)
        self.size = int(length)
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
            match = re.fullmatch(r"bytes 0-(\d+)/(\d+)", answer.getheader("Content-Range", ""))
            if match is None or int(match[1]) + 1 != len(body):
                raise OriginFailed(f"{self.url}: its server answered a range without a usable Content-Range")
            self.size = int(match[2])
            return body
        return b""

    def _learn(self, answer: http.client.HTTPResponse) -> None:
        self._etag = answer.getheader("ETag", "")
        self.version = self._etag.strip('"') if not self._etag.startswith("W/") else ""
        self.adler32 = read_digests(answer.getheaders()).get("adler32", "")

    def _followed(
        self, method: str, start: int = 0, stop: int = BLOCK
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """An answer, for the first block at first, behind redirects, which are remembered."""
        for _ in range(REDIRECTS):
            answer, body = self._ask(method, start, stop)
            if answer.status not in {301, 302, 303, 307, 308}:
                return answer, body
            target = urljoin(self._place, answer.getheader("Location", ""))
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
        if answer.status == 412 or answer.getheader("ETag", "") != self._etag:
            raise OriginFailed(f"{self.url}: the file changed while it was read; submit again")
        if answer.status == 200 and len(body) == self.size:
            self._whole = body  # known by its HEAD, and only now that its server gives no ranges
            return body[start:stop]
        if answer.status != 206 or len(body) != stop - start:
            raise OriginFailed(
                f"{self.url}: asked for {stop - start} bytes, got {len(body)} ({answer.status})"
            )
        return body

    def _ask(self, method: str, start: int, stop: int) -> tuple[http.client.HTTPResponse, bytes]:
        """One request; where a kept connection was closed meanwhile it goes out again, over a new one."""
        headers = {"Accept-Encoding": "identity", "User-Agent": AGENT}
        if method == "GET":
            headers["Range"] = f"bytes={start}-{stop - 1}"
        elif self._digest:
            headers["Want-Digest"] = "adler32"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self.version:
            headers["If-Match"] = self._etag
        parts = urlsplit(self._place)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        key = (parts.scheme, parts.netloc, self._ca_file, f"{parts.scheme}://{parts.netloc}" in self._allow)
        for attempt in (1, 2):
            kept = CONNECTIONS.take(key) if attempt == 1 else None
            with ExitStack() as broken:
                try:
                    connection = kept or self._connect(key)
                    broken.callback(connection.close)
                    connection.request(method, target, headers=headers)
                    answer = connection.getresponse()
                    body = self._body(answer) if method == "GET" else answer.read()
                except TimeoutError as e:
                    raise StorageUnavailable(f"{self.url}: no answer for {TIMEOUT:.0f} s") from e
                except (OSError, http.client.HTTPException, ValueError) as e:
                    if kept is None or isinstance(e, ValueError | ssl.SSLCertVerificationError):
                        told = str(e) or type(e).__name__
                        raise StorageUnavailable(f"{self.url}: cannot be read: {told}") from e
                    continue
                if answer.isclosed() and not answer.will_close:
                    broken.pop_all()
                    CONNECTIONS.give(key, connection)
                if method == "GET":
                    if answer.status >= 400 and answer.status not in {412, 416}:
                        raise refusal(f"{self.url}: its server", answer.status, body)
                    self.taken += len(body)
                return answer, body
        raise AssertionError("unreachable")

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.status == 200 and int(answer.getheader("Content-Length") or WHOLE + 1) > WHOLE:
            raise Unsupported(
                f"{self.url}: its server serves no byte ranges, and the file is too large to load"
            )
        return answer.read((WHOLE if answer.status in {200, 206} else 64 << 10) + 1)

    def _connect(self, key: Key) -> http.client.HTTPConnection:
        scheme, netloc, ca_file, trusted = key
        parts = urlsplit(f"{scheme}://{netloc}")
        assert parts.hostname is not None
        # The checked address is the connected one: a second look-up could answer something else.
        address = checked_address(self.url, f"{scheme}://{netloc}", parts.hostname, trusted=trusted)
        port = parts.port or (443 if scheme == "https" else 80)
        sock = socket.create_connection((address, port), TIMEOUT)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                sock = _context(ca_file).wrap_socket(sock, server_hostname=parts.hostname)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(netloc, timeout=TIMEOUT)
        connection.auto_open = 0  # it must never connect by itself: without TLS, to an unchecked address
        connection.sock = sock
        return connection


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


def checked_address(url: str, origin: str, host: str, *, trusted: bool) -> str:
    """The address to connect to; a private one only by configuration: no query may probe our network.

    Raises:
        Forbidden: it has none that may be contacted. StorageUnavailable: there is no such host.
    """
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as e:
        raise StorageUnavailable(f"{url}: the host {host} is not known") from e
    guard = guard_of(host, trusted=trusted)
    good = [a for a in found if guard(host, a)]
    if not good:
        raise Forbidden(f"{url}: {host} lies in a private network; the administrator can allow {origin}")
    return good[0]


def guard_of(host: str, *, trusted: bool) -> AddressGuard | RemoteGuard:
    """What judges the addresses of a server: one that the configuration names, or any other."""
    return AddressGuard(host, None) if trusted else RemoteGuard()
