"""What every place of bytes can do, and what only some can.

Paths are absolute within the store, already decoded and normalised (``/a/b c.root``): see
:func:`doma.core.paths.normalise`. Names that begin with ``.doma`` belong to the engine and are never
listed, read or written by path.

Versions: ``Stat.version`` is a strong validator. It changes with every replacement of the content and is
the text between the quotes of the ETag. A :class:`Reader` holds one version: what began on the old
content ends on the old content or fails, and is never a mix.

Writing: bytes go to a hidden temporary; :meth:`Upload.commit` verifies size and checksums and publishes
in one rename. A reader sees the old file or the new one, whole.

Idempotent, so safe to repeat after a failure: stat, list, open, checksum, make_dirs, abort, and delete
with a version. Engine errors are translated in the engine: nothing above sees ``OSError`` or ``httpx``.

Source: storage.md W42-W50 of the project's contracts; object_store (Rust) for the cut of the trait.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from doma.core.errors import DomaError

Buffer = bytes | bytearray | memoryview

PIECE = 1 << 20
"""Bytes a caller should read or write at once at most (1 MiB): bounds memory."""


class Locality(StrEnum):
    """Where the bytes of a file are now, in the words of the WLCG Tape REST API."""

    DISK = "DISK"
    TAPE = "TAPE"
    DISK_AND_TAPE = "DISK_AND_TAPE"
    LOST = "LOST"
    NONE = "NONE"
    """The file is empty: it has no bytes that could be anywhere."""
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of a file or directory without reading it."""

    path: str
    size: int
    """Bytes; 0 for a directory."""
    version: str
    modified: float
    """Unix seconds UTC."""
    is_dir: bool = False
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Algorithm (``adler32``, ``crc32c``, ``md5``, ``sha-256``) to lower-case hex, as far as stored."""
    locality: Locality = Locality.DISK
    upload: str = ""
    """The client's id of the upload that published it, if it named one and the store keeps it."""
    annotated: bool = field(default=True, compare=False)
    """False: it surely has no properties of its own (:class:`CanAnnotate`)."""


class Reader(Protocol):
    """One version of one file, open for reading."""

    @property
    def stat(self) -> Stat: ...

    async def read(self, start: int, stop: int) -> Buffer:
        """Exactly the bytes ``[start, stop)``; the caller keeps ``stop - start <= PIECE``.

        Raises:
            StorageUnavailable, OriginFailed, CorruptFile: the bytes cannot be had; never a short answer.
            PreconditionFailed: this version is gone, the file was changed at its source; open it again.
            RangeNotSatisfiable: the file does not have these bytes.
        """

    async def close(self) -> None:
        """Give up the file. Idempotent."""


class Upload(Protocol):
    """A write under way, invisible until :meth:`commit`."""

    async def write(self, data: Buffer) -> None:
        """Append; the buffer may be reused by the caller after the call."""

    async def commit(self) -> Stat:
        """Verify, make durable, publish in one step.

        Raises:
            WrongSize, ChecksumMismatch: nothing was published.
            PreconditionFailed: ``if_version``/``if_absent`` no longer holds; nothing was published.
        """

    async def abort(self) -> None:
        """Leave no trace. Idempotent, and without effect after a commit."""


class Store(Protocol):
    """A place of bytes. Every method may raise StorageUnavailable; see ``doma.core.errors``."""

    async def stat(self, path: str) -> Stat:
        """Raises NotFound."""

    def list(self, path: str) -> AsyncIterator[Stat]:
        """Children of a directory, sorted by name, streamed. Raises NotFound, Conflict for a file."""

    async def open(self, path: str) -> Reader:
        """Raises NotFound; Conflict for a directory."""

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> Upload:
        """Begin to write a file; missing parents are made (grid habit).

        Args:
            path: The name to publish under.
            size: Bytes announced; commit refuses any other, space is checked at once.
            checksums: Algorithm to lower-case hex that the content must have.
            if_version: Publish only if this version is there (``*``: any version).
            if_absent: Publish only if nothing is there.

        Raises:
            Conflict: the path is a directory, or a parent is a file.
            PreconditionFailed, StorageFull: at once when that is already sure.
        """

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        """Remove a file (only this version, if given) or a directory.

        Raises:
            NotFound, PreconditionFailed; Conflict for a non-empty directory without ``recursive``.
        """

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        """Move atomically; True if the target existed and was replaced.

        Raises:
            NotFound: no source. Conflict: the target's parent is missing or a file, or the target lies
            below the source. PreconditionFailed: the target exists and ``overwrite`` is false.
        """

    async def make_dir(self, path: str) -> None:
        """Raises AlreadyExists (file or directory), Conflict when the parent is missing or a file."""

    async def checksum(self, path: str, algorithm: str) -> str:
        """Lower-case hex, computed now (off the event loop) and stored if it was not known.

        Raises:
            NotFound, Unsupported.
        """

    async def close(self) -> None:
        """Release everything. Idempotent."""


class Hot(Protocol):
    """A file whose bytes can be had without waiting: what the fast path of a door works on."""

    @property
    def stat(self) -> Stat: ...

    def view(self, start: int, stop: int) -> memoryview | None:
        """The bytes ``[start, stop)`` if they are in memory and verified, else None (take the slow road).

        The view stays valid and unchanged as long as it is referenced.
        """

    def fileno(self, start: int, stop: int) -> int | None:
        """A descriptor from which ``os.sendfile`` may send ``[start, stop)`` at the same offsets, or None.

        Valid while this object is referenced; the file behind it is immutable.
        """


@runtime_checkable
class CanPeek(Protocol):
    """A store that can answer for hot files synchronously, in microseconds."""

    def peek(self, path: str) -> Hot | None:
        """The current version of the file if that can be said without waiting, else None."""


