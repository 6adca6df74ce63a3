"""Objects of an S3 service: the ``s3://bucket/prefix`` engine.

Versions are ETags: equal content written in one piece has an equal version, as S3 sees no difference.
Publishing is what S3 does: an object is replaced whole, by one PUT or by completing parts. Conditions are
looked at before, and go along as ``If-Match`` and ``If-None-Match`` for services that hold them atomically.

Directories are common prefixes; an empty one is a marker object whose key ends in ``/``. One that was never
made by itself is gone with its last file. A rename is a copy and then a delete: others may see both; if the
copying fails nothing was changed, and nothing is deleted that is not the version that was copied.

Own requests instead of obstore: that knows neither a condition on DELETE and on the end of parts, nor object
metadata in HEAD, nor how to find and end uploads that were left behind.

Source: Amazon S3 API Reference; storage.md W41-W47 of the project's contracts.
"""

import asyncio
import heapq
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from doma.core.checksum import hasher
from doma.core.errors import (
    AlreadyExists,
    Conflict,
    DomaError,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    Refused,
    Unsupported,
)
from doma.core.paths import checked, parent
from doma.net.pool import Limits
from doma.store.http_trust import Authorities
from doma.store.protocol import PIECE, Buffer, Stat
from doma.store.s3_bucket import Bucket
from doma.store.s3_signature import EMPTY, Credentials
from doma.store.s3_upload import S3Upload
from doma.store.s3_wire import PAGE, Wire, address_of
from doma.store.writing import Tally, check_move, check_replaceable, check_span, check_target, check_version

STALE = 7 * 24 * 3600.0
"""Seconds after which an upload that was left behind is ended."""
REMEMBERED = 4096
"""Directories and checksums that are remembered."""
AT_ONCE = 8
"""Objects that are copied at once."""


class S3Reader:
    """One version of one object."""

    def __init__(self, wire: Wire, stat: Stat) -> None:
        self._wire, self._stat = wire, stat

    @property
    def stat(self) -> Stat:
        return self._stat

    async def read(self, start: int, stop: int) -> Buffer:
        stat = self._stat
        check_span(stat, start, stop)
        if start == stop:
            return b""
        into = memoryview(bytearray(stop - start))
        url, headers = self._wire.signed("GET", stat.path[1:], (), {"if-match": f'"{stat.version}"'}, EMPTY)
        answer = await self._wire.client.read_range(url, start, stop, into, headers, follow=False)
        if answer.status not in {200, 206}:
            error = await self._wire.refused(answer, stat.path)
            if isinstance(error, PreconditionFailed | RangeNotSatisfiable | NotFound):
                raise _changed(stat) from error
            raise error
        if answer.get("etag").strip('"') != stat.version:
            raise _changed(stat)
        return into

    async def close(self) -> None:
        pass


