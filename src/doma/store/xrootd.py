"""Files of an XRootD deployment: the ``root://`` and ``roots://`` engine. No C++ needed.

Versions are made of device and inode, size and modification time: see
:func:`doma.store.xrootd_file.version_of` for what they notice. Modification times are whole seconds, and a
disk gives a free inode number to the next file; so a young file is held open while it is replaced or deleted,
until its second is over: its number cannot come back within it.

Conditions are checked by a look right before the act, at publication too. The protocol has no conditional
rename or delete: another client may come between look and act, which take one round trip each.

Source: §2-§9 of the project's root:// contract; W42-W47 of the storage contract.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from secrets import token_hex
from urllib.parse import urlsplit

from doma.auth.model import bearer
from doma.core.checksum import hasher, same
from doma.core.errors import AlreadyExists, ConfigError, Conflict, DomaError, NotFound, OriginFailed, Refused
from doma.core.paths import checked, normalise, parent
from doma.core.url import Origin, origin_of
from doma.net.xroot_client import XrootClient
from doma.net.xroot_session import Allow, Times
from doma.net.xroot_text import BACKUP, OFFLINE, StatLine
from doma.store.http_trust import AddressGuard, Authorities, context_of
from doma.store.protocol import PIECE, Locality, Space, Stat
from doma.store.writing import Tally, check_move, check_replaceable, check_target, check_version
from doma.store.xrootd_file import OpenFile, XrootdReader, version_of
from doma.store.xrootd_names import Names
from doma.store.xrootd_record import Record, Records
from doma.store.xrootd_upload import XrootdUpload

Token = Callable[[], Awaitable[str | None]]

SCHEMES = {"root": "root", "xroot": "root", "roots": "roots", "xroots": "roots"}
HIDDEN = ".doing-"
"""How the names of temporaries begin: no name that a server of ours keeps for itself, since it may be one."""
STALE = 24 * 3600.0
"""Age from which on a temporary has been forgotten (rule W45)."""
DEEPEST = 256
"""Directories in each other: a server may claim that there is no end to them."""
AT_ONCE = 16
"""Deletions in flight."""


class XrootdStore:
    """A root:// server or cluster, or a folder of it, as a store.

    Args:
        url: ``root://host[:port]//folder`` or ``roots://…`` (TLS or nothing).
        token: Gives the bearer token of each request; None: the token of the current request
            (:data:`doma.auth.model.bearer`) is passed on. It goes over TLS only, and to this deployment only.
        ca_file: Authorities to trust besides the system's.
        allow_private: As :class:`doma.store.http.HttpStore` takes it.
        fsync: Make files durable before they are published.
        times: Limits.
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
        fsync: bool = True,
        times: Times | None = None,
        allow: Allow | None = None,
    ) -> None:
        origin, prefix = _place(url)
        self._token = token
        self._fsync = fsync
        guard = allow or AddressGuard(origin.host, allow_private)
        self._client = XrootClient(origin, context_of(ca_file), times, guard)
        self._names = Names(self._client, str(origin), prefix, self._bearer)
        self._records = Records(self._client)

    # --- reading ---

    async def stat(self, path: str) -> Stat:
        path = checked(path)
        line, record = await asyncio.gather(self._names.look(path), self._record(path))
        return _stat(path, line, record)

    async def list(self, path: str) -> AsyncIterator[Stat]:
        path = checked(path)
        for name, line in sorted(await self._names.entries(path), key=lambda entry: entry[0]):
            if not name.startswith(HIDDEN) and not any(
                ord(c) < 0x20 or 0xD800 <= ord(c) < 0xE000 for c in name
            ):
                yield _stat(f"{path.rstrip('/')}/{name}", line)

    async def open(self, path: str) -> XrootdReader:
        path, token = checked(path), await self._bearer()
        file, record = await asyncio.gather(self._opened(path), self._record(path))

        async def again() -> OpenFile:
            return await self._names.open(path, token=token)

        return XrootdReader(file, _stat(path, file.line, record), again)

    async def checksum(self, path: str, algorithm: str) -> str:
        path, digest = checked(path), hasher(algorithm)
        stat = await self.stat(path)
        if (known := stat.checksums.get(algorithm)) is not None:
            return known
        value = None if stat.is_dir else await self._names.checksum(path, algorithm)
        if value is None:
            reader = await self.open(path)
            try:
                for start in range(0, reader.stat.size, PIECE):
                    piece = await reader.read(start, min(start + PIECE, reader.stat.size))
                    await asyncio.to_thread(digest.update, piece)
            finally:
                await reader.close()
            stat, value = reader.stat, digest.hexdigest()
        await self._keep(path, stat.version, {**stat.checksums, algorithm: value})
        return value

    async def space(self) -> Space:
        return await self._names.space()

    # --- changing ---

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> XrootdUpload:
        path = checked(path)
        if path == "/":
            raise Conflict("/: this is a directory; write to a name below it")
        tally = Tally(path, size, checksums)
        there, missing = await asyncio.gather(self._find(path), self._names.missing(path))
        check_replaceable(path, there, if_version=if_version, if_absent=if_absent)
        temporary = f"{parent(path).rstrip('/')}/{HIDDEN}{token_hex(8)}"
        file = await self._names.new_file(temporary, size)

        async def publish(sums: dict[str, str]) -> Stat:
            line = await self._verified(temporary, file, tally, sums)
            now, _ = await asyncio.gather(self._find(path), self._names.hold(path))
            check_replaceable(path, now, if_version=if_version, if_absent=if_absent)
            try:
                await self._names.move(temporary, path, replaces=now is not None)
            except NotFound:  # With some servers: its directory was deleted meanwhile.
                await self._names.make_dirs(parent(path))
                await self._names.move(temporary, path, replaces=now is not None)
            return _stat(path, line, Record(version_of(line), sums))

        async def discard() -> None:
            await file.close()
            with suppress(DomaError):
                await self._names.remove(temporary)
                for folder in missing:
                    await self._names.remove_dir(folder)

        return XrootdUpload(tally, file, publish, discard)

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        path = checked(path)
        if path == "/":
            raise Refused("/: the top of a store cannot be deleted; delete what lies below it")
        there, _ = await asyncio.gather(self._names.look(path), self._names.hold(path))
        check_version(path, _stat(path, there), version)
        if not there.is_dir:
            await self._names.remove(path)
        elif recursive:
            await self._clear(path)
        else:
            await self._names.remove_dir(path)

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        source, target = checked(source), checked(target)
        moving = _stat(source, await self._names.look(source))
        check_move(source, target)
        there, missing, _ = await asyncio.gather(
            self._find(target), self._names.missing(target), self._names.hold(target)
        )
        if missing:
            raise Conflict(f"{target}: the directory {missing[0]} does not exist; make it first")
        check_target(target, moving, there, overwrite)
        await self._names.move(source, target, replaces=there is not None)
        return there is not None

    async def make_dir(self, path: str) -> None:
        path = checked(path)
        there, missing = await asyncio.gather(self._find(path), self._names.missing(path))
        if there is not None:
            raise AlreadyExists(f"{path}: there is already a file or directory of this name")
        if missing:
            raise Conflict(f"{path}: the directory {missing[0]} does not exist; make it first")
        await self._names.make_dirs(path)

    async def close(self) -> None:
        await self._names.close()
        await self._client.close()

    # --- inside ---

    async def _bearer(self) -> str | None:
        return await self._token() if self._token is not None else bearer.get()

    async def _record(self, path: str) -> Record:
        return await self._records.get(self._names.remote(path), await self._bearer())

    async def _keep(self, path: str, version: str, sums: Mapping[str, str]) -> None:
        await self._records.put(self._names.remote(path), await self._bearer(), Record(version, sums))

    async def _find(self, path: str) -> Stat | None:
        line = await self._names.find(path)
        return None if line is None else _stat(path, line)

    async def _opened(self, path: str) -> OpenFile:
        """Open a file. Raises NotFound; Conflict for a directory."""
        try:
            file = await self._names.open(path)
        except (NotFound, Conflict, OriginFailed) as e:
            # A server may say of a directory that there is nothing to open.
            if (await self._names.look(path)).is_dir:
                raise Conflict(f"{path}: this is a directory; open a file below it") from e
            raise
        if file.line.is_dir:
            await file.close()
            raise Conflict(f"{path}: this is a directory; open a file below it")
        return file

    async def _verified(
        self, temporary: str, file: OpenFile, tally: Tally, sums: Mapping[str, str]
    ) -> StatLine:
        """Close what was written, see whether it is what was sent, keep the checksums with it."""
        if self._fsync:
            await file.sync()
        await file.finish()
        line = await self._names.look(temporary)
        who = f"{tally.path}: {self._names.name} stored"
        if line.size != tally.written:
            raise OriginFailed(f"{who} {line.size} bytes, sent were {tally.written}")
        stored = await self._names.checksum(temporary, "adler32")
        if stored is not None and not same("adler32", stored, sums["adler32"]):
            raise OriginFailed(f"{who} adler32 {stored}, sent was {sums['adler32']}")
        await self._keep(temporary, version_of(line), sums)
        return line

    async def _clear(self, path: str) -> None:
        """Delete a directory with everything in it but young temporaries: they are uploads under way.

        A directory that holds such stays for them.
        """
        if path.count("/") > DEEPEST:
            raise OriginFailed(f"{path[:99]}…: over {DEEPEST} directories in each other; begin further down")
        files: list[str] = []
        under_way = False
        for name, line in await self._names.entries(path):
            full = f"{path.rstrip('/')}/{name}"
            if line.is_dir:
                await self._clear(full)
            elif name.startswith(HIDDEN) and time.time() - line.modified < STALE:
                under_way = True
            else:
                files.append(full)
        for i in range(0, len(files), AT_ONCE):
            done = await asyncio.gather(*map(self._cleared, files[i : i + AT_ONCE]), return_exceptions=True)
            if failed := [error for error in done if error is not None]:
                raise failed[0]
        try:
            await self._names.remove_dir(path)
        except Conflict:
            if not under_way:
                raise

    async def _cleared(self, path: str) -> None:
        with suppress(NotFound):
            await self._names.remove(path)


def _place(url: str) -> tuple[Origin, str]:
    """Server and folder. Raises ConfigError."""
    scheme, mark, rest = url.partition("://")
    try:
        known = SCHEMES[scheme.lower()] + mark + rest
        return origin_of(known), normalise("/" + urlsplit(known).path)
    except KeyError as e:
        raise ConfigError(f"{scheme}: this engine speaks root and roots only; correct the endpoint") from e
    except DomaError as e:
        raise ConfigError(f"{e.message}; correct the endpoint") from e


def _stat(path: str, line: StatLine, record: Record | None = None) -> Stat:
    version = version_of(line)
    locality = Locality.DISK
    if line.flags & OFFLINE:
        locality = Locality.TAPE
    elif line.flags & BACKUP:
        locality = Locality.DISK_AND_TAPE
    sums = record.sums if record is not None and record.of == version else {}
    return Stat(path, 0 if line.is_dir else line.size, version, line.modified, line.is_dir, sums, locality)
