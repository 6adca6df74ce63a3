"""MOVE and COPY within this server: where to, whether it may replace, and the bytes in between.

Rights (tokens.md §5): a move to a new name needs create on both paths, one that replaces needs modify on
both; a copy needs read on the source and create, or modify where it replaces, on the destination.

Source: RFC 4918 §9.8, §9.9; rules W11-W13 of the storage contract.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from doma.auth.model import Verb
from doma.core.errors import (
    BadRequest,
    Conflict,
    LimitExceeded,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    Refused,
    Unsupported,
)
from doma.core.paths import covers, encode, normalise, parent
from doma.doors.dav_call import Call, check_conditions, shown
from doma.doors.endpoint import Endpoint
from doma.store.protocol import PIECE, Stat, Store

MOST = 100_000
"""Entries of a collection that one COPY takes along."""

_SCHEMES = {"http", "https", "dav", "davs"}
_THIRD_PARTY = ("transferheader", "credential", "x-number-of-streams", "secure-redirection")
"""Headers that say: this Destination is meant for a third-party copy, answer with its stream (W71)."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a MOVE or COPY leads to, inside this server."""

    endpoint: Endpoint
    path: str

    @property
    def shown(self) -> str:
        """As in a URL, decoded."""
        return shown(self.endpoint, self.path)


async def move(call: Call) -> None:
    """Answer MOVE: one atomic rename inside an endpoint."""
    call.must_be_writable()
    call.allow(Verb.CREATE)
    _overwrite(call)
    target = _target(call)
    if target.endpoint is not call.endpoint:
        raise OriginFailed(
            f"{call.shown}: MOVE works within one endpoint; to reach {target.shown}, COPY and then DELETE"
        )
    call.allow(Verb.CREATE, target.path)
    _must_differ(call, target)
    call.must_not_hold_an_area(call.path)
    call.must_not_hold_an_area(target.path)
    store = call.endpoint.store
    stat = await store.stat(call.path)
    there = await _existing(store, target.path)
    _allow_kind(call, Verb.CREATE, stat, there, target)
    check_conditions(call, stat)
    _may_replace(call, target, there)
    if there is not None:
        call.allow(Verb.MODIFY, is_dir=stat.is_dir)
        call.allow(Verb.MODIFY, target.path, is_dir=there.is_dir)
    replaced = await store.rename(call.path, target.path, overwrite=there is not None)
    call.tell("file.moved", target.endpoint, target.path, source=call.shown, is_dir=stat.is_dir)
    await _done(call, target, replaced)


async def copy(call: Call) -> None:
    """Answer COPY: inside this server; between two servers it is not offered."""
    source, destination = call.headers.get("source"), call.headers.get("destination")
    if (source is None) == (destination is None):
        raise BadRequest(f"{call.shown}: COPY needs exactly one of the headers Source and Destination")
    if destination is None:
        call.must_be_writable()
        call.allow(Verb.CREATE)
        raise _third_party(call)
    call.allow(Verb.READ)
    if any(name.startswith(_THIRD_PARTY) for name in call.headers) or not _is_ours(call, destination):
        raise _third_party(call)
    _overwrite(call)
    target = _target(call)
    if not target.endpoint.writable:
        call.must_be_writable(target.endpoint)
    target.endpoint.gate.decide(call.identity, Verb.CREATE, target.path, True)
    _must_differ(call, target)
    stat = await call.found(Verb.READ)
    store = target.endpoint.store
    there = await _existing(store, target.path)
    target.endpoint.gate.decide(call.identity, Verb.CREATE, target.path, stat.is_dir)
    check_conditions(call, stat)
    _may_replace(call, target, there)
    if there is not None:
        target.endpoint.gate.decide(call.identity, Verb.MODIFY, target.path, there.is_dir)
        if there.is_dir or stat.is_dir:
            raise Conflict(
                f"{target.shown}: a collection is not replaced by COPY; DELETE it first, or copy elsewhere"
            )
    await _need_parent(target)
    if stat.is_dir:
        await _copy_tree(call, target, deep=call.headers.get("depth", "infinity").strip() != "0")
    else:
        await _copy_file(call, call.path, target, target.path, fresh=there is None)
    await _done(call, target, there is not None)


def _third_party(call: Call) -> Unsupported:
    return Unsupported(
        f"{call.shown}: third-party copy is not offered by this server; read and write through the client"
    )


def _target(call: Call) -> Target:
    """The ``Destination`` header as a path of ours.

    Raises:
        BadRequest, BadPath: it is missing or no URL. OriginFailed (502): another server's.
        NotFound: no such endpoint.
    """
    value = call.headers.get("destination")
    if not value:
        raise BadRequest(f"{call.shown}: {call.method} needs the header Destination")
    if not _is_ours(call, value):
        raise OriginFailed(
            f"{call.shown}: the Destination is on another server; {call.method} stays on this one"
        )
    path = normalise(value.partition("?")[0] if value.startswith("/") else urlsplit(value).path or "/")
    endpoint, inner = call.site.find(path)
    return Target(endpoint, inner)


