"""A cache behind the root door: what it is told to fetch or give up, and refuses to change."""

import asyncio

import pytest

from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.net.xroot_frames import (
    NOTHING,
    P_DIRLIST,
    P_MKDIR,
    P_MV,
    P_OPEN,
    P_QUERY,
    P_STAT,
    Code,
    Open,
    Status,
)
from doma.net.xroot_text import listing, stat_line
from doma.store.memory import MemoryStore

DATA = bytes(range(256)) * 4000


@pytest.fixture
async def wire(serve, token, tmp_path):
    origin = MemoryStore()
    for name in ("a", "b"):
        upload = await origin.create(f"/d/{name}")
        await upload.write(DATA)
        await upload.commit()
    cache = CacheStore(tmp_path / "kept", Origins(origin, name="https://origin.example"), Cache())
    async with serve(stores={"own": cache}) as server:  # which closes it
        one = await server.dial(cgi=f"authz=Bearer%20{token()}".encode())
        yield one
        await one.close()


async def state(wire, path="/own/d/a"):
    """Whether it is said to be held, and to have been read from here."""
    status, said = await wire.ask(Code.STAT, P_STAT.pack(0, bytes(4)), path.encode())
    assert status == Status.OK, said
    return bool(stat_line(said[:-1].decode()).flags & 512), said.split()[5] != b"0"


async def brought(wire, path="/own/d/a"):
    status, _ = await wire.ask(Code.PREPARE, bytes([8]) + bytes(15), path.encode())
    assert status == Status.OK
    for _ in range(2000):
        if (await state(wire, path))[0]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come")


async def test_prepare_fetches_a_file_which_is_then_said_to_be_held(wire):
    assert await state(wire) == (False, False)
    assert (await wire.refused(Code.SET, NOTHING, b"cache cached /own/d/a"))[0] == 3035
    await brought(wire)
    assert await state(wire) == (True, True)
    assert await wire.ask(Code.SET, NOTHING, b"cache cached /own/d/a") == (Status.OK, b"")
    status, said = await wire.ask(Code.DIRLIST, P_DIRLIST.pack(2), b"/own/d")
    assert status == Status.OK
    assert [(name, bool(line.flags & 512)) for name, line in listing(said)] == [("a", True), ("b", False)]


async def test_what_is_held_is_given_up_on_command(wire, token):
    await brought(wire)
    handle = await wire.open("/own/d/a")
    assert (await wire.refused(Code.SET, NOTHING, b"cache evict /own/d/a"))[0] == 3032
    assert (await wire.refused(Code.SET, NOTHING, b"cache fevict /own/d/a"))[0] == 3010
    reader = token("storage.read:/")
    words = f"cache evict /own/d/a?authz=Bearer%20{reader}".encode()
    assert (await wire.refused(Code.SET, NOTHING, words))[0] == 3010
    admin = token("storage.read:/ doma.admin")
    words = f"cache fevict /own/d/a?authz=Bearer%20{admin}".encode()
    assert await wire.ask(Code.SET, NOTHING, words) == (Status.OK, b"")
    assert await state(wire) == (False, False)
    await wire.ask(Code.CLOSE, handle + bytes(12))
    assert (await wire.refused(Code.SET, NOTHING, b"cache evict /own/d/b"))[0] == 3011


async def test_a_cache_refuses_every_change_and_names_its_origin(wire):
    for code, body, data in (
        (Code.OPEN, P_OPEN.pack(0o644, Open.NEW | Open.UPDATE, 0), b"/own/new"),
        (Code.OPEN, P_OPEN.pack(0o644, Open.DELETE, 0), b"/own/d/a"),
        (Code.MKDIR, P_MKDIR.pack(1, 0), b"/own/x"),
        (Code.MV, P_MV.pack(8), b"/own/d/a /own/d/c"),
        (Code.RM, NOTHING, b"/own/d/a"),
        (Code.RMDIR, NOTHING, b"/own/d"),
        (Code.CHMOD, NOTHING, b"/own/d/a"),
        (Code.TRUNCATE, NOTHING, b"/own/d/a"),
    ):
        number, text = await wire.refused(code, body, data)
        assert (number, "https://origin.example" in text) == (3025, True), text
        assert text.startswith("/own/")


async def test_checksums_and_space_are_answered_for_the_origin(wire):
    status, said = await wire.ask(Code.QUERY, P_QUERY.pack(3, bytes(4)), b"/own/d/a?cks.type=crc32c")
    assert (status, said.split()[0]) == (Status.OK, b"crc32c")
    status, said = await wire.ask(Code.QUERY, P_QUERY.pack(5, bytes(4)), b"/own")
    assert (status, b"oss.used=" in said) == (Status.OK, True)
    status, said = await wire.ask(Code.QUERY, P_QUERY.pack(7, bytes(4)), b"role")
    assert (status, said) == (Status.OK, b"proxy\n")
