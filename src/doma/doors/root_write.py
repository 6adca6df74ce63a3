"""Writing by root://: open, write, pgwrite, truncate, sync; closing publishes.

A file that is written is judged and landed as a PUT is: nothing of it is visible before it is closed, whole
and verified, and nothing is left of one whose client goes away. A file that exists is replaced, never changed
in place.

Source: §2, §6 and §7 of the project's root:// contract; rules W40-W46 of the storage contract.
"""

import asyncio

from doma.auth.model import Verb
from doma.core.checksum import canonical, digest_header, parse_checksum
from doma.core.errors import (
    BadRequest,
    NotAllowed,
    PreconditionFailed,
    Unsupported,
)
from doma.core.paths import encode
from doma.doors.landing import Landing, landed, owner_of
from doma.doors.root_acts import acting, must_be_writable
from doma.doors.root_call import Call, Framed, Handler, Target
from doma.doors.root_stat import line_of
from doma.doors.root_writing import LARGEST, Writing
from doma.net.xroot_errors import BAD_ARGUMENT, EXISTS, IS_DIRECTORY, NO_MEMORY, refusal
from doma.net.xroot_frames import P_HANDLE, P_OPEN, P_PGWRITE, P_TRUNCATE, P_WRITE, Code, Open
from doma.net.xroot_pages import FINAL, MOST_ERRORS, error_list, page_answer, separated
from doma.store.protocol import PIECE

MOST_OPEN = 128
"""Files of one session that may be open for writing: each takes descriptors and room on the disk."""
_TOO_MANY = 3033
_MORE_STAT = 4
"""In the second field of options: the long stat line."""


async def open(call: Call) -> bytes:
    """Begin to write a file; its handle, and its stat line where that is asked for.

    ``oss.asize`` in the CGI announces the size, ``cks.type`` and ``cks.value`` a checksum: both must hold.

    Raises:
        AlreadyExists: NEW without DELETE, and a file is there. Unsupported: an update in place.
        StorageUnavailable: too many are open.
    """
    _, bits, more = P_OPEN.unpack(call.body)
    options = Open(bits)
    target = await call.target()
    await must_be_writable(target, "writing")
    if options & Open.APPEND or not options & (Open.NEW | Open.DELETE):
        await _refuse_update(call, target)
    if sum(isinstance(file, Writing) for file in call.session.files.values()) >= MOST_OPEN:
        raise refusal(NO_MEMORY, f"{target.shown}: {MOST_OPEN} files are open for writing; close some first")
    exclusive = not options & Open.DELETE
    writing = await _begin(call, target, exclusive=exclusive)
    try:
        line = b""
        if options & Open.RETSTAT or more & _MORE_STAT:
            line = bytes(8) + (await line_of(target, writing.stat)).encode() + b"\0"
        handle = call.session.put(writing)
    except BaseException:  # a cancellation, too: undone, and raised on
        await writing.drop()
        raise
    writing.begun(call.session.observer)
    return handle + line


async def write(call: Call) -> bytes:
    """Bytes at an offset."""
    handle, offset, _ = P_WRITE.unpack(call.body)
    await _writing(call, handle).write(offset, call.data)
    return b""


async def pgwrite(call: Call) -> bytes:
    """Bytes at an offset, page by page behind checksums; which pages must come again."""
    handle, offset, _, _ = P_PGWRITE.unpack(call.body)
    writing = _writing(call, handle)
    if offset < 0:
        raise refusal(BAD_ARGUMENT, f"{writing.target.shown}: pages at {offset} do not lie in a file")
    data, bad = separated(offset, call.data)
    if len(bad) > MOST_ERRORS:
        raise refusal(
            _TOO_MANY, f"{writing.target.shown}: {len(bad)} pages came damaged; look at the network"
        )
    await writing.write(offset, data, bad)
    return Framed(page_answer(call.stream, Code.PGWRITE, FINAL, offset, error_list(bad)))


async def sync(call: Call) -> bytes:
    """All that came is taken; it becomes durable when the file is closed."""
    (handle,) = P_HANDLE.unpack(call.body)
    file = call.file(handle)
    if isinstance(file, Writing):
        await file.settle()
    return b""