@runtime_checkable
class CanHeed(Protocol):
    """A store in front of others, where a query might mean another file."""

    def heed(self, path: str, query: str) -> None:
        """Raises BadRequest: the query of a request for this file, without ``?``, says more than who asks."""


@runtime_checkable
class CanWarm(CanPeek, Protocol):
    """A store that can open files synchronously, in microseconds."""

    def warm(self, path: str) -> Hot | None:
        """Open the current version for :meth:`peek`; None: nothing was done, ``Store.open`` tells why."""


@runtime_checkable
class CanRemove(Protocol):
    """A store that can delete a file synchronously, in microseconds."""

    def remove(self, path: str) -> int | None:
        """Delete a file and give the bytes it had; None: nothing was done, ``Store.delete`` decides."""


@runtime_checkable
class CanLand(Protocol):
    """A store that can publish a small new file synchronously, in microseconds."""

    def land(self, path: str, data: Buffer) -> Stat | None:
        """Publish a whole file where nothing is; None: nothing was done, ``Store.create`` decides."""


@runtime_checkable
class CanFeed(Protocol):
    """An :class:`Upload` that takes bytes synchronously, straight from the receive buffer."""

    def feed(self, data: memoryview) -> bool:
        """Append without waiting; the view is not kept. False: nothing was taken, use ``write``."""


@runtime_checkable
class CanTag(Protocol):
    """An :class:`Upload` that keeps the client's id of it with what it publishes (``Stat.upload``)."""

    def tag(self, upload: str) -> None:
        """Say the id, of at most 128 printable ASCII characters without blanks, before the commit."""


@runtime_checkable
class CanLink(Protocol):
    """A store in which a file may have several names."""

    async def link(self, source: str, target: str, *, version: str) -> Stat:
        """Give this version of a file a second name, without a copy; missing parents are made.

        Deleting or replacing one name leaves the other.

        Raises:
            NotFound: no such file. PreconditionFailed: it is another version, or the target exists.
        """


class Part(Protocol):
    """A span of a file that is written, appended to in order."""

    def feed(self, data: memoryview) -> bool:
        """As ``CanFeed.feed``."""

    async def write(self, data: Buffer) -> None:
        """Append. Raises WrongSize beyond the end of the part."""


@runtime_checkable
class CanScatter(Protocol):
    """An :class:`Upload` of announced size that takes parts at once, in any order."""

    def part(self, start: int, stop: int) -> Part:
        """The bytes ``[start, stop)``; at the commit all parts must lie side by side and be full.

        Raises:
            Unsupported: a checksum was stated that cannot be combined from those of parts.
            WrongSize: the part does not lie in the announced size.
        """


class Session(Upload, CanTag, Protocol):
    """An upload that outlives its request and its process: ``write`` appends at :attr:`offset`."""

    @property
    def offset(self) -> int:
        """Bytes that are here and verified."""

    async def check(self, start: int, data: Buffer) -> None:
        """Compare bytes that come once more with those that are here. Raises Conflict if they differ."""

    async def pause(self) -> None:
        """End this use of the session and keep what came. Idempotent, as :meth:`abort`, which forgets all."""


@runtime_checkable
class CanResume(Protocol):
    """A store whose uploads may come in parts."""

    async def resume(
        self,
        path: str,
        key: str,
        *,
        size: int,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> Session:
        """The session of that key, made if there is none.

        Args:
            path: The name to publish under.
            key: 1 to 64 letters and digits.
            size: Bytes that the whole will have.
            checksums: As in ``create``.
            if_version: As in ``create``.
            if_absent: As in ``create``.

        Raises:
            TooManyRequests: another request is writing to it.
            Conflict: it was begun for another size; or what ``create`` says.
        """

    async def resumable(self, path: str, key: str) -> int | None:
        """Bytes that a session holds; None: there is no such session."""


@runtime_checkable
class CanPrepare(Protocol):
    """A :class:`Reader` that wants to know which bytes it will be asked for (a cache)."""

    def prepare(self, start: int, stop: int) -> Mapping[str, str]:
        """Say that ``[start, stop)`` and nothing beyond will be read; answer headers about these bytes.

        Raises:
            NotCached: they may not be fetched and are not all here.
        """


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a store (RFC 4331)."""

    used: int
    available: int


@runtime_checkable
class CanSpace(Protocol):
    """A store that knows its space."""

    async def space(self) -> Space: ...


@runtime_checkable
class CanQuota(Protocol):
    """A store that knows the space of each path: quotas hold below some of them."""

    async def space_at(self, path: str) -> Space: ...


@runtime_checkable
class CanAnnotate(Protocol):
    """A store that keeps a client's own properties with a file or directory (RFC 4918 dead properties).

    They follow a rename, are copied by the caller, and go with the file when it is replaced or deleted.
    """

    async def annotations(self, path: str) -> Mapping[str, str]:
        """Name (``{namespace}local``) to text. Raises NotFound."""

    async def annotate(self, path: str, changes: Mapping[str, str | None]) -> None:
        """Set or (None) remove properties, all of them or none.

        Raises:
            NotFound. LimitExceeded: more than 64 KiB would be kept for this path.
        """


@runtime_checkable
class CanStage(Protocol):
    """A store whose files may lie on tape; :mod:`doma.store.tape_requests` brings them online."""

    async def tickets(self, paths: Sequence[str]) -> Sequence[tuple[Stat, str] | DomaError]:
        """For each path, in order: its stat and the key of its row in ``tape_files``, or why not.

        The key is empty for what cannot be staged: a directory, an empty file.
        """

    def wake(self) -> None:
        """Say that files were queued to be recalled, or pins were given up. Never waits."""
