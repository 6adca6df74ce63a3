"""Names by root://: looked up, listed, located, made, moved, removed.

Source: §8 of the project's root:// contract; rules W8-W11 of the storage contract, as WebDAV keeps them.
"""

from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address

from doma.auth.model import Verb
from doma.core.checksum import canonical
from doma.core.errors import AlreadyExists, BadRequest, Conflict, LimitExceeded, NotFound
from doma.core.paths import encode, parent
from doma.doors import dav_move
from doma.doors.listing import visible
from doma.doors.root_acts import acting, at_top, must_be_writable
from doma.doors.root_call import Call, Handler, Target
from doma.doors.root_stat import TOP, line, line_of, lines_of
from doma.net.xroot_errors import EXISTS, IS_DIRECTORY, NOT_FILE, refusal
from doma.net.xroot_frames import MAKE_PATH, P_DIRLIST, P_MKDIR, P_MV, P_STAT, WITH_STAT, Code
from doma.net.xroot_text import DIRECTORY, OFFLINE, READABLE, SEARCHABLE
from doma.store.protocol import CanQuota, CanSpace, Locality, Space, Stat, Store

PART = 60 << 10
"""Bytes of a part of a listing, about."""
BATCH = 256
"""Entries that are described at once."""
MOST_PATHS = 1024
"""Of one statx."""
_WITH_SUMS = 4
_VIRTUAL = 1
"""Option of stat: the file system, not the file."""
_HEAD = b".\n0 0 0 0\n"
_TOP_FLAGS = DIRECTORY | SEARCHABLE | READABLE
_MB = 1 << 20


async def stat(call: Call) -> bytes:
    """A stat line; of the file system with option 1, of an open file without a path."""
    options, handle = P_STAT.unpack(call.body)
    if not bytes(call.data).strip(b"\0"):
        return _text(await line_of(await call.about(handle), call.file(handle).stat))
    if (await at_top(call))[0]:
        return _text("1 0 0 0 0 0" if options & _VIRTUAL else line(TOP, _TOP_FLAGS, 0))
    target = await call.target()
    found = await acting(call, target, "stat").found(Verb.STAT)
    if options & _VIRTUAL:
        return _text(_room(target, await space_of(target.endpoint.store, target.path)))
    return _text(await line_of(target, found))


async def statx(call: Call) -> bytes:
    """One byte of flags for each path; the first that fails is the answer."""
    paths = bytes(call.data).rstrip(b"\0\n").split(b"\n")
    if len(paths) > MOST_PATHS:
        raise LimitExceeded(f"statx: {len(paths)} paths; at most {MOST_PATHS} are taken at once")
    told = bytearray()
    for raw in paths:
        target = await call.target(raw)
        found = await acting(call, target, "statx").found(Verb.STAT)
        offline = OFFLINE if found.locality is Locality.TAPE else 0
        told.append(DIRECTORY if found.is_dir else offline)
    return bytes(told)


async def dirlist(call: Call) -> AsyncIterator[bytes]:
    """The names in a directory, with stat lines and checksums as asked for; in parts."""
    (options,) = P_DIRLIST.unpack(call.body)
    top, who = await at_top(call)
    if top:
        here = [e for e in call.site.endpoints.values() if e.gate.may(who, Verb.STAT, "/", is_dir=True)]
        with_stat = options & (WITH_STAT | _WITH_SUMS)
        plain = [e.name for e in here]
        about = [line(TOP, _TOP_FLAGS, 0)] * len(here) if with_stat else None
        return _parts(_once(_lines(plain, about)), _HEAD if with_stat else b"")
    target = await call.target()
    dav = acting(call, target, "ls")
    if not (await dav.found(Verb.LIST)).is_dir:
        raise refusal(NOT_FILE, f"{target.shown}: this is a file; only a directory can be listed")
    algorithm = canonical(target.cgi.get("cks.type", "adler32")) if options & _WITH_SUMS else None
    with_stat = bool(options & (WITH_STAT | _WITH_SUMS))
    entries = _described(target, visible(dav), algorithm, with_stat=with_stat)
    return _parts(entries, _HEAD if with_stat else b"")


async def locate(call: Call) -> bytes:
    """Where a path can be had: here, at the address that this client has reached."""
    raw = bytes(call.data).partition(b"\0")[0].removeprefix(b"*")
    access = "r"
    if raw:
        call.data = raw
        if not (await at_top(call))[0]:
            target = await call.target()
            await acting(call, target, "locate").found(Verb.STAT)
            access = "w" if target.endpoint.writable else "r"
    return _text(f"S{access}{address(*call.session.local)}")


def address(host: str, port: int) -> str:
    """A host and a port in one word.

    >>> address("::ffff:192.0.2.1", 1094), address("::1", 1094)
    ('192.0.2.1:1094', '[::1]:1094')
    """
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return f"{host}:{port}"
    plain = getattr(found, "ipv4_mapped", None) or found
    return f"[{plain}]:{port}" if plain.version == 6 else f"{plain}:{port}"


async def mkdir(call: Call) -> bytes:
    """A directory; with MAKE_PATH those above it too, and one that exists is fine then."""
    options, _ = P_MKDIR.unpack(call.body)
    target = await call.target()
    await must_be_writable(target, "mkdir")
    gate, store = target.endpoint.gate, target.endpoint.store
    dav = acting(call, target, "mkdir")
    gate.decide_directory(target.identity, target.path)
    for path in await _missing(store, target.path) if options & MAKE_PATH else [target.path]:
        gate.decide_directory(target.identity, path)
        try:
            await store.make_dir(path)
        except AlreadyExists:
            if not options & MAKE_PATH or not (await store.stat(path)).is_dir:
                raise
            continue
        dav.tell("directory.made", target.endpoint, path)
    return b""


