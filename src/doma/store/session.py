"""Uploads that come in parts and outlive their request, their connection and this process.

The bytes lie in ``.doma/parts/<key>``, locked by the request that writes; beside them is what is known of
them: an adler32 for each whole block of 64 MiB and one for the rest. It is written with every block and at
the end of every request. What a kill interrupted is read again before anybody goes on, and kept as far as it
fits its checksums.

Source: rule W49 of the storage contract.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from doma.core.checksum import combine_adler32, hasher
from doma.core.errors import Conflict, TooManyRequests
from doma.store.oserrors import translated
from doma.store.protocol import PIECE, Buffer, Stat
from doma.store.quota import Held
from doma.store.upload import FileUpload, Temporary
from doma.store.writing import Tally

BLOCK = 64 << 20
EMPTY = "00000001"
"""adler32 of nothing."""


class Blocks:
    """adler32 by blocks: a :class:`~doma.core.checksum.Hasher` that can be kept and gone on with."""

    def __init__(self, whole: Sequence[str] = (), tail: str = EMPTY, rest: int = 0) -> None:
        self.whole = list(whole)
        self.tail = tail
        self.rest = rest
        """Bytes of the last, unfinished block."""

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self.whole) * BLOCK + self.rest

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            piece = view[: BLOCK - self.rest]
            step = hasher("adler32")
            step.update(piece)
            self.tail = combine_adler32(self.tail, step.hexdigest(), len(piece))
            self.rest += len(piece)
            if self.rest == BLOCK:
                self.whole.append(self.tail)
                self.tail, self.rest = EMPTY, 0
            view = view[len(piece) :]

    def hexdigest(self) -> str:
        value = EMPTY
        for one in self.whole:
            value = combine_adler32(value, one, BLOCK)
        return combine_adler32(value, self.tail, self.rest)


class _Kept(NamedTuple):
    """What is known of a session."""

    blocks: Blocks
    size: int
    whole: bool
    """The file ends just there."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where one session lies. Calls block.

    Args:
        folder: Descriptor of the directory of sessions.
        key: Its name.
        path: Where it is to be published.
        size: Bytes of the whole; None: those that it was begun with.
    """

    folder: int
    key: str
    path: str
    size: int | None = None

    def open(self, held: Held | None = None) -> tuple[Temporary, Blocks]:
        """The session, locked, and what is verified of it; whatever else was in it is cut off.

        Args:
            held: Bytes that are set aside for it.

        Raises:
            TooManyRequests: another request is writing to it.
            Conflict: it was begun for another size.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                fd = os.open(self.key, flags, 0o644, dir_fd=self.folder)
            except PermissionError:  # A kill came between its last byte and its publication.
                os.chmod(self.key, 0o644, dir_fd=self.folder)
                fd = os.open(self.key, flags, 0o644, dir_fd=self.folder)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    blocks = self._verified(fd)
                    os.ftruncate(fd, blocks.size)
                    os.lseek(fd, 0, os.SEEK_END)
                    self.save(blocks, whole=False)
                    return Temporary(
                        self.folder, self.key, fd, self.path, held or Held(None, self.path)
                    ), blocks
                os.close(fd)  # Swept between open and lock.
            except BlockingIOError as e:
                os.close(fd)
                raise TooManyRequests(
                    f"{self.path}: another request is writing to this upload; ask again", retry_after=5
                ) from e
            except BaseException:  # a cancellation, too: undone, and raised on
                os.close(fd)
                raise

    def save(self, blocks: Blocks, *, whole: bool) -> None:
        """Keep what is known.

        Args:
            blocks: As far as the bytes are in the file.
            whole: Nobody goes on writing beyond that for now.
        """
        state = {
            "path": self.path,
            "size": self.size if self.size is not None else self._known().size,
            "blocks": blocks.whole,
            "tail": blocks.tail,
            "rest": blocks.rest,
            "whole": _boot() if whole else "",
        }
        fresh = f"{self.key}.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=self.folder)
        with os.fdopen(fd, "w") as file:
            json.dump(state, file)
        os.rename(fresh, f"{self.key}.json", src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def others(self) -> list[tuple[str, int]]:
        """Path and announced bytes of the other sessions that wait for their clients, if this one is new."""
        if os.access(f"{self.key}.json", os.F_OK, dir_fd=self.folder):
            return []
        keys = [name.removesuffix(".json") for name in os.listdir(self.folder) if name.endswith(".json")]
        return [found for key in keys if (found := _waiting(self.folder, key)) is not None]

    def forget(self) -> None:
        """Drop what is known of a session that is over."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.key}.json", dir_fd=self.folder)

    def offset(self) -> int | None:
        """Bytes that are here and verified; None: there is no session. Of one in use: those that are kept."""
        try:
            os.stat(f"{self.key}.json", dir_fd=self.folder)
        except FileNotFoundError:
            return None
        try:
            temporary, blocks = self.open()
        except TooManyRequests:
            return self._known().blocks.size
        self.save(blocks, whole=True)
        temporary.keep()
        return blocks.size

    def _known(self) -> _Kept:
        """What was kept.

        Raises:
            Conflict: it was begun for another size.
        """
        try:
            fd = os.open(f"{self.key}.json", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder)
            with os.fdopen(fd) as file:
                state = json.load(file)
            size, whole = int(state["size"]), state["whole"] == _boot() != ""
            kept = _Kept(Blocks(state["blocks"], state["tail"], state["rest"]), size, whole)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return _Kept(Blocks(), self.size or 0, whole=False)
        if self.size not in {None, size}:
            raise Conflict(
                f"{self.path}: this upload was begun for {size} bytes, not {self.size};"
                " use another X-Upload-Id"
            )
        return kept

    def _verified(self, fd: int) -> Blocks:
        known = self._known()
        kept = known.blocks
        if known.whole and os.fstat(fd).st_size == kept.size:
            return kept
        good = Blocks()
        for value, length in [*((one, BLOCK) for one in kept.whole), (kept.tail, kept.rest)]:
            found = Blocks()
            start = good.size
            for at in range(start, start + length, PIECE):
                found.update(os.pread(fd, min(PIECE, start + length - at), at))
            if found.size != length or found.hexdigest() != value:
                break
            good = Blocks([*good.whole, value]) if length == BLOCK else Blocks(good.whole, value, length)
        return good


class FileSession(FileUpload):
    """One request's use of a session; ends in ``commit``, ``abort`` or ``pause``."""

    def __init__(
        self,
        parts: Parts,
        temporary: Temporary,
        blocks: Blocks,
        tally: Tally,
        pool: Executor,
        place: Callable[[FileUpload, Temporary], Stat],
        done: Callable[[FileUpload, Stat | None], None],
        if_version: str | None,
        if_absent: bool,
    ) -> None:
        super().__init__(temporary, tally, pool, place, done, if_version, if_absent)
        self._parts = parts
        self._blocks = blocks
        self._kept = len(blocks.whole)

    @property
    def offset(self) -> int:
        return self.tally.written

    async def check(self, start: int, data: Buffer) -> None:
        def compare() -> None:
            with translated(self.tally.path):
                here = os.pread(self._temporary.fd, len(data), start)
            if here != data:
                raise Conflict(
                    f"{self.tally.path}: bytes from {start} on differ from those that came before;"
                    " begin again with another X-Upload-Id"
                )

        await asyncio.get_running_loop().run_in_executor(self._pool, compare)

    async def pause(self) -> None:
        if not self._over:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._pause)
            self._finish(None)

    async def abort(self) -> None:
        if not self._over:
            await super().abort()
            await asyncio.get_running_loop().run_in_executor(self._pool, self._parts.forget)

    def _append(self, data: Buffer) -> None:
        super()._append(data)
        if len(self._blocks.whole) > self._kept:
            self._kept = len(self._blocks.whole)
            with translated(self.tally.path):
                self._parts.save(self._blocks, whole=False)

    def _pause(self) -> None:
        with translated(self.tally.path):
            self._parts.save(self._blocks, whole=not self._broken)
            self._temporary.keep()

    def _commit(self) -> Stat:
        late = {name: hasher(name) for name in self.tally.late}
        for start in range(0, self.tally.written if late else 0, PIECE):
            with translated(self.tally.path):
                data = os.pread(self._temporary.fd, PIECE, start)
            for one in late.values():
                one.update(data)
        self.tally.learn(late)
        try:
            return super()._commit()
        finally:
            self._parts.forget()


def _waiting(folder: int, key: str) -> tuple[str, int] | None:
    """Path and announced bytes of a session; None: it is over, or in use, so that its bytes are set aside."""
    try:
        fd = os.open(key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(fd)
        with os.fdopen(os.open(f"{key}.json", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)) as file:
            state = json.load(file)
        return str(state["path"]), int(state["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _boot() -> str:
    """A name of this run of the machine: what was written in it is in the file, synced or not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