class S3Store:
    """A bucket, or what lies below a prefix of it, as a store.

    Args:
        url: ``s3://bucket/prefix?endpoint=http://host:port&region=us-east-1``.
        credentials: Whose keys; None: requests go unsigned.
        ca_file: Authorities to trust besides the system's.
        clock: Unix seconds.
        limits: Times and counts.

    Raises:
        ConfigError: the address or the CA file is no good.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        ca_file: Authorities = None,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
    ) -> None:
        self._wire = Wire(address_of(url), credentials, clock, ca_file, limits)
        self._clock = clock
        self._no_files: OrderedDict[str, None] = OrderedDict()
        """Directories on the way to what was written: no file was there."""
        self._bucket = Bucket(self._wire)
        self._swept = False

    # --- reading ---

    async def stat(self, path: str) -> Stat:
        path = checked(path)
        if path == "/":
            return Stat("/", 0, "dir", 0.0, is_dir=True)
        found = await self._bucket.file(path)
        if found is None:
            found = await self._directory(path)
        if found is None:
            raise NotFound(f"{path}: no such file or directory")
        return found

    async def list(self, path: str) -> AsyncIterator[Stat]:
        path = checked(path)
        folder = "" if path == "/" else path[1:] + "/"
        if folder and not (await self.stat(path)).is_dir:
            raise Conflict(f"{path}: this is a file; only a directory can be listed")
        # S3 sorts "a-b" before "a/", names sort the other way: what a directory may come before has to wait.
        waiting: list[tuple[str, str, Stat]] = []
        files: set[str] = set()
        async for key, stat in self._bucket.entries(folder):
            while waiting and waiting[0][1] < key:
                yield heapq.heappop(waiting)[2]
            if stat.is_dir and stat.path in files:
                continue  # a file of the same name hides what lies below it
            if not stat.is_dir:
                files = {name for name in files if name + "/" > f"/{key}"} | {stat.path}
            name = stat.path.rpartition("/")[2]
            heapq.heappush(waiting, (name, folder + _turn(name), stat))
        while waiting:
            yield heapq.heappop(waiting)[2]

    async def open(self, path: str) -> S3Reader:
        stat = await self.stat(path)
        if stat.is_dir:
            raise Conflict(f"{stat.path}: this is a directory; open a file below it")
        return S3Reader(self._wire, stat)

    async def checksum(self, path: str, algorithm: str) -> str:
        stat, digest = await self.stat(path), hasher(algorithm)
        if stat.is_dir:
            raise Conflict(f"{stat.path}: this is a directory and has no checksum")
        if (known := stat.checksums.get(algorithm)) is not None:
            return known
        reader = S3Reader(self._wire, stat)
        for start in range(0, stat.size, PIECE):
            data = await reader.read(start, min(start + PIECE, stat.size))
            await asyncio.to_thread(digest.update, data)
        value = digest.hexdigest()
        await self._bucket.keep(stat.path, stat.version, {**stat.checksums, algorithm: value})
        return value

    # --- changing ---

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> S3Upload:
        path = checked(path)
        if path == "/":
            raise Conflict("/: this is a directory; write to a name below it")
        tally = Tally(path, size, checksums)
        await self._sweep_once()
        await self._no_file_above(path)

        async def check() -> None:
            there = await self._find(path)
            check_replaceable(path, there, if_version=if_version, if_absent=if_absent)

        async def done(version: str, sums: dict[str, str]) -> Stat:
            if "-" in version:  # of parts: their metadata had to be said before the sums were known
                await self._bucket.keep(path, version, sums)
            return Stat(path, tally.written, version, self._clock(), checksums=sums)

        await check()
        conditions = {"if-none-match": "*"} if if_absent else {}
        if if_version not in {None, "*"}:
            conditions["if-match"] = f'"{if_version}"'
        return S3Upload(self._wire, tally, conditions, check, done)

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        path = checked(path)
        if path == "/":
            raise Refused("/: the top of a store cannot be deleted; delete what lies below")
        there = await self.stat(path)
        check_version(path, there, version)
        if not there.is_dir:
            await self._remove(path, version)
            return
        keys = []
        async for stat in self._bucket.below(path):
            if not recursive and stat.path != path + "/":
                raise Conflict(f"{path}: the directory is not empty; delete recursively or empty it")
            keys.append(stat.path[1:])
            if len(keys) == PAGE:
                await self._wire.remove(keys)
                keys.clear()
        if keys:
            await self._wire.remove(keys)
        self._forget(path)

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        source, target = checked(source), checked(target)
        moving = await self.stat(source)
        check_move(source, target)
        there = await self._find(target)
        check_target(target, moving, there, overwrite)
        above = parent(target)
        if above != "/" and not await self._is_dir(above):
            raise Conflict(f"{target}: its directory does not exist, or is a file; make it first")
        if not moving.is_dir:
            await self._bucket.copy(moving, target, fresh=there is None)
            await self._remove_copied(moving)
            return there is not None
        await self._move_all(source, target)
        return False

    async def make_dir(self, path: str) -> None:
        path = checked(path)
        if path == "/" or await self._find(path) is not None:
            raise AlreadyExists(f"{path}: there is already a file or directory of this name")
        if not await self._is_dir(parent(path)):
            raise Conflict(f"{path}: its directory does not exist, or is a file; make it first")
        await self._wire.told(
            "PUT", path[1:] + "/", (), {"content-type": "application/x-directory"}, b"", path
        )

    async def close(self) -> None:
        await self._wire.client.close()

    # --- inside ---

    async def _directory(self, path: str) -> Stat | None:
        async for _ in self._bucket.below(path, most=1):
            return Stat(path, 0, "dir", 0.0, is_dir=True)
        return None

    async def _find(self, path: str) -> Stat | None:
        try:
            return await self.stat(path)
        except NotFound:
            return None

    async def _is_dir(self, path: str) -> bool:
        there = await self._find(path)
        return there is not None and there.is_dir

    async def _no_file_above(self, path: str) -> None:
        """Raise Conflict if something above a path is a file; what was no file once is not asked again."""
        above = []
        while (path_ := parent(path)) != "/":
            path = path_
            if path not in self._no_files:
                above.append(path)
        for found in await asyncio.gather(*map(self._bucket.file, above)):
            if found is not None:
                raise Conflict(f"{found.path}: is a file, nothing can lie below it")
        for one in above:
            self._no_files[one] = None
        while len(self._no_files) > REMEMBERED:
            self._no_files.popitem(last=False)

    async def _remove(self, path: str, version: str | None) -> None:
        condition = {"if-match": f'"{version}"'} if version not in {None, "*"} else {}
        try:
            await self._wire.told("DELETE", path[1:], (), condition, path=path)
        except Unsupported:
            if not condition:
                raise
            # It was that version a moment ago; a service without conditional deletes offers no more.
            check_version(path, await self.stat(path), version)
            await self._wire.told("DELETE", path[1:], path=path)

    async def _remove_copied(self, stat: Stat) -> None:
        """Delete what was copied; what came to its name meanwhile stays."""
        with suppress(PreconditionFailed, NotFound):
            if not stat.path.endswith("/"):  # some services ignore conditions without a word: look first
                check_version(stat.path, await self.stat(stat.path), stat.version)
            await self._remove(stat.path, stat.version)

    async def _move_all(self, source: str, target: str) -> None:
        """Copy everything below a directory, then delete what was copied and is still the same."""
        moved = [stat async for stat in self._bucket.below(source)]
        turn, tried, failed = asyncio.Semaphore(AT_ONCE), list[str](), list[DomaError]()

        async def one(stat: Stat) -> None:
            async with turn:
                if failed:
                    return
                new = target + stat.path[len(source) :]
                tried.append(new[1:])
                try:
                    await self._bucket.copy(stat, new)
                except DomaError as e:
                    failed.append(e)

        await asyncio.gather(*map(one, moved))
        if failed:
            for at in range(0, len(tried), PAGE):
                with suppress(DomaError):
                    await self._wire.remove(tried[at : at + PAGE])
            raise failed[0]
        for stat in moved:
            await self._remove_copied(stat)
        self._forget(source)

    def _forget(self, path: str) -> None:
        for known in [p for p in self._no_files if p == path or p.startswith(path + "/")]:
            del self._no_files[known]

    # --- what was left behind ---

    async def _sweep_once(self) -> None:
        if not self._swept:
            self._swept = True
            with suppress(DomaError):  # not allowed to look: then neither to end any
                await self._bucket.sweep(self._clock() - STALE)


def _turn(name: str) -> str:
    """The key after which no directory can come that sorts before a name.

    >>> _turn("run-1.root"), _turn("abc")
    ('run/', 'abc')
    """
    return next((name[:i] + "/" for i, c in enumerate(name) if c < "/" and i), name)


def _changed(stat: Stat) -> PreconditionFailed:
    return PreconditionFailed(
        f"{stat.path}: the object was changed in its bucket while it was read; open it again"
    )