async def remove(call: Call) -> bytes:
    """A file."""
    return await _remove(call, "rm", folder=False)


async def remove_dir(call: Call) -> bytes:
    """An empty directory."""
    return await _remove(call, "rmdir", folder=True)


async def move(call: Call) -> bytes:
    """A file or directory to another name: a file replaces a file, nothing replaces a directory."""
    (length,) = P_MV.unpack(call.body)
    paths = bytes(call.data)
    if not 0 <= length < len(paths):
        raise BadRequest(f"mv: a first path of {length} bytes in {len(paths)}")
    first, second = paths[:length], paths[length:]
    if not length:
        first, _, second = paths.partition(b" ")
    elif second[:1] != b" ":
        raise BadRequest("mv: no blank stands between the two paths")
    to = await call.target(second.removeprefix(b" "))
    target = await call.target(first)  # Last, since its token is the one that counts.
    await must_be_writable(target, "mv")
    await dav_move.move(acting(call, target, "mv", destination=encode(to.shown)))
    return b""


async def chmod(call: Call) -> bytes:
    """Taken, without effect: there are no accounts here, rights come from tokens."""
    target = await call.target()
    await must_be_writable(target, "chmod")
    await acting(call, target, "chmod").found(Verb.MODIFY)
    return b""


async def space_of(store: Store, path: str) -> Space | None:
    """The bytes that are used and free at a path, where the store knows."""
    if isinstance(store, CanQuota):
        return await store.space_at(path)
    return await store.space() if isinstance(store, CanSpace) else None


HANDLERS: dict[int, Handler] = {
    Code.STAT: stat,
    Code.STATX: statx,
    Code.DIRLIST: dirlist,
    Code.LOCATE: locate,
    Code.MKDIR: mkdir,
    Code.RM: remove,
    Code.RMDIR: remove_dir,
    Code.MV: move,
    Code.CHMOD: chmod,
}


async def _remove(call: Call, act: str, *, folder: bool) -> bytes:
    target = await call.target()
    await must_be_writable(target, act)
    dav = acting(call, target, act)
    dav.allow(Verb.MODIFY)
    dav.must_not_hold_an_area(target.path)
    found = await dav.found(Verb.MODIFY)
    if found.is_dir and not folder:
        raise refusal(IS_DIRECTORY, f"{target.shown}: this is a directory; rmdir removes it")
    if folder and not found.is_dir:
        raise refusal(NOT_FILE, f"{target.shown}: this is no directory; rm removes it")
    try:
        await target.endpoint.store.delete(target.path)
    except Conflict as e:
        if folder:
            e.detail["xrootd"] = EXISTS
        raise
    dav.tell("file.deleted", target.endpoint, target.path, is_dir=found.is_dir, bytes=found.size)
    return b""


async def _missing(store: Store, path: str) -> list[str]:
    """The path and the directories above it that do not exist, topmost first."""
    absent = [path]
    while (path := parent(path)) != "/":
        try:
            await store.stat(path)
        except NotFound:
            absent.insert(0, path)
        else:
            break
    return absent


def _room(target: Target, space: Space | None) -> str:
    """Nodes, free MB and use in percent: for disk, then for staging."""
    if space is None:
        return "1 0 0 0 0 0"
    free, whole = max(0, space.available), max(0, space.available) + space.used
    used = 100 * space.used // whole if whole else 0
    return f"{int(target.endpoint.writable)} {free // _MB} {used} 0 0 0"


async def _described(
    target: Target, entries: AsyncIterator[Stat], algorithm: str | None, *, with_stat: bool
) -> AsyncIterator[list[bytes]]:
    """The lines of a listing, some entries at a time."""
    batch: list[Stat] = []
    async for entry in entries:
        batch.append(entry)
        if len(batch) == BATCH:
            yield await _some(target, batch, algorithm, with_stat=with_stat)
            batch = []
    yield await _some(target, batch, algorithm, with_stat=with_stat)


async def _some(
    target: Target, batch: Sequence[Stat], algorithm: str | None, *, with_stat: bool
) -> list[bytes]:
    names = [entry.path.rpartition("/")[2] for entry in batch]
    if not with_stat:
        return _lines(names, None)
    about = await lines_of(target.endpoint, target.identity, batch)
    if algorithm is not None:
        sums = [entry.checksums.get(algorithm, "none") for entry in batch]
        about = [f"{one} [ {algorithm}:{value} ]" for one, value in zip(about, sums, strict=True)]
    return _lines(names, about)


def _lines(names: Sequence[str], about: Sequence[str] | None) -> list[bytes]:
    if about is None:
        return [f"{name}\n".encode() for name in names]
    return [f"{name}\n{one}\n".encode() for name, one in zip(names, about, strict=True)]


async def _once(lines: list[bytes]) -> AsyncIterator[list[bytes]]:
    yield lines


async def _parts(batches: AsyncIterator[list[bytes]], head: bytes) -> AsyncIterator[bytes]:
    """Gather lines into parts; the last line ends in NUL, and of nothing there is one empty part."""
    gathered, size, more = [head], len(head), False
    async for lines in batches:
        for one in lines:
            if size + len(one) > PART and more:
                yield b"".join(gathered)
                gathered, size = [], 0
            gathered.append(one)
            size += len(one)
            more = True
    yield b"".join(gathered)[:-1] + b"\0" if more else b""


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
