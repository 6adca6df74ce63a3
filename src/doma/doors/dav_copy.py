"""The work of COPY and MOVE: bytes and properties in between, and one tree in the place of another.

A collection that is to be replaced is renamed aside first and removed last: a copy that cannot come, or a
kill at any moment, loses nothing of it. What is on its way or aside has a name that begins with ``.doing-``
in the same collection; only after a kill does one stay, and may then be removed or renamed back.

Source: RFC 4918 §9.8.2-§9.8.5, §9.9.3; rules W11, W12, W44 of the storage contract.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from doma.core.errors import (
    DomaError,
    LimitExceeded,
    NotFound,
    PartlyFailed,
    StorageFull,
    StorageUnavailable,
    problem,
)
from doma.core.paths import parent
from doma.doors.dav_call import Call
from doma.doors.dav_target import Target
from doma.store.protocol import PIECE, CanAnnotate, Stat, Store

log = logging.getLogger(__name__)

MOST = 100_000
"""Entries of a collection that one COPY takes along."""
REPORTED = 1000
"""Parts that failed after which a COPY gives up."""


async def existing(store: Store, path: str) -> Stat | None:
    """What stands at a path."""
    try:
        return await store.stat(path)
    except NotFound:
        return None


async def copy_file(call: Call, source: str, target: Target, *, fresh: bool) -> int:
    """Stream one version of a file into another place; published whole or not at all.

    Args:
        call: Its endpoint has the source.
        source: Within it.
        target: Where to.
        fresh: A file that has appeared there meanwhile is not replaced: nobody has decided on that.

    Returns:
        Its size in bytes.
    """
    store = target.endpoint.store
    reader = await call.endpoint.store.open(source)
    try:
        size = reader.stat.size
        upload = await store.create(target.path, size=size, checksums=reader.stat.checksums, if_absent=fresh)
        try:
            for start in range(0, size, PIECE):
                await upload.write(await reader.read(start, min(start + PIECE, size)))
            await upload.commit()
        except BaseException:  # a cancellation, too: undone, and raised on
            await upload.abort()
            raise
    finally:
        await reader.close()
    await _copy_properties(call, source, target)
    return size


async def copy_tree(call: Call, target: Target, landed: dict[str, int], *, deep: bool) -> None:
    """Copy a directory to where nothing is; with ``deep`` all below it, as far as that goes.

    Everything is listed before anything is made: two endpoints may show the same folder, and a copy into
    itself through the other would never end.

    Args:
        call: Its path is the source.
        target: Where to.
        landed: Takes the size of each file that was copied, by its path below the top.
        deep: Whether to take the content along.

    Raises:
        PartlyFailed: with all that could not be copied; the rest was.
        DomaError: nothing was made.
    """
    top = len(call.path.rstrip("/"))
    below = await _below(call) if deep else []
    await _make_copy(call, call.path, target)
    parts: dict[str, Any] = {}
    lost: set[str] = set()
    """Directories that could not be made: what lies in them is not tried."""
    for source, is_dir in below:
        if parent(source) in lost:
            lost.add(source)
            continue
        place = Target(target.endpoint, target.path + source[top:])
        try:
            if is_dir:
                await _make_copy(call, source, place)
            else:
                landed[source[top:]] = await copy_file(call, source, place, fresh=True)
        except DomaError as e:
            parts[source] = problem(e)
            lost.add(source)
            if isinstance(e, StorageFull | StorageUnavailable) or len(parts) >= REPORTED:
                break
    if parts:
        raise PartlyFailed(f"{call.shown}: {len(parts)} parts could not be copied", parts=parts)


@asynccontextmanager
async def instead_of(target: Target) -> AsyncIterator[Target]:
    """A free place to build a thing at, which takes the target's place at the end.

    If the body fails, what it built is removed and the target stays as it was.
    """
    store, fresh = target.endpoint.store, _beside(target.path)
    try:
        yield Target(target.endpoint, fresh)
        await put_in_place(store, fresh, target.path)
    except BaseException:  # a cancellation, too: undone, and raised on
        await _remove(store, fresh)
        raise


async def put_in_place(store: Store, source: str, target: str) -> None:
    """Rename onto something that ``Store.rename`` does not replace, since one of the two is a directory.

    Raises:
        DomaError: the target is as it was.
    """
    # Shielded: a client that goes away between the two renames must not leave the name empty.
    await asyncio.shield(_swap(store, source, target))


async def _swap(store: Store, source: str, target: str) -> None:
    aside = _beside(target)
    await store.rename(target, aside, overwrite=False)
    try:
        await store.rename(source, target, overwrite=False)
    except BaseException:  # a cancellation, too: undone, and raised on
        await store.rename(aside, target, overwrite=False)
        raise
    await _remove(store, aside)


def _beside(path: str) -> str:
    return f"{parent(path).rstrip('/')}/.doing-{secrets.token_hex(8)}"


async def _remove(store: Store, path: str) -> None:
    try:
        stat = await existing(store, path)
        if stat is not None:
            await store.delete(path, recursive=stat.is_dir)
    except DomaError as e:
        log.warning("%s could not be removed and should be deleted by hand: %s", path, e)


async def _make_copy(call: Call, source: str, target: Target) -> None:
    await target.endpoint.store.make_dir(target.path)
    await _copy_properties(call, source, target)


async def _copy_properties(call: Call, source: str, target: Target) -> None:
    """Take along what clients have noted, where both stores keep such notes (RFC 4918 §9.8.2)."""
    here, there = call.endpoint.store, target.endpoint.store
    if isinstance(here, CanAnnotate) and isinstance(there, CanAnnotate):
        notes = await here.annotations(source)
        if notes:
            await there.annotate(target.path, dict(notes))


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
