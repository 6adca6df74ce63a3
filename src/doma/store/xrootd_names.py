"""Names at a root:// deployment: looked up, listed, moved. The rules of a store stand above.

Source: §8 and §9 of the project's root:// contract; XRootD 5.5.3 where that says nothing: ``mkdir`` of a
directory that exists and ``rmdir`` of one that does not both succeed, ``rm`` takes empty directories, ``mv``
replaces files in one step and makes parents, and there is no code for "not a directory".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import parse_qs

from doma.core.checksum import parse_checksum
from doma.core.errors import (
    AlreadyExists,
    BadPath,
    BadRequest,
    Conflict,
    DomaError,
    NotFound,
    OriginFailed,
    Unsupported,
)
from doma.core.paths import parent
from doma.net.xroot_client import Plea, XrootClient
from doma.net.xroot_errors import FS_ERROR
from doma.net.xroot_frames import (
    MAKE_PATH,
    NOTHING,
    P_DIRLIST,
    P_MKDIR,
    P_MV,
    P_QUERY,
    P_STAT,
    WITH_STAT,
    Code,
    Open,
    Query,
)
from doma.net.xroot_sinks import SMALL, Gather
from doma.net.xroot_text import StatLine, listing, with_cgi
from doma.store.protocol import Space
from doma.store.xrootd_file import OpenFile, line_of, open_file

Bearer = Callable[[], Awaitable[str | None]]

LISTING = 64 << 20
"""Bytes of one directory's listing at most: some 500,000 entries."""
DIGEST_TIME = 300.0
"""Seconds that a server may take to compute a checksum, as gfal2 grants."""
SUMS_AT_ONCE = 2
"""Checksums that a server is asked for at a time: at its fifth XRootD says to come back in 30 s."""
HOLD = 2.0
"""Seconds for which a replaced file is held."""
FILE_MODE, FOLDER_MODE = 0o644, 0o755


