"""Our own root:// engine reads from our own door: a second, independent client of it."""

import zlib

import pytest

from doma.auth.model import bearer
from doma.core.errors import Conflict, Forbidden, NotFound, PreconditionFailed, Unauthenticated
from doma.store.xrootd import XrootdStore
from tests.e2e.root.conftest import CONTENT


async def all_of(store, path):
    reader = await store.open(path)
    parts = [
        bytes(await reader.read(at, min(at + (1 << 20), reader.stat.size)))
        for at in range(0, reader.stat.size, 1 << 20)
    ]
    await reader.close()
    return b"".join(parts)


async def test_files_are_read_described_and_listed(server):
    store = XrootdStore(f"root://127.0.0.1:{server.address[1]}//pub")
    (server.folder / "pub" / "d").mkdir()
    (server.folder / "pub" / "d" / "a b#é").write_bytes(b"x")
    assert await all_of(store, "/f") == CONTENT
    assert (await store.stat("/f")).size == len(CONTENT)
    assert await store.checksum("/f", "adler32") == f"{zlib.adler32(CONTENT):08x}"
    assert [(s.path, s.is_dir) async for s in store.list("/")] == [("/d", True), ("/f", False)]
    assert [s.path async for s in store.list("/d")] == ["/d/a b#é"]
    assert await all_of(store, "/d/a b#é") == b"x"
    with pytest.raises(NotFound, match="/none"):
        await store.open("/none")
    with pytest.raises((Conflict, NotFound)):
        await store.open("/d")
    await store.close()


async def test_a_file_that_is_replaced_is_another_version(server):
    store = XrootdStore(f"root://127.0.0.1:{server.address[1]}//pub")
    before = (await store.stat("/f")).version
    (server.folder / "pub" / "f").write_bytes(CONTENT[:-1] + b"!")
    assert (await store.stat("/f")).version != before
    reader = await store.open("/f")
    (server.folder / "pub" / "f").write_bytes(b"short")
    with pytest.raises((PreconditionFailed, Conflict)):
        await reader.read(len(CONTENT) - 1000, len(CONTENT))
    await reader.close()
    await store.close()


async def test_a_token_goes_with_the_login_under_tls(server, token):
    store = XrootdStore(f"roots://localhost:{server.address[1]}//own", ca_file=server.ca)
    with pytest.raises(Unauthenticated):
        await store.stat("/f")
    for scope, right in (("storage.read:/", True), ("storage.read:/other", False)):
        held = bearer.set(token(scope))
        try:
            if right:
                assert await all_of(store, "/f") == CONTENT
            else:
                with pytest.raises(Forbidden):
                    await store.open("/f")
        finally:
            bearer.reset(held)
    await store.close()
