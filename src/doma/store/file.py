"""Files of a folder: the ``file:///`` engine.

What a client writes goes to a temporary in ``.doma`` of the same file system, is verified, synced and renamed
into place with its checksums. What others put into the folder is served as well. No path, symbolic link or
race of them leads out of the folder (:mod:`doma.store.beneath`); a kill at any moment leaves the old file or
the new one, whole.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from doma.core.checksum import Hasher, hasher
from doma.core.errors import Conflict, DomaError, Refused
from doma.core.events import Emit, Event
from doma.core.paths import checked
from doma.store.content import Content
from doma.store.folder import AT_ONCE, Folder
from doma.store.oserrors import translate, translated
from doma.store.pace import Pace
from doma.store.protocol import Buffer, Space, Stat
from doma.store.quota import Quota
from doma.store.session import Blocks, FileSession
from doma.store.upload import FileUpload, Temporary
from doma.store.writing import Tally, check_span

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
HOT = 256
"""Files kept open for the fast path; each takes up to two descriptors and one map."""
BATCH = 256
"""Entries of a listing that one trip to a thread looks up."""


class FileReader:
    """One version of a file, open; what others rename or delete meanwhile does not matter."""

    def __init__(self, content: Content, pool: ThreadPoolExecutor) -> None:
        self._stat = content.stat
        self._content: Content | None = content
        self._pool = pool

    @property
    def stat(self) -> Stat:
        return self._stat

    async def read(self, start: int, stop: int) -> Buffer:
        content = self._content
        if content is None:
            raise Conflict(f"{self._stat.path}: this reader is closed; open the file again")
        check_span(self._stat, start, stop)
        view = content.view(start, stop)
        if view is None:
            # The bound method keeps the descriptor open even if the reader is closed meanwhile.
            view = await asyncio.get_running_loop().run_in_executor(self._pool, content.pread, start, stop)
        return view

    async def close(self) -> None:
        self._content = None


class FileStore:
    """A folder as a store.

    Args:
        root: The folder; made if it is missing, unless ``read_only``.
        read_only: Write nothing at all into it, and take its files for changeable by others.
        fsync: Make files durable before they are published.
        quota: Limits of what may lie in it; of this store alone.
        emit: Takes ``file.landed``, ``file.deleted``, ``file.moved``.

    Raises:
        ConfigError: the folder is not there or cannot be used.
    """

    def __init__(
        self,
        root: Path,
        *,
        read_only: bool = False,
        fsync: bool = True,
        quota: Quota | None = None,
        emit: Emit | None = None,
    ) -> None:
        self._read_only = read_only
        self._emit = emit
        self._folder = Folder(root, read_only=read_only, fsync=fsync, quota=quota)
        self._prefix = self._folder.tree.real.rstrip("/")
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="doma-file")
        self._sum_pool = ThreadPoolExecutor(2, thread_name_prefix="doma-sum")
        self._sums: dict[tuple[str, str, str], asyncio.Future[str]] = {}
        self._hot: OrderedDict[str, Content] = OrderedDict()
        self._uploads: set[FileUpload] = set()
        self._pace = Pace()
        self._syncs = fsync

    async def stat(self, path: str) -> Stat:
        path = checked(path)
        return await self._soon(path, self._folder.stat, path)

    async def list(self, path: str) -> AsyncIterator[Stat]:
        path = checked(path)
        names = await self._run(path, self._folder.names, path)
        for i in range(0, len(names), BATCH):
            for entry in await self._run(path, self._folder.look_up, path, names[i : i + BATCH]):
                yield entry

    async def open(self, path: str) -> FileReader:
        path = checked(path)
        return FileReader(await self._content(path), self._pool)

    def peek(self, path: str) -> Content | None:
        content = self._hot.get(path)
        if content is not None:
            if content.is_at(self._prefix + path):
                self._hot.move_to_end(path)
                return content
            del self._hot[path]
        return None

    def warm(self, path: str) -> Content | None:
        if not self._pace.quick:
            return None
        try:
            # Only names with a leading dot can mean anything but themselves.
            if "/." in path and checked(path) != path:
                return None
            return self._keep(path, self._now(path, partial(self._folder.open, path)))
        except DomaError:
            return None  # the whole road says it in full

    async def checksum(self, path: str, algorithm: str) -> str:
        path = checked(path)
        content = await self._content(path)
        if (known := content.stat.checksums.get(algorithm)) is not None:
            return known
        key = path, content.stat.version, algorithm
        work = self._sums.get(key)
        if work is None:
            digest = hasher(algorithm)
            work = asyncio.wrap_future(self._sum_pool.submit(self._sum, content, algorithm, digest))
            self._sums[key] = work
            work.add_done_callback(lambda _: self._sums.pop(key, None))
        # Shielded: a client that gives up (gfal2 after 300 s) finds the value at its next try.
        value = await asyncio.shield(work)
        self._hot.pop(path, None)  # Its stat does not know the new value.
        return value

    async def space(self) -> Space:
        return await self.space_at("/")

    async def space_at(self, path: str) -> Space:
        path = checked(path)
        return await self._run(path, self._folder.space, path)

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> FileUpload:
        path = self._writable(path)
        tally = Tally(path, size, checksums)
        room = (size or 0) + sum(upload.missing for upload in self._uploads)
        begin = partial(self._folder.begin, path, size or 0, room, if_version, if_absent)
        if self._pace.quick:
            temporary = self._now(path, begin)
        else:
            begun = self._submit(path, self._timed, begin)
            try:
                temporary = await asyncio.wrap_future(begun)
            except asyncio.CancelledError:
                begun.add_done_callback(_discard)
                raise
        upload = FileUpload(temporary, tally, self._pool, self._publish, self._done, if_version, if_absent)
        upload.inline = self._pace.quick and not self._syncs and temporary.replaces <= AT_ONCE
        self._uploads.add(upload)
        return upload

    async def resume(
        self,
        path: str,
        key: str,
        *,
        size: int,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> FileSession:
        path = self._writable(path)
        parts = await self._run(path, self._folder.parts, path, key, size)
        room = size + sum(upload.missing for upload in self._uploads)
        begun = self._submit(path, self._folder.resume, parts, room, if_version, if_absent)
        try:
            temporary, blocks = await asyncio.wrap_future(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(_let_go)
            raise
        try:
            tally = Tally(path, size, checksums, adler=blocks, written=blocks.size)
        except BaseException:  # a cancellation, too: undone, and raised on
            temporary.keep()
            raise
        upload = FileSession(
            parts, temporary, blocks, tally, self._pool, self._publish, self._done, if_version, if_absent
        )
        self._uploads.add(upload)
        return upload

    async def resumable(self, path: str, key: str) -> int | None:
        path = self._writable(path)
        parts = await self._run(path, self._folder.parts, path, key)
        return await self._run(path, parts.offset)

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        path = self._writable(path)
        if recursive or self._syncs:
            await self._run(path, self._folder.delete, path, version, recursive)
        else:
            await self._soon(path, self._folder.delete, path, version, recursive)
        self._gone(path)

    def land(self, path: str, data: Buffer) -> Stat | None:
        if self._read_only or self._syncs or not self._pace.quick:
            return None
        room = len(data)
        if self._uploads:
            room += sum(upload.missing for upload in self._uploads)
        began = time.perf_counter()
        stat = self._folder.land(path, data, room)
        self._pace.called(time.perf_counter() - began)
        if stat is not None:
            self._told(stat)
        return stat

    def remove(self, path: str) -> int | None:
        if self._read_only or self._syncs or not self._pace.quick:
            return None
        began = time.perf_counter()
        try:
            size = self._folder.remove(path)
        except OSError as e:
            raise translate(e, path) from e
        self._pace.called(time.perf_counter() - began)
        if size is not None:
            self._gone(path)
        return size

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        source, target = self._writable(source), checked(target)
        replaced = await self._run(source, self._folder.rename, source, target, overwrite)
        for path in [path for path in self._hot if path == source or path.startswith(source + "/")]:
            del self._hot[path]
        if self._emit is not None:
            self._emit(Event("file.moved", target, {"source": source}))
        return replaced

    async def link(self, source: str, target: str, *, version: str) -> Stat:
        source, target = checked(source), self._writable(target)
        stat = await self._run(source, self._folder.link, source, target, version)
        self._told(stat)
        return stat

    async def make_dir(self, path: str) -> None:
        path = self._writable(path)
        await self._run(path, self._folder.make_dir, path)

    async def annotations(self, path: str) -> Mapping[str, str]:
        path = checked(path)
        return await self._run(path, self._folder.annotations, path)

    async def annotate(self, path: str, changes: Mapping[str, str | None]) -> None:
        path = self._writable(path)
        await self._run(path, self._folder.annotate, path, changes)

    async def close(self) -> None:
        for upload in tuple(self._uploads):
            await (upload.pause() if isinstance(upload, FileSession) else upload.abort())
        self._hot.clear()
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._sum_pool.shutdown)
        self._folder.close()

    async def _content(self, path: str) -> Content:
        content = self.peek(path)
        if content is None:
            begin = partial(self._folder.open, path)
            content = self._keep(path, await self._run(path, self._timed, begin))
        return content

    def _keep(self, path: str, content: Content) -> Content:
        self._hot[path] = content
        if len(self._hot) > HOT:
            self._hot.popitem(last=False)
        return content

    async def _soon(self, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a short call: at once while the disk is quick, else in a thread."""
        if self._pace.quick:
            return self._now(path, partial(call, *args, **kwargs))
        return await self._run(path, self._timed, partial(call, *args, **kwargs))

    def _now(self, path: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return call()
        except OSError as e:
            raise translate(e, path) from e
        finally:
            self._pace.called(time.perf_counter() - began)

    def _timed(self, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return call()
        finally:
            self._pace.threaded(time.perf_counter() - began)

    async def _run(self, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._submit(path, call, *args, **kwargs))

    def _submit(self, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        def work() -> T:
            with translated(path):
                return call(*args, **kwargs)

        return self._pool.submit(work)

    def _sum(self, content: Content, algorithm: str, digest: Hasher) -> str:
        with translated(content.stat.path):
            return self._folder.sum(content, algorithm, digest)

    def _publish(self, upload: FileUpload, temporary: Temporary) -> Stat:
        with translated(upload.tally.path):
            return self._folder.publish(
                temporary,
                upload.tally,
                if_version=upload.if_version,
                if_absent=upload.if_absent,
                named=upload.named,
            )

    def _done(self, upload: FileUpload, stat: Stat | None) -> None:
        self._uploads.discard(upload)
        if stat is not None:
            self._told(stat)

    def _told(self, stat: Stat) -> None:
        """Tell of a new version."""
        self._hot.pop(stat.path, None)
        if self._emit is not None:
            facts = {"size": stat.size, "version": stat.version, "checksums": dict(stat.checksums)}
            self._emit(Event("file.landed", stat.path, facts))

    def _gone(self, path: str) -> None:
        """Tell of a file or directory that was deleted."""
        self._hot.pop(path, None)
        if self._emit is not None:
            self._emit(Event("file.deleted", path))

    def _writable(self, path: str) -> str:
        path = checked(path)
        if self._read_only:
            raise Refused(f"{path}: this store is read-only; write to another endpoint")
        return path


def _discard(begun: "Future[Temporary]") -> None:
    """Remove the temporary of a caller that was cancelled while it was made."""
    if not begun.cancelled() and begun.exception() is None:
        begun.result().discard()


def _let_go(begun: "Future[tuple[Temporary, Blocks]]") -> None:
    """Leave an upload in parts for its next request, when the caller was cancelled while it was opened."""
    if not begun.cancelled() and begun.exception() is None:
        begun.result()[0].keep()