async def truncate(call: Call) -> bytes:
    """Cut a file, named by its path, to its first bytes; of one that is written only see how long it is."""
    handle, size = P_TRUNCATE.unpack(call.body)
    if size < 0:
        raise refusal(BAD_ARGUMENT, f"truncate: {size} bytes; give 0 or more")
    if not bytes(call.data).strip(b"\0"):
        await _writing(call, handle).settle(size)
        return b""
    target = await call.target()
    await must_be_writable(target, "truncate")
    found = await acting(call, target, "truncate").found(Verb.MODIFY)
    if found.is_dir:
        raise refusal(IS_DIRECTORY, f"{target.shown}: this is a directory; only a file can be cut")
    if size > found.size:
        raise Unsupported(f"{target.shown}: has {found.size} bytes; it can be cut, not stretched to {size}")
    if size < found.size:
        await _cut(call, target, size)
    return b""


HANDLERS: dict[int, Handler] = {
    Code.WRITE: write,
    Code.PGWRITE: pgwrite,
    Code.SYNC: sync,
    Code.TRUNCATE: truncate,
}


async def _begin(call: Call, target: Target, *, exclusive: bool) -> Writing:
    headers = [(b"if-none-match", b"*")] if exclusive else []
    if (digest := _stated(target)) is not None:
        headers.append((b"digest", digest.encode()))
    size = _announced(target)
    landing = Landing(call.site, encode(target.shown), b"", headers, size, target.identity)
    try:
        await landing.open()
    except PreconditionFailed as e:
        if not exclusive:
            raise
        raise refusal(EXISTS, f"{target.shown}: exists; allow the overwrite (xrdcp -f)") from e
    except NotAllowed as e:  # It is writable: only a directory is refused so.
        raise refusal(IS_DIRECTORY, f"{target.shown}: this is a directory; write a file below it") from e
    return Writing(target, landing, size, call.session, exclusive=exclusive)


async def _refuse_update(call: Call, target: Target) -> None:
    """Raises NotFound, or Unsupported."""
    await acting(call, target, "writing").found(Verb.MODIFY)
    raise Unsupported(
        f"{target.shown}: files are not changed in place here; write it anew as a whole (xrdcp -f)"
    )


def _announced(target: Target) -> int | None:
    """The size in the CGI. Raises BadRequest: it is no size."""
    text = target.cgi.get("oss.asize", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST):
        raise BadRequest(f"{target.shown}: oss.asize must be a number of bytes")
    return int(text)


def _stated(target: Target) -> str | None:
    """The checksum in the CGI, as an HTTP digest. Raises BadRequest: it is none."""
    value, name = target.cgi.get("cks.value", ""), target.cgi.get("cks.type", "adler32")
    if not value:
        return None
    algorithm = canonical(name)
    if algorithm is None:
        raise Unsupported(f"{target.shown}: the checksum {name[:20]!r} is not known here")
    return digest_header({algorithm: parse_checksum(algorithm, value)})


def _writing(call: Call, handle: bytes) -> Writing:
    """An open file of this session that is written. Raises BadRequest for one that is read."""
    file = call.file(handle)
    if not isinstance(file, Writing):
        raise refusal(BAD_ARGUMENT, f"{file.target.shown}: is open for reading; open it for writing")
    return file


async def _cut(call: Call, target: Target, size: int) -> None:
    """Publish the first bytes of a file in its place, unless it changes meanwhile."""
    store = target.endpoint.store
    reader = await store.open(target.path)
    try:
        upload = await store.create(target.path, size=size, if_version=reader.stat.version)
        try:
            for start in range(0, size, PIECE):
                await upload.write(await reader.read(start, min(start + PIECE, size)))
                await asyncio.sleep(0)  # A quick disk never waits, and others want to be served.
            stat = await upload.commit()
        except BaseException:  # a cancellation, too: undone, and raised on
            await upload.abort()
            raise
    finally:
        await reader.close()
    call.site.emit(landed(target.endpoint.name, target.shown, stat, owner_of(target.identity)))
