"""The bytes of one version of one file at a root:// server, for the threads of a worker process.

The sessions of :mod:`doma.store.xrootd` are shared by all files of the process that one token reads from one
server.
"""

from collections.abc import Coroutine
from concurrent.futures import CancelledError
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from doma.columns.remote_blocks import Blocks
from doma.columns.remote_http import TIMEOUT, guard_of
from doma.columns.remote_loop import CLIENTS
from doma.core.errors import DomaError, OriginFailed, PreconditionFailed, StorageUnavailable
from doma.core.paths import checked
from doma.core.url import Origin, origin_of
from doma.net.xroot_session import Times
from doma.store.xrootd import SCHEMES, XrootdStore
from doma.store.xrootd_file import XrootdReader

T = TypeVar("T")

OPEN = 60.0
"""Seconds that opening may take altogether: a redirector may look for the file."""
READ = 300.0


class RootFile:
    """A file of a root:// server.

    Args:
        url: ``root://host[:port]//path`` or ``roots://…``; ``?authz=`` is a token.
        token: Told over TLS only.
        ca_file: Authorities to trust besides the system's.
        allow: Origins that may lie in a private network.
    """

    def __init__(self, url: str, token: str, ca_file: str, allow: tuple[str, ...]) -> None:
        origin, path, inside = place_of(url)
        self.url, self.taken = url.partition("?")[0], 0
        store = _store(origin, token or inside, ca_file, trusted=str(origin) in allow)
        self._reader: XrootdReader = self._wait(store.open(path), OPEN)
        stat = self._reader.stat
        self.size, self.version = stat.size, stat.version or ""
        self._blocks = Blocks(self.url, self.size, self._fetch)
        self.adler32 = stat.checksums.get("adler32", "")

    def read(self, start: int, stop: int) -> bytes:
        return self._blocks.read(start, stop)

    def close(self) -> None:
        """Close it at the server; what the server thinks of that is of no interest any more."""
        CLIENTS.forget(self._reader.close())

    def _fetch(self, start: int, stop: int) -> bytes:
        data = bytes(self._wait(self._reader.read(start, stop), READ))
        self.taken += len(data)
        return data

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        try:
            return CLIENTS.run(work, seconds)
        except TimeoutError as e:
            raise StorageUnavailable(f"{self.url}: no answer for {seconds:.0f} s") from e
        except CancelledError as e:
            raise StorageUnavailable(f"{self.url}: the connection was given up") from e
        except PreconditionFailed as e:
            raise OriginFailed(f"{self.url}: the file changed while it was read; submit again") from e
        except DomaError as e:
            if self.url in e.message:
                raise
            raise type(e)(f"{self.url}: {e.message.partition(': ')[2] or e.message}") from e


def _store(origin: Origin, token: str, ca_file: str, *, trusted: bool) -> XrootdStore:
    """The client of a server for one token."""

    async def bearer() -> str | None:
        return token or None

    def made() -> XrootdStore:
        times = Times(connect=10, answer=TIMEOUT, wait=120)
        guard = guard_of(origin.host, trusted=trusted)
        return XrootdStore(f"{origin}//", token=bearer, ca_file=ca_file, times=times, allow=guard)

    return CLIENTS.get((str(origin), sha256(token.encode()).hexdigest(), ca_file, trusted), made)


def place_of(url: str) -> tuple[Origin, str, str]:
    """Server, path and token of a URL. Raises BadRequest."""
    scheme, mark, rest = url.partition("://")
    origin = origin_of(SCHEMES.get(scheme.lower(), scheme) + mark + rest)
    parts = urlsplit(url)
    token = parse_qs(parts.query).get("authz", [""])[0].removeprefix("Bearer ")
    return origin, checked("/" + unquote(parts.path).lstrip("/")), token