class Names:
    """Paths of a store at its server.

    Args:
        client: To ask with.
        name: ``root://host:port`` for messages.
        prefix: Folder at the server that is the top of the store.
        bearer: Gives the token of the current request.
    """

    def __init__(self, client: XrootClient, name: str, prefix: str, bearer: Bearer) -> None:
        self._client = client
        self.name = name
        self._prefix = prefix
        self._bearer = bearer
        self._offered: frozenset[str] | None = None
        self._sums = asyncio.Semaphore(SUMS_AT_ONCE)
        self._held: set[asyncio.Task[None]] = set()

    def remote(self, path: str) -> str:
        """A path at the server. Raises BadPath: root:// cannot carry it."""
        if "?" in path:
            raise BadPath(f"{path}: root:// cannot carry a '?' in a name; choose another name")
        return (self._prefix.rstrip("/") + path) if path != "/" else self._prefix

    # --- looking ---

    async def look(self, path: str) -> StatLine:
        """Raises NotFound, also below a file."""
        try:
            return line_of(await self._ask("stat", Code.STAT, P_STAT.pack(0, bytes(4)), path))
        except OriginFailed as e:
            if _is_below_a_file(e):
                raise NotFound(f"{path}: nothing is there; a directory above it is a file") from e
            raise

    async def find(self, path: str) -> StatLine | None:
        """What is there, if anything."""
        try:
            return await self.look(path)
        except NotFound:
            return None

    async def missing(self, path: str) -> list[str]:
        """Directories above a path that do not exist, deepest first. Raises Conflict: one is a file."""
        absent: list[str] = []
        folder = path
        while folder != "/":
            folder = parent(folder)
            there = await self.find(folder)
            if there is not None and not there.is_dir:
                raise Conflict(f"{path}: {folder} is a file; only a directory can hold names")
            if there is not None:
                break
            absent.append(folder)
        return absent

    async def entries(self, path: str) -> list[tuple[str, StatLine]]:
        """Everything in a directory, hidden names too. Raises NotFound, Conflict for a file."""
        try:
            told = await self._ask("list", Code.DIRLIST, P_DIRLIST.pack(WITH_STAT), path, LISTING)
        except (OriginFailed, Conflict) as e:
            if not (await self.look(path)).is_dir:
                raise Conflict(f"{path}: this is a file; only a directory can be listed") from e
            raise
        return list(listing(told))

    async def open(self, path: str, *, token: str | None = None) -> OpenFile:
        """A file to read; ``token`` is for when the current request has none."""
        return await open_file(self._client, self.remote(path), await self._bearer() or token, Open.READ)

    async def checksum(self, path: str, algorithm: str) -> str | None:
        """A checksum as the server computes it; None: it does not offer that one."""
        if self._offered is None:
            self._offered = await self._algorithms()
        if algorithm not in self._offered:
            return None
        body, cgi = P_QUERY.pack(Query.CHECKSUM, bytes(4)), f"cks.type={algorithm}"
        try:
            async with self._sums:
                told = await self._ask("checksum", Code.QUERY, body, path, cgi=cgi, patience=DIGEST_TIME)
            words = told.partition(b"\0")[0].decode("latin-1").split()
            # Asked for one that it does not know, 5.5.3 gives its usual one.
            return parse_checksum(algorithm, words[1]) if words[:1] == [algorithm] and words[1:] else None
        except (Unsupported, BadRequest):
            return None

    async def space(self) -> Space:
        """Bytes of the deployment, as it counts them."""
        told = await self._ask("space", Code.QUERY, P_QUERY.pack(Query.SPACE, bytes(4)), "/")
        found = parse_qs(told.partition(b"\0")[0].decode("latin-1"))
        try:
            return Space(int(found["oss.used"][0]), int(found["oss.free"][0]))
        except (KeyError, ValueError) as e:
            raise OriginFailed(f"{self.name}: does not say how much space it has") from e

    # --- changing ---

    async def new_file(self, path: str, size: int | None) -> OpenFile:
        """A new file open for writing; its parents are made. Raises AlreadyExists, StorageFull."""
        options = Open.NEW | Open.UPDATE | Open.MKPATH
        cgi = f"oss.asize={size}" if size else ""
        return await open_file(
            self._client, self.remote(path), await self._bearer(), options, mode=FILE_MODE, cgi=cgi
        )

    async def make_dirs(self, path: str) -> None:
        """A directory, and those above it. It may be there already."""
        await self._ask("mkdir", Code.MKDIR, P_MKDIR.pack(MAKE_PATH, FOLDER_MODE), path)

    async def remove(self, path: str) -> None:
        """A file."""
        await self._change("delete", Code.RM, path)

    async def remove_dir(self, path: str) -> None:
        """An empty directory. Raises Conflict: it is not empty."""
        try:
            await self._change("delete", Code.RMDIR, path)
        except (OriginFailed, AlreadyExists) as e:
            if "not empty" in e.message.lower() or isinstance(e, AlreadyExists):
                raise Conflict(f"{path}: the directory is not empty; delete recursively or empty it") from e
            raise

    async def move(self, source: str, target: str, *, replaces: bool = False) -> None:
        """Rename; a file at the target is replaced in one step.

        While somebody has the replaced file open, XRootD 5 and 6 give the old content to whoever opens that
        name, until it is the source of a rename: so it is renamed to itself.
        """
        await self._move(source, target)
        if replaces:
            with suppress(DomaError):
                await self._move(target, target)

    async def hold(self, path: str) -> None:
        """Keep the inode of a young file in use until its second is over; best effort."""
        try:
            file = await self.open(path)
        except DomaError:
            return
        if abs(time.time() - file.line.modified) > 5 * HOLD or len(self._held) > 256:
            await file.close()
            return
        task = asyncio.create_task(_closed_later(file))
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def close(self) -> None:
        """Let go of what is held. Idempotent."""
        held = tuple(self._held)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    # --- inside ---

    async def _ask(
        self,
        what: str,
        code: int,
        body: bytes,
        path: str,
        most: int = SMALL,
        *,
        cgi: str = "",
        patience: float | None = None,
    ) -> bytes:
        """A request that may be repeated."""
        remote = self.remote(path)
        plea = Plea(
            f"{path}: {what}",
            code,
            lambda _, more: (body, with_cgi(remote, cgi, more)),
            patience=patience,
            sink=lambda: Gather(most),
        )
        return (await self._client.ask(plea, await self._bearer())).body

    async def _move(self, source: str, target: str) -> None:
        first, second = self.remote(source), self.remote(target)

        def build(_: object, more: str) -> tuple[bytes, bytes]:
            old = with_cgi(first, more)
            return P_MV.pack(len(old)), old + b" " + with_cgi(second, more)

        plea = Plea(f"{source}: move to {target}", Code.MV, build, repeatable=False)
        await self._client.ask(plea, await self._bearer())

    async def _change(self, what: str, code: int, path: str) -> None:
        remote = self.remote(path)
        plea = Plea(f"{path}: {what}", code, lambda _, more: (NOTHING, with_cgi(remote, more)), False)
        await self._client.ask(plea, await self._bearer())

    async def _algorithms(self) -> frozenset[str]:
        body = P_QUERY.pack(Query.CONFIG, bytes(4))
        plea = Plea(f"{self.name}: config", Code.QUERY, lambda *_: (body, b"chksum\0"))
        try:
            told = (await self._client.ask(plea, await self._bearer())).body
        except Unsupported:
            return frozenset()
        words = told.partition(b"\0")[0].decode("latin-1").strip().split(",")
        # An unknown key is answered by itself.
        return frozenset(word.rpartition(":")[2] for word in words) - {"chksum"}


async def _closed_later(file: OpenFile) -> None:
    await asyncio.sleep(HOLD)
    await file.close()


def _is_below_a_file(error: DomaError) -> bool:
    """Whether an error means ENOTDIR."""
    return error.detail.get("xrootd") == FS_ERROR and "not a directory" in error.message.lower()
