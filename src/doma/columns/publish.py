"""Bringing results into the store, so that a late attempt can never replace a recorded object.

Look at what is there, ask whether the file is still ours, then write on the condition that nothing changed
since the look. Whoever published in between makes the condition fail; whoever published before has a
higher attempt number, and the question is answered no.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from doma.core.errors import NotFound, PreconditionFailed, Refused, StorageUnavailable, Unsupported
from doma.store.protocol import PIECE, Buffer, CanLink, Stat, Store

TRIES = 5
Ours = Callable[[], Awaitable[None]]
"""Raises Cancelled when the attempt no longer holds its file."""


async def put(store: Store, path: str, local: Path, ours: Ours) -> Stat:
    """Publish a local file."""
    size = (await asyncio.to_thread(local.stat)).st_size
    return await _published(store, path, size, lambda: _of_file(local), ours)


async def copy(store: Store, source: str, version: str, path: str, ours: Ours) -> Stat:
    """Publish another object under a second name, if it is still this version: linked where the store can.

    Raises:
        NotFound, PreconditionFailed: the source is gone or another.
    """
    stat = await store.stat(source)
    if stat.version != version:
        raise PreconditionFailed(f"{source}: the object was replaced")
    if isinstance(store, CanLink) and await _there(store, path) is None:
        await ours()
        # Whatever keeps it from being linked, a name that came meanwhile too, is nothing to a copy.
        with contextlib.suppress(PreconditionFailed, StorageUnavailable, Unsupported, Refused):
            return await store.link(source, path, version=version)
    return await _published(store, path, stat.size, lambda: _of_object(store, source, version), ours)


async def _published(
    store: Store, path: str, size: int, content: Callable[[], AsyncIterator[Buffer]], ours: Ours
) -> Stat:
    for left in reversed(range(TRIES)):
        there = await _there(store, path)
        await ours()
        upload = await store.create(path, size=size, if_version=there, if_absent=there is None)
        try:
            async for piece in content():
                await upload.write(piece)
            return await upload.commit()
        except PreconditionFailed:
            if not left:
                raise
        finally:
            await upload.abort()
    raise AssertionError("unreachable")


async def _there(store: Store, path: str) -> str | None:
    try:
        return (await store.stat(path)).version
    except NotFound:
        return None


async def _of_file(local: Path) -> AsyncIterator[Buffer]:
    with local.open("rb") as file:
        while data := await asyncio.to_thread(file.read, PIECE):
            yield data


async def _of_object(store: Store, path: str, version: str) -> AsyncIterator[Buffer]:
    reader = await store.open(path)
    try:
        if reader.stat.version != version:
            raise PreconditionFailed(f"{path}: the object was replaced")
        for start in range(0, reader.stat.size, PIECE):
            yield await reader.read(start, min(reader.stat.size, start + PIECE))
    finally:
        await reader.close()
