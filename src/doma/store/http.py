"""Files of an HTTP or WebDAV server: the ``https://`` engine.

Plain GET, HEAD and ranges work with any server; listing and changing need WebDAV. A :class:`HttpReader` asks
for the version that it opened with each range and compares what comes, so a file replaced at the source ends
in an error and never in a mix.

Source: RFC 9110, RFC 4918; storage.md §1-§3 and cache.md §4 of the project's contracts.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableSequence
from contextlib import suppress
from dataclasses import replace

from doma.auth.model import bearer
from doma.core.checksum import digest_header, hasher, read_digests, repr_digest_header, same
from doma.core.errors import (
    AlreadyExists,
    BadRequest,
    ConfigError,
    Conflict,
    DomaError,
    Forbidden,
    NotAllowed,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    RangeNotSatisfiable,
    Unsupported,
)
from doma.core.paths import checked, encode, normalise, parent
from doma.core.url import https, joined, origin_of
from doma.net.byteranges import content_range
from doma.net.client import RangeClient, Response
from doma.net.pool import Allow, Limits
from doma.store.duplicates import duplicates
from doma.store.http_reader import HttpReader
from doma.store.http_status import (
    Probe,
    directory_of,
    is_strong,
    modified_of,
    refused,
    says_version,
    stat_of,
    version_of,
    whole_of,
)
from doma.store.http_trust import AddressGuard, Authorities, context_of, is_loopback
from doma.store.http_upload import HttpUpload
from doma.store.multistatus import Multistatus, Resource, listed
from doma.store.protocol import PIECE, Stat
from doma.store.writing import Tally, check_move, check_replaceable, check_target, check_version

Token = Callable[[], Awaitable[str | None]]

DIGEST_TIME = 300.0
"""Seconds that a server may take to compute a checksum, as gfal2 grants."""


class HttpStore:
    """A server, or a folder of it, as a store.

    Args:
        url: ``http(s)://host[:port]/prefix``; ``davs://`` is the same as ``https://``.
        token: Gives the bearer token of each request; None: the token of the current request
            (:data:`doma.auth.model.bearer`) is passed on, to this server alone.
        ca_file: Authorities to trust besides the system's.
        allow_private: Whether private and loopback addresses may be connected. None: those of the server
            itself, and of redirects only if the server's own is one too.
        limits: Times and counts.
        allow: Judges the addresses alone, as for a server that a client has named.

    Raises:
        ConfigError: the URL or the CA file is no good.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        ca_file: Authorities = None,
        allow_private: bool | None = None,
        limits: Limits | None = None,
        allow: Allow | None = None,
    ) -> None:
        try:
            origin = origin_of(url)
            self._base = https(url)
            self._prefix = normalise("/" + self._base.partition("://")[2].partition("?")[0].partition("/")[2])
        except DomaError as e:
            raise ConfigError(f"{e.message}; correct the endpoint") from e
        if origin.scheme not in {"http", "https"}:
            raise ConfigError(f"{origin}: this engine speaks http and https only")
        self._name = str(origin)
        self._token = token
        # A token in the clear may not leave this machine.
        self._may_tell = origin.scheme == "https" or is_loopback(origin.host)
        context = context_of(ca_file) if origin.scheme == "https" else None
        self._client = RangeClient(context, limits, allow or AddressGuard(origin.host, allow_private))

    # --- reading ---

    async def stat(self, path: str) -> Stat:
        path = checked(path)
        async with await self._head(path) as answer:
            if answer.status == 206:
                return stat_of(answer.head, path, whole_of(answer))
            if answer.status in {200, 204}:
                if answer.url.partition("?")[0].endswith("/") and path != "/":
                    return directory_of(path, answer)
                size = answer.head.length
                if size is not None and "directory" not in answer.get("content-type"):
                    return await self._file(path, answer, size)
                return await self._described(path, answer)
            raise await self._refused(answer, path)

    async def probe(self, path: str, *, if_none_match: str | None = None) -> Probe:
        """Ask with a condition, for caches: one HEAD, with what the answer says about freshness.

        Args:
            path: Of a file; a directory gives its Stat with empty freshness.
            if_none_match: A version as an earlier Stat had it. If the server says that it is still there,
                ``Probe.stat`` is None; one that ignores conditions, or has no ETag, tells all again.

        Raises:
            NotFound, Unauthenticated, Forbidden, StorageUnavailable, TimedOut, OriginFailed: as :meth:`stat`.
        """
        path = checked(path)
        condition = {}
        if if_none_match is not None and is_strong(if_none_match):
            condition = {"If-None-Match": f'"{if_none_match}"'}
        async with await self._head(path, condition) as answer:
            age, date = answer.get("age"), modified_of(answer.get("date"))
            seconds = float(age) if age.isascii() and age.isdigit() and len(age) < 10 else 0.0
            control = answer.get("cache-control")
            if answer.status == 304:
                return Probe(None, control, seconds, date)
            if answer.status not in {200, 204, 206}:
                raise await self._refused(answer, path)
            size = whole_of(answer) if answer.status == 206 else answer.head.length
            if size is None:
                return Probe(await self.stat(path))
            stat, link = await self._file(path, answer, size), answer.get("link")
            return Probe(stat, control, seconds, date, duplicates(link) if link else ())

    async def list(self, path: str) -> AsyncIterator[Stat]:
        path = checked(path)
        found: list[Stat] = []
        there = await self._propfind(path, "1", found)
        if not there.is_dir:
            raise Conflict(f"{path}: this is a file; only a directory can be listed")
        for stat in sorted(found, key=lambda stat: stat.path):
            yield stat

    async def open(self, path: str) -> HttpReader:
        stat = await self.stat(path)
        if stat.is_dir:
            raise Conflict(f"{stat.path}: this is a directory; open a file below it")
        return HttpReader(self, stat, await self._bearer())

    async def fill(
        self, stat: Stat, start: int, stop: int, into: memoryview, token: str | None, *, at: str | None = None
    ) -> str | None:
        """Read a range of exactly that version into a buffer; gives the URL that the server redirected to.

        Args:
            stat: The version.
            start: First byte.
            stop: Behind the last one.
            into: Where they go.
            token: For a request without a token of its own.
            at: Where an earlier read was sent; another server is told no token there either.

        Raises:
            PreconditionFailed: the server has another version now.
        """
        fields = {}
        if is_strong(stat.version):
            fields["If-Match"] = f'"{stat.version}"'
        own = self._url(stat.path)
        current = await self._bearer() or token
        if current and (at is None or origin_of(at) == origin_of(own)):
            fields["Authorization"] = f"Bearer {current}"
        answer = await self._client.read_range(at or own, start, stop, into, fields)
        if answer.status not in {200, 206}:
            error = await refused(answer, stat.path, current)
            if isinstance(error, PreconditionFailed | RangeNotSatisfiable):
                raise _changed(stat) from error
            raise error
        span = content_range(answer.get("content-range"))
        total = span[2] if span and span[2] is not None else stat.size
        says = says_version(answer.head)
        if total != stat.size or (says and version_of(answer.head, total) != stat.version):
            raise _changed(stat)
        return answer.url if answer.url != own else None

    async def checksum(self, path: str, algorithm: str) -> str:
        path, digest = checked(path), hasher(algorithm)
        want = {"sha-1": "sha"}.get(algorithm, algorithm)
        weight = {"adler32": "adler"}.get(algorithm, algorithm)
        fields = {"Want-Digest": want, "Want-Repr-Digest": f"{weight}=1"}
        async with await self._ask("HEAD", path, fields, first_byte=DIGEST_TIME) as answer:
            if answer.status not in {200, 204}:
                raise await self._refused(answer, path)
            if (told := read_digests(answer.head.fields).get(algorithm)) is not None:
                return told
        reader = await self.open(path)
        for start in range(0, reader.stat.size, PIECE):
            digest.update(await reader.read(start, min(start + PIECE, reader.stat.size)))
        return digest.hexdigest()

    # --- changing ---

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> HttpUpload:
        path = checked(path)
        if path == "/":
            raise Conflict("/: this is a directory; write to a name below it")
        tally = Tally(path, size, checksums)
        fields = {"Content-Type": "application/octet-stream"}
        if size is not None:
            fields["Content-Length"] = str(size)
        if checksums:
            told = {"Digest": digest_header(checksums), "Repr-Digest": repr_digest_header(checksums)}
            fields |= {name: value for name, value in told.items() if value}
        if if_absent:
            fields["If-None-Match"] = "*"
        elif if_version is not None and not is_strong(if_version):
            check_version(path, await self._find(path), if_version)  # The server offers nothing better.
        elif if_version is not None:
            fields["If-Match"] = "*" if if_version == "*" else f'"{if_version}"'

        async def send(body: AsyncIterator[bytes]) -> Response:
            return await self._ask("PUT", path, fields, body, first_byte=DIGEST_TIME)

        async def judge(answer: Response, sums: dict[str, str]) -> Stat:
            async with answer:
                return await self._stored(answer, tally, sums)

        upload = HttpUpload(tally, send, judge)
        if size != 0:
            await upload.begin()
        elif if_absent or if_version is not None:
            check_replaceable(path, await self._find(path), if_version=if_version, if_absent=if_absent)
        return upload

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        path = checked(path)
        # DELETE takes a collection with everything in it: look before.
        if version is None and not recursive and (await self.stat(path)).is_dir:
            children: deque[Stat] = deque(maxlen=1)
            await self._propfind(path, "1", children)
            if children:
                raise Conflict(f"{path}: the directory is not empty; delete recursively or empty it")
        fields = {}
        if version is not None and is_strong(version):
            fields["If-Match"] = f'"{version}"'
        elif version is not None:
            check_version(path, await self.stat(path), version)  # The server offers nothing better.
        await self._change("DELETE", path, fields)

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        source, target = checked(source), checked(target)
        moving = await self.stat(source)
        check_move(source, target)
        check_target(target, moving, await self._find(target), overwrite)
        fields = {"Destination": self._url(target), "Overwrite": "T" if overwrite else "F"}
        return await self._change("MOVE", source, fields) == 204

    async def make_dir(self, path: str) -> None:
        path = checked(path)
        try:
            await self._change("MKCOL", path, {})
        except NotAllowed as e:
            raise AlreadyExists(f"{path}: there is already a file or directory of this name") from e

    async def close(self) -> None:
        await self._client.close()

    # --- inside ---

    async def _ask(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
        first_byte: float | None = None,
    ) -> Response:
        every = dict(fields or {})
        if token := await self._bearer():
            every["Authorization"] = f"Bearer {token}"
        return await self._client.request(
            method, self._url(path), every, body, expect=body is not None, first_byte=first_byte
        )

    async def _head(self, path: str, fields: Mapping[str, str] | None = None) -> Response:
        """The answer to HEAD; where a server does not know HEAD, to a GET of the first byte (206)."""
        answer = await self._ask("HEAD", path, fields)
        if answer.status in {405, 501}:
            first = await self._ask("GET", path, {**(fields or {}), "Range": "bytes=0-0"})
            told = first.status in {206, 304}  # else a listing, perhaps: what was said to HEAD counts
            (answer if told else first).close()
            return first if told else answer
        return answer

    async def _change(self, method: str, path: str, fields: Mapping[str, str]) -> int:
        async with await self._ask(method, path, fields) as answer:
            if answer.status not in {200, 201, 204}:
                raise await self._refused(answer, path)
            return answer.status

    async def _bearer(self) -> str | None:
        if not self._may_tell:
            return None
        return await self._token() if self._token is not None else bearer.get()

    async def _refused(self, answer: Response, path: str) -> DomaError:
        return await refused(answer, path, await self._bearer())

    def _url(self, path: str) -> str:
        return joined(self._base, encode(path))

    async def _file(self, path: str, answer: Response, size: int) -> Stat:
        """What HEAD says, or WebDAV where HEAD tells no version: a directory then looks like a file, too."""
        if not says_version(answer.head):
            with suppress(NotAllowed, Unsupported, BadRequest, Forbidden, NotFound, OriginFailed):
                return await self._propfind(path, "0", [])
        return stat_of(answer.head, path, size)

    async def _described(self, path: str, answer: Response) -> Stat:
        """What WebDAV says of a path whose HEAD left it open: most likely a directory."""
        try:
            return await self._propfind(path, "0", [])
        except (NotAllowed, Unsupported) as e:
            if path == "/":
                return directory_of(path, answer)
            raise OriginFailed(f"{path}: {self._name} tells neither a size nor that it is a directory") from e

    async def _propfind(self, path: str, depth: str, children: MutableSequence[Stat]) -> Stat:
        """The asked resource itself; what lies directly below it is added to ``children``."""
        own: deque[Stat] = deque(maxlen=1)

        def take(resource: Resource) -> None:
            stat = listed(resource, self._prefix)
            if stat is not None and stat.path == path:
                own.append(stat)
            elif stat is not None and stat.path != "/" and parent(stat.path) == path:
                children.append(stat)

        async with await self._ask("PROPFIND", path, {"Depth": depth}) as answer:
            if answer.status != 207:
                raise await self._refused(answer, path)
            document = Multistatus(answer.url, take)
            async for piece in answer.pieces():
                document.feed(piece)
            document.close()
        if not own:
            raise OriginFailed(f"{path}: {self._name} answered PROPFIND without the path that was asked for")
        return own[0]

    async def _stored(self, answer: Response, tally: Tally, sums: Mapping[str, str]) -> Stat:
        """Judge the answer to a PUT against what we sent."""
        path = tally.path
        if answer.status not in {200, 201, 204}:
            error = await self._refused(answer, path)
            if isinstance(error, NotAllowed):
                raise Conflict(f"{path}: this is a directory; write to a name below it") from error
            raise error
        told = read_digests(answer.head.fields)
        stat = Stat(path, tally.written, version_of(answer.head, tally.written), time.time(), checksums=sums)
        if not is_strong(stat.version):
            stat = await self.stat(path)
            told = {**stat.checksums, **told}
        for name, value in sums.items():
            if name in told and not same(name, value, told[name]):
                raise OriginFailed(f"{path}: {self._name} stored {name} {told[name]}, sent was {value}")
        return replace(stat, checksums={**stat.checksums, **sums})

    async def _find(self, path: str) -> Stat | None:
        try:
            return await self.stat(path)
        except NotFound:
            return None


def _changed(stat: Stat) -> PreconditionFailed:
    return PreconditionFailed(f"{stat.path}: the file changed at its source while it was read; open it again")
