"""The bytes of one version of one input file, by URL and with its replicas, for a worker process.

Engines: :mod:`doma.columns.remote_http`, :mod:`doma.columns.remote_root`, and files of this machine where the
configuration allows them. An object of a bucket is read by a signed URL that comes in place of a token.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from doma.columns.finder import NOWHERE
from doma.columns.model import Task
from doma.columns.remote_blocks import BLOCK
from doma.core.errors import (
    BadRequest,
    CorruptFile,
    DomaError,
    Forbidden,
    NotFound,
    StorageUnavailable,
    TimedOut,
)
from doma.core.url import redacted

__all__ = ["BLOCK", "Bytes", "LocalFile", "check_url", "open_bytes", "open_input"]

log = logging.getLogger(__name__)

ROOT = ("root", "roots", "xroot", "xroots")
SCHEMES = ("https", "http", *ROOT, "s3")
MAX_URL = 2000
SICK = 60.0
"""Seconds for which a place that failed is tried last."""


class Bytes(Protocol):
    """Random access to one version of a file; safe for several threads."""

    size: int
    version: str

    @property
    def url(self) -> str:
        """What is read, as messages may show it; of several replicas the one in use."""

    @property
    def taken(self) -> int:
        """Bytes that came from it."""

    def read(self, start: int, stop: int) -> bytes:
        """Exactly ``[start, stop)``."""

    def close(self) -> None: ...


class Replica(Bytes, Protocol):
    """What an engine gives."""

    adler32: str
    """Empty: not known."""


def check_url(url: str, allow: Sequence[str] = ()) -> None:
    """Refuse what cannot be an input, without contacting anything.

    Raises:
        BadRequest: it is no URL of a scheme that is read.
    """
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        shown = redacted(url)[:200]
        raise BadRequest(f"{shown!a}: a URL has at most {MAX_URL} printable ASCII characters, no space")
    try:
        parts = urlsplit(url)
        ok = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        ok, parts = False, urlsplit("")
    if parts.scheme == "file" and "file://" in allow:
        return
    if parts.scheme not in SCHEMES or not ok:
        raise BadRequest(
            f"{redacted(url)[:200]!a}: only https://, http://, root:// and s3:// files can be read"
        )
    if parts.username is not None:
        raise BadRequest(
            f"{redacted(url)[:200]!a}: a URL must not hold a user name or password; the token is used"
        )


def open_bytes(
    url: str,
    token: str = "",
    ca_file: str = "",
    allow: tuple[str, ...] = (),
    *,
    lazy: bool = False,
    digest: bool = False,
) -> Replica:
    """Open one replica.

    Args:
        url: Where it lies.
        token: Bearer token; for ``s3://`` a signed https URL.
        ca_file: Authorities to trust besides the system's.
        allow: Origins in private networks that may be read; ``file://``: local paths.
        lazy: Read no byte before it is asked for, where the server can tell the version without.
        digest: Ask for the adler32.

    Raises:
        BadRequest: no URL we can read. Forbidden: the address or the file may not be read.
        NotFound, StorageUnavailable, OriginFailed: what its server says.
    """
    if url.startswith(NOWHERE):
        raise NotFound(
            f"{unquote(url.removeprefix(NOWHERE))}: its catalogue knows no replica that can be read"
        )
    scheme = url.partition("://")[0].lower()
    if scheme == "file":
        if "file://" not in allow:
            raise Forbidden(f"{redacted(url)}: local files are not read here; give an https:// URL")
        return LocalFile(url, unquote(urlsplit(url).path))
    check_url(url, allow)
    if scheme in ROOT:
        from doma.columns.remote_root import RootFile

        return RootFile(url, token, ca_file, allow)
    from doma.columns.remote_http import RemoteFile  # ssl, http.client: 9 MiB that local files do not need

    if scheme == "s3":
        if not token:
            raise Forbidden(
                f"{redacted(url)}: objects of this bucket are not read here; the administrator can allow it"
            )
        return RemoteFile(url, "", ca_file, allow, lazy=lazy, place=token)
    return RemoteFile(url, token, ca_file, allow, lazy=lazy, digest=digest)


def open_input(task: Task) -> Bytes:
    """Open the file of a task at the first of its replicas that opens.

    No byte is read before it is asked for if the task knows versions whose result is there already,
    replicas, or a scan service.

    Raises:
        DomaError: what is wrong with the file; of several replicas the first one's trouble that may pass.
    """
    places = ((task.url, task.token), *task.replicas)
    return Input(places, task.ca_file, task.allow, lazy=bool(task.known or task.replicas or task.flight))


class Input:
    """A file with replicas: another one takes over where one fails, if it surely has the same content.

    Args:
        places: URL and token of each replica, in the order of preference; those that failed lately go last.
        ca_file: Authorities to trust besides the system's.
        allow: As :func:`open_bytes` takes it.
        lazy: As there.
    """

    def __init__(
        self,
        places: Sequence[tuple[str, str]],
        ca_file: str,
        allow: tuple[str, ...],
        *,
        lazy: bool = False,
    ) -> None:
        self._left = sorted(dict(places).items(), key=lambda place: _health(place[0]))
        self._ca_file, self._allow, self._lazy = ca_file, allow, lazy
        self._several, self._lock, self._before = len(self._left) > 1, threading.Lock(), 0
        self._now = self._next([])
        self.size, self.version = self._now.size, self._now.version

    @property
    def url(self) -> str:
        """The replica that is read."""
        return self._now.url

    @property
    def taken(self) -> int:
        """Bytes that came from all replicas."""
        return self._before + self._now.taken

    def read(self, start: int, stop: int) -> bytes:
        """Exactly ``[start, stop)``."""
        while True:
            used = self._now
            try:
                return used.read(start, stop)
            except DomaError as e:
                _note(used.url, e)
                with self._lock:
                    if self._now is used:
                        self._replace(used, e)

    def close(self) -> None:
        self._now.close()

    def _replace(self, lost: Replica, trouble: DomaError) -> None:
        """Go on with another replica of the same content; without one the trouble is the file's.

        Raises:
            DomaError: the trouble; StorageUnavailable where another replica opens that may have other bytes:
            the next attempt begins with that one.
        """
        others = False
        while self._left:
            try:
                other = self._next([trouble])
            except DomaError as e:
                log.debug("no other replica opens: %s", e)
                break
            if _same(lost, other):
                self._before += lost.taken
                self._now = other
                # One of the servers may have lied: the result is not known by either one's version.
                self.version = ""
                lost.close()
                return
            other.close()
            others = True
        if others and trouble.retry == "no":
            raise StorageUnavailable(
                f"{trouble.message} (another replica may have other content: the file is begun anew)"
            ) from trouble
        raise trouble

    def _next(self, troubles: list[DomaError]) -> Replica:
        """The next replica that opens."""
        while self._left:
            url, token = self._left.pop(0)
            try:
                return open_bytes(
                    url, token, self._ca_file, self._allow, lazy=self._lazy, digest=self._several
                )
            except DomaError as e:
                _note(url, e)
                troubles.append(e)
        first = next((t for t in troubles if t.retry != "no"), troubles[0])
        if len(troubles) == 1:
            raise first
        told = "; ".join(t.message for t in troubles)
        raise type(first)(f"{first.message} (of {len(troubles)} replicas: {told})"[:2000])


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
        self.url, self.size, self.taken, self.adler32 = url, stat.st_size, 0, ""
        self.version = f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"

    def read(self, start: int, stop: int) -> bytes:
        within = 0 <= start <= stop <= self.size
        data = os.pread(self._file.fileno(), stop - start, start) if within else b""
        if not within or len(data) != stop - start:
            raise CorruptFile(f"{self.url}: bytes {start}-{stop} lie beyond its end ({self.size} bytes)")
        self.taken += len(data)
        return data

    def close(self) -> None:
        self._file.close()


def _same(one: Replica, other: Replica) -> bool:
    """Whether two replicas surely hold the same bytes."""
    if one.size != other.size:
        return False
    if one.adler32 and other.adler32:
        return one.adler32 == other.adler32
    # Two engines make versions in two ways; an equal one of the same engine means the same file.
    return bool(one.version) and one.version == other.version and type(one) is type(other)


_sick: dict[str, float] = {}
"""Files and servers that failed in this process, and when."""


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _note(url: str, error: DomaError) -> None:
    """Remember a place that failed; a server that does not answer fails for all its files."""
    now = time.monotonic()
    if len(_sick) > 4096:
        _sick.clear()
    _sick[url] = now
    if isinstance(error, StorageUnavailable | TimedOut):
        _sick[_server(url)] = now


def _health(url: str) -> int:
    """0 for a place that is not known to be sick, else 1."""
    recent = time.monotonic() - SICK
    return int(max(_sick.get(url, recent), _sick.get(_server(url), recent)) > recent)