def _is_ours(call: Call, value: str) -> bool:
    """Whether a Destination names one of our doors: no host, the asked host, or our own name."""
    if value.startswith("/") and not value.startswith("//"):
        return True
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError as e:
        raise BadRequest(f"{call.shown}: the Destination is no URL") from e
    if url.scheme.lower() not in _SCHEMES or not url.hostname or url.fragment or "@" in url.netloc:
        raise BadRequest(
            f"{call.shown}: the Destination must be a path or an https (davs) or http URL without user info"
        )
    asked = urlsplit("//" + call.headers.get("host", ""))
    default = 80 if url.scheme.lower() in {"http", "dav"} else 443
    own = {80, 443} if asked.port is None else {asked.port}
    return (url.hostname == asked.hostname and (port or default) in own) or url.hostname == call.site.name


def _must_differ(call: Call, target: Target) -> None:
    if target.endpoint is not call.endpoint:
        return
    if target.path == call.path:
        raise Refused(f"{call.shown}: {call.method} onto itself changes nothing; name another Destination")
    if covers(call.path, target.path):
        raise Refused(f"{target.shown}: lies inside {call.shown}; a collection cannot be put into itself")
    if call.method == "MOVE" and covers(target.path, call.path):
        raise Refused(f"{target.shown}: contains {call.shown}, which cannot take its place")


def _allow_kind(call: Call, verb: Verb, stat: Stat, there: Stat | None, target: Target) -> None:
    """Decide again, now that it is known whether file or directory is at stake (T13)."""
    call.allow(verb, is_dir=stat.is_dir)
    call.allow(verb, target.path, is_dir=there.is_dir if there else stat.is_dir)


def _overwrite(call: Call) -> bool:
    value = call.headers.get("overwrite", "T").strip().upper()
    if value not in {"T", "F"}:
        raise BadRequest(f"{call.shown}: Overwrite must be T or F, not {value[:20]!r}")
    return value == "T"


def _may_replace(call: Call, target: Target, there: Stat | None) -> None:
    if there is not None and not _overwrite(call):
        raise PreconditionFailed(f"{target.shown}: exists, and the request says Overwrite: F")


async def _existing(store: Store, path: str) -> Stat | None:
    try:
        return await store.stat(path)
    except NotFound:
        return None


async def _need_parent(target: Target) -> None:
    above = await _existing(target.endpoint.store, parent(target.path))
    if above is None or not above.is_dir:
        raise Conflict(f"{target.shown}: its parent is not a collection; make it first (MKCOL)")


async def _copy_file(call: Call, source: str, target: Target, path: str, *, fresh: bool) -> None:
    """Stream one version of a file into another place; published whole or not at all.

    With ``fresh`` a file that has appeared there meanwhile is not replaced: nobody has decided on that.
    """
    reader = await call.endpoint.store.open(source)
    try:
        size = reader.stat.size
        upload = await target.endpoint.store.create(
            path, size=size, checksums=reader.stat.checksums, if_absent=fresh
        )
        try:
            for start in range(0, size, PIECE):
                await upload.write(await reader.read(start, min(start + PIECE, size)))
            await upload.commit()
        except BaseException:
            await upload.abort()
            raise
    finally:
        await reader.close()
    call.tell("file.landed", target.endpoint, path, bytes=size, source=shown(call.endpoint, source))


async def _copy_tree(call: Call, target: Target, *, deep: bool) -> None:
    """Copy a directory; with ``deep`` all below it. What is copied before an error stays.

    Everything is listed before anything is made: two endpoints may show the same folder, and a copy into
    itself through the other would never end.
    """
    top = len(call.path.rstrip("/"))
    below = await _below(call) if deep else []
    await target.endpoint.store.make_dir(target.path)
    for path, is_dir in below:
        place = target.path + path[top:]
        if is_dir:
            await target.endpoint.store.make_dir(place)
        else:
            await _copy_file(call, path, target, place, fresh=True)


async def _below(call: Call) -> list[tuple[str, bool]]:
    """Path, and whether it is a directory, of everything below the source; parents come first."""
    found: list[tuple[str, bool]] = []
    waiting = [call.path]
    while waiting:
        async for entry in call.endpoint.store.list(waiting.pop()):
            found.append((entry.path, entry.is_dir))
            if len(found) > MOST:
                raise LimitExceeded(f"{call.shown}: has more than {MOST} entries; copy it in parts")
            if entry.is_dir:
                waiting.append(entry.path)
    return found


async def _done(call: Call, target: Target, replaced: bool) -> None:
    if replaced:
        await call.answer(204)
    else:
        await call.answer(201, {"Location": encode(target.shown)})
