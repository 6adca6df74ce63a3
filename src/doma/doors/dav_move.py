"""MOVE and COPY within this server: who may, whether it may replace, and what is answered.

Rights (tokens.md §5): a move to a new name needs create on both paths, one that replaces needs modify on
both; a copy needs read on the source and create, or modify where it replaces, on the destination.

A file replaces a file in one atomic step. Where a collection is replaced, or replaces, the name is free for
the moment between two renames (:mod:`doma.doors.dav_copy`): RFC 4918 wants the old tree gone, not merged.

Source: RFC 4918 §9.8, §9.9; rules W11-W13 of the storage contract.
"""

from doma.auth.model import Verb
from doma.core.errors import BadRequest, Conflict, OriginFailed, PreconditionFailed, Refused, Unsupported
from doma.core.paths import covers, encode, parent
from doma.doors.dav_call import Call, check_conditions
from doma.doors.dav_copy import copy_file, copy_tree, existing, instead_of, put_in_place
from doma.doors.dav_target import Target, is_ours, target_of
from doma.store.protocol import Stat

_THIRD_PARTY = (
    "transferheader",
    "credential",
    "x-number-of-streams",
    "secure-redirection",
    "requirechecksumverification",
)
"""Headers that say: this Destination is meant for a third-party copy, answer with its stream (W71)."""


async def move(call: Call) -> None:
    """Answer MOVE: one atomic rename inside an endpoint, two where a collection is replaced."""
    call.must_be_writable()
    call.allow(Verb.CREATE)
    _overwrite(call)
    target = target_of(call)
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
    there = await existing(store, target.path)
    call.allow(Verb.CREATE, is_dir=stat.is_dir)
    call.allow(Verb.CREATE, target.path, is_dir=there.is_dir if there else stat.is_dir)
    call.must_be_whole(stat)
    check_conditions(call, stat)
    _may_replace(call, target, there)
    if there is not None:
        call.allow(Verb.MODIFY, is_dir=stat.is_dir)
        call.allow(Verb.MODIFY, target.path, is_dir=there.is_dir)
    if there is not None and (stat.is_dir or there.is_dir):
        await put_in_place(store, call.path, target.path)
    else:
        await store.rename(call.path, target.path, overwrite=there is not None)
    call.tell("file.moved", target.endpoint, target.path, source=call.shown, is_dir=stat.is_dir)
    await _done(call, target, there)


async def copy(call: Call) -> None:
    """Answer COPY: inside this server, or between two servers where that is offered."""
    source, destination = call.headers.get("source"), call.headers.get("destination")
    if (source is None) == (destination is None):
        raise BadRequest(f"{call.shown}: COPY needs exactly one of the headers Source and Destination")
    if destination is None:
        call.must_be_writable()
        call.allow(Verb.CREATE)
        await _third_party(call)
        return
    call.allow(Verb.READ)
    if any(name.startswith(_THIRD_PARTY) for name in call.headers) or not is_ours(call, "destination"):
        await _third_party(call)
        return
    await copy_here(call, target_of(call))


async def _third_party(call: Call) -> None:
    if call.site.third_party is None:
        raise Unsupported(
            f"{call.shown}: third-party copy is not offered here; read and write through the client"
        )
    await call.site.third_party(call)


async def copy_here(call: Call, target: Target) -> None:
    """Answer COPY to a place of ours as RFC 4918 has it: 201, 204, or 207 when parts failed (W12)."""
    _overwrite(call)
    deep = _deep(call)
    gate = target.endpoint.gate
    call.must_be_writable(target.endpoint)
    gate.decide(call.identity, Verb.CREATE, target.path, True)
    _must_differ(call, target)
    stat = await call.found(Verb.READ)
    store = target.endpoint.store
    there = await existing(store, target.path)
    gate.decide(call.identity, Verb.CREATE, target.path, stat.is_dir)
    check_conditions(call, stat)
    _may_replace(call, target, there)
    if there is not None:
        gate.decide(call.identity, Verb.MODIFY, target.path, there.is_dir)
        if stat.is_dir or there.is_dir:
            call.must_not_hold_an_area(target.path, target.endpoint)
    above = await existing(store, parent(target.path))
    if above is None or not above.is_dir:
        raise Conflict(f"{target.shown}: its parent is not a collection; make it first (MKCOL)")
    replacing = there is not None and (stat.is_dir or there.is_dir)
    landed: dict[str, int] = {}
    try:
        if replacing:
            async with instead_of(target) as place:
                await _copy(call, stat, place, landed, deep=deep, fresh=True)
        else:
            await _copy(call, stat, target, landed, deep=deep, fresh=there is None)
    except BaseException:  # a cancellation, too: undone, and raised on
        if replacing:
            landed.clear()  # All of it was removed again.
        raise
    finally:
        for below, size in landed.items():
            path, source = target.path.rstrip("/") + below, call.shown.rstrip("/") + below
            call.tell("file.landed", target.endpoint, path, bytes=size, source=source)
    await _done(call, target, there)


async def _copy(
    call: Call, stat: Stat, target: Target, landed: dict[str, int], *, deep: bool, fresh: bool
) -> None:
    if stat.is_dir:
        await copy_tree(call, target, landed, deep=deep)
    else:
        landed[""] = await copy_file(call, call.path, target, fresh=fresh)


def _must_differ(call: Call, target: Target) -> None:
    if target.endpoint is not call.endpoint:
        return
    if target.path == call.path:
        raise Refused(f"{call.shown}: {call.method} onto itself changes nothing; name another Destination")
    if covers(call.path, target.path):
        raise Refused(f"{target.shown}: lies inside {call.shown}; a collection cannot be put into itself")
    if covers(target.path, call.path):
        raise Refused(f"{target.shown}: contains {call.shown}, which cannot take its place")


def _overwrite(call: Call) -> bool:
    value = call.headers.get("overwrite", "T").strip().upper()
    if value not in {"T", "F"}:
        raise BadRequest(f"{call.shown}: Overwrite must be T or F, not {value[:20]!r}")
    return value == "T"


def _deep(call: Call) -> bool:
    value = call.headers.get("depth", "infinity").strip().lower()
    if value not in {"0", "infinity"}:
        raise BadRequest(f"{call.shown}: Depth of a COPY must be 0 or infinity, not {value[:20]!r}")
    return value != "0"


def _may_replace(call: Call, target: Target, there: Stat | None) -> None:
    """Raise PreconditionFailed where something stands that the request does not want replaced.

    RFC 4918 takes a missing header for T. For a collection it has to be said: grid clients never send it,
    their users expect that ``mv a b`` spares a directory ``b``, and a slip must not cost a tree.
    """
    if there is None:
        return
    if not _overwrite(call):
        raise PreconditionFailed(f"{target.shown}: exists, and the request says Overwrite: F")
    if there.is_dir and "overwrite" not in call.headers:
        raise PreconditionFailed(
            f"{target.shown}: is a collection; add a name below it, or say Overwrite: T to replace all of it"
        )


async def _done(call: Call, target: Target, there: Stat | None) -> None:
    if there is not None:
        await call.answer(204)
    else:
        await call.answer(201, {"Location": encode(target.shown)})
