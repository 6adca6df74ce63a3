"""The bytes of one version of one input file, by URL, for a worker process.

Ranges only, over kept-alive connections; the version (ETag) of the first answer is demanded of every other,
so a file that changes underneath fails instead of mixing. The token goes to the named origin only, and a
private address is contacted only if the configuration names it.
"""

import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urljoin, urlsplit

from doma.core.errors import (
    BadRequest,
    CorruptFile,
    DomaError,
    Forbidden,
    InvalidToken,
    NotFound,
    OriginFailed,
    StorageUnavailable,
    Unsupported,
)

BLOCK = 128 << 10
"""Read-ahead of single small reads."""
BLOCKS = 32
WHOLE = 64 << 20
"""A file whose server knows no ranges is read whole up to this size."""
TIMEOUT = 30.0
REDIRECTS = 5
AGENT = "doma"


class Bytes(Protocol):
    """Random access to one version of a file; safe for several threads."""

    url: str
    size: int
    version: str
    taken: int

    def read(self, start: int, stop: int) -> bytes:
        """Exactly ``[start, stop)``."""

    def close(self) -> None: ...


def open_bytes(url: str, token: str = "", ca_file: str = "", allow: tuple[str, ...] = ()) -> Bytes:
    """Open an input.

    Raises:
        BadRequest: no URL we can read. Forbidden: the address or the file may not be read.
        NotFound, StorageUnavailable, OriginFailed: what its server says.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if "file://" not in allow:
            raise Forbidden(f"{url}: local files are not read here; give an https:// URL")
        return LocalFile(url, unquote(parts.path))
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadRequest(f"{url[:200]}: only http:// and https:// files can be read")
    return RemoteFile(url, token, ca_file, allow)


class LocalFile:
    """A file of this machine, for tests and configured setups."""

    def __init__(self, url: str, path: str) -> None:
        try:
            self._file = Path(path).open("rb")  # noqa: SIM115 - closed by close()
        except FileNotFoundError as e:
            raise NotFound(f"{url}: no such file") from e
        except OSError as e:
            raise StorageUnavailable(f"{url}: cannot be opened: {e.strerror}") from e
        stat = os.fstat(self._file.fileno())
        self.url, self.size, self.taken = url, stat.st_size, 0
        self.version = f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"

    def read(self, start: int, stop: int) -> bytes:
        data = os.pread(self._file.fileno(), stop - start, start)
        if len(data) != stop - start:
            raise CorruptFile(f"{self.url}: bytes {start}-{stop} lie beyond its end ({self.size} bytes)")
        self.taken += len(data)
        return data

    def close(self) -> None:
        self._file.close()


class RemoteFile:
    """A file of an HTTP server."""

    def __init__(self, url: str, token: str, ca_file: str, allow: tuple[str, ...]) -> None:
        self.url, self.taken, self.version, self.size = url, 0, "", 0
        self._place, self._token, self._allow = url, token, allow
        self._tls = ssl.create_default_context()
        if ca_file:
            # Besides the system's: inputs lie at this site and elsewhere.
            self._tls.load_verify_locations(ca_file)
        self._local = threading.local()
        self._opened: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._whole: bytes | None = None
        self._etag = ""
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def read(self, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= self.size:
            raise CorruptFile(f"{self.url}: bytes {start}-{stop} lie beyond its end ({self.size} bytes)")
        if self._whole is not None:
            return self._whole[start:stop]
        if stop - start > BLOCK:
            return self._fetch(start, stop)
        first, last = start // BLOCK, max(start, stop - 1) // BLOCK
        data = b"".join(self._block(i) for i in range(first, last + 1))
        return data[start - first * BLOCK : stop - first * BLOCK]

    def close(self) -> None:
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()

    def _block(self, number: int) -> bytes:
        with self._lock:
            data = self._blocks.get(number)
            if data is not None:
                self._blocks.move_to_end(number)
                return data
        data = self._fetch(number * BLOCK, min(self.size, (number + 1) * BLOCK))
        with self._lock:
            self._blocks[number] = data
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        return data

    def _begin(self) -> None:
        """The first block tells size and version; redirects are followed here and remembered."""
        for _ in range(REDIRECTS):
            answer, body = self._ask(0, BLOCK)
            if answer.status not in {301, 302, 303, 307, 308}:
                break
            self._redirected(answer.getheader("Location", ""))
        else:
            raise OriginFailed(f"{self.url}: more than {REDIRECTS} redirects")
        self._etag = answer.getheader("ETag", "")
        self.version = self._etag.strip('"') if not self._etag.startswith("W/") else ""
        if answer.status == 416:
            self.size = 0
        elif answer.status == 200:
            self._whole, self.size = body, len(body)
        else:
            match = re.fullmatch(r"bytes 0-(\d+)/(\d+)", answer.getheader("Content-Range", ""))
            if match is None or int(match[1]) + 1 != len(body):
                raise OriginFailed(f"{self.url}: its server answered a range without a usable Content-Range")
            self.size = int(match[2])
            self._blocks[0] = body

    def _redirected(self, location: str) -> None:
        target = urljoin(self._place, location)
        if urlsplit(target).scheme not in {"http", "https"} or not urlsplit(target).hostname:
            raise OriginFailed(f"{self.url}: its server redirects to something that is no HTTP URL")
        if urlsplit(target)[:2] != urlsplit(self._place)[:2]:
            self._token = ""
        self._drop()
        self._place = target

    def _fetch(self, start: int, stop: int) -> bytes:
        answer, body = self._ask(start, stop)
        if answer.status == 412 or answer.getheader("ETag", "") != self._etag:
            raise OriginFailed(f"{self.url}: the file changed while it was read; submit again")
        if answer.status != 206 or len(body) != stop - start:
            raise OriginFailed(
                f"{self.url}: asked for {stop - start} bytes, got {len(body)} ({answer.status})"
            )
        return body

    def _ask(self, start: int, stop: int) -> tuple[http.client.HTTPResponse, bytes]:
        """One ranged GET; a connection that the server closed meanwhile is opened again, once."""
        headers = {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": AGENT,
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self.version:
            headers["If-Match"] = self._etag
        parts = urlsplit(self._place)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        for attempt in (1, 2):
            try:
                connection = self._connection()
                connection.request("GET", target, headers=headers)
                answer = connection.getresponse()
                body = self._body(answer)
            except TimeoutError as e:
                self._drop()
                raise StorageUnavailable(f"{self.url}: no answer for {TIMEOUT:.0f} s") from e
            except (OSError, http.client.HTTPException, ValueError) as e:
                self._drop()
                if attempt == 2 or isinstance(e, ValueError | ssl.SSLCertVerificationError):
                    raise StorageUnavailable(
                        f"{self.url}: cannot be read: {str(e) or type(e).__name__}"
                    ) from e
            else:
                self._refuse(answer, body)
                self.taken += len(body)
                return answer, body
        raise AssertionError("unreachable")

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.status == 200 and int(answer.getheader("Content-Length") or WHOLE + 1) > WHOLE:
            self._drop()
            raise Unsupported(
                f"{self.url}: its server serves no byte ranges, and the file is too large to load"
            )
        limit = WHOLE if answer.status in {200, 206} else 64 << 10
        body = answer.read(limit + 1)
        if len(body) > limit:
            self._drop()
        return body

    def _refuse(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        status = answer.status
        if status < 400 or status in {412, 416}:
            return
        said = body[:200].decode("utf-8", "replace").split("\n")[0].strip()
        kinds: Mapping[int, type[DomaError]] = {
            401: InvalidToken,
            403: Forbidden,
            404: NotFound,
            410: NotFound,
        }
        kind = kinds.get(status, StorageUnavailable if status >= 500 or status == 429 else OriginFailed)
        raise kind(
            f"{self.url}: its server answered {status}{f' ({said})' if said.isprintable() and said else ''}"
        )

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection
        parts = urlsplit(self._place)
        assert parts.hostname is not None
        # The checked address is the connected one: a second look-up could answer something else.
        address = _address(self.url, f"{parts.scheme}://{parts.netloc}", parts.hostname, self._allow)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        sock = socket.create_connection((address, port), TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme == "https":
            sock = self._tls.wrap_socket(sock, server_hostname=parts.hostname)
        connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
        connection.auto_open = 0  # it must never connect by itself: without TLS, to an unchecked address
        connection.sock = sock
        self._local.connection = connection
        with self._lock:
            self._opened.append(connection)
        return connection

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


def _address(url: str, origin: str, host: str, allow: tuple[str, ...]) -> str:
    """The address to connect to; a private one only by configuration: no query may probe our network."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError as e:
        raise StorageUnavailable(f"{url}: the host {host} is not known") from e
    public = [a for a in found if origin in allow or ipaddress.ip_address(a.split("%")[0]).is_global]
    if not public:
        raise Forbidden(f"{url}: {host} lies in a private network; the administrator can allow {origin}")
    return public[0]
