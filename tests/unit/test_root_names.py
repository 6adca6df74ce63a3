"""What the root door says of names and does with them, over a store in memory; no socket."""

import zlib

import pytest

from doma.auth.gate import Gate
from doma.auth.model import Verb
from doma.core.errors import (
    AlreadyExists,
    BadPath,
    BadRequest,
    Conflict,
    DomaError,
    Forbidden,
    LimitExceeded,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    Unauthenticated,
)
from doma.doors import root_names
from doma.doors.endpoint import Endpoint
from doma.doors.root_call import Call
from doma.net.xroot_errors import code_of
from doma.net.xroot_frames import (
    P_DIRLIST,
    P_MKDIR,
    P_MV,
    P_STAT,
    Code,
    Open,
)
from doma.net.xroot_text import listing, stat_line
from doma.store.memory import MemoryStore
from tests.unit.root_client import ISSUER, Client, refused, who


@pytest.fixture
def client() -> Client:
    gate = Gate({ISSUER: ["/"]}, name="site")
    closed = Endpoint("data", MemoryStore(), Gate({ISSUER: ["/"]}, name="data"), writable=False)
    return Client(site=Endpoint("site", MemoryStore(), gate), data=closed)


async def test_a_stat_line_says_what_the_asker_may_do(client):
    await client.put("/site/a/f", b"12345")
    line = stat_line((await client.ask(Code.STAT, b"/site/a/f?x=1\0"))[:-1].decode())
    assert (line.size, line.flags, line.mode) == (5, 16 | 32, "0644")
    client.session.identity = who((Verb.READ, "/a"))
    line = stat_line((await client.ask(Code.STAT, b"//site//a/"))[:-1].decode())
    assert (line.is_dir, line.flags, line.mode) == (True, 1 | 2 | 16, "0555")
    assert line.id != stat_line((await client.ask(Code.STAT, b"/site/a/f"))[:-1].decode()).id
    assert stat_line((await client.ask(Code.STAT, b"/"))[:-1].decode()).is_dir


async def test_another_content_is_another_number(client):
    await client.put("/site/f", b"1")
    first = stat_line((await client.ask(Code.STAT, b"/site/f"))[:-1].decode()).id
    handle = await client.open("/site/f", Open.DELETE)
    await client.write(handle, 0, b"2")
    await client.close(handle)
    assert stat_line((await client.ask(Code.STAT, b"/site/f"))[:-1].decode()).id != first


async def test_the_file_system_is_described_in_six_numbers(client):
    told = await client.ask(Code.STAT, b"/site", P_STAT.pack(1, bytes(4)))
    assert len(told.rstrip(b"\0").split()) == 6
    assert told.startswith(b"1 ")
    assert (await client.ask(Code.STAT, b"/data", P_STAT.pack(1, bytes(4)))).startswith(b"0 ")


async def test_statx_answers_a_byte_a_path(client):
    await client.put("/site/d/f", b"1")
    assert await client.ask(Code.STATX, b"/site/d\n/site/d/f\n/site") == b"\x02\x00\x02"
    await refused(client.ask(Code.STATX, b"/site/d\n/site/gone"), NotFound, 3011)
    await refused(client.ask(Code.STATX, b"/site\n" * 2000), LimitExceeded, 3002)


async def test_a_listing_comes_plain_with_stat_and_with_checksums(client):
    for name in ("b c", "a", "ü"):
        await client.put(f"/site/d/{name}", name.encode())
    await client.ask(Code.MKDIR, b"/site/d/sub", P_MKDIR.pack(0, 0o755))
    assert await client.ask(Code.DIRLIST, b"/site/d") == "a\nb c\nsub\nü".encode() + b"\0"
    told = await client.ask(Code.DIRLIST, b"/site/d", P_DIRLIST.pack(2))
    assert [(name, line.size, line.is_dir) for name, line in listing(told)] == [
        ("a", 1, False),
        ("b c", 3, False),
        ("sub", 0, True),
        ("ü", 2, False),
    ]
    told = await client.ask(Code.DIRLIST, b"/site/d", P_DIRLIST.pack(4))
    assert f" [ adler32:{zlib.adler32(b'a'):08x} ]".encode() in told
    assert b"doma doma [ adler32:none ]\n" in told
    assert await client.ask(Code.DIRLIST, b"/site/d/sub", P_DIRLIST.pack(2)) == b""
    assert await client.ask(Code.DIRLIST, b"/") == b"site\ndata\0"
    await refused(client.ask(Code.DIRLIST, b"/site/d/a"), Conflict, 3015)
    await refused(client.ask(Code.DIRLIST, b"/site/gone"), NotFound, 3011)


async def test_a_long_listing_comes_in_parts_that_end_between_entries(client):
    store = client.site.endpoints["site"].store
    await store.make_dir("/many")
    for i in range(1500):
        await store.make_dir(f"/many/{'n' * 60}{i:04d}")
    call = Call(client.site, client.session, 7, Code.DIRLIST, P_DIRLIST.pack(2), b"/site/many")
    parts = [part async for part in await root_names.dirlist(call)]
    assert len(parts) > 2
    assert all(len(part) <= 64 << 10 for part in parts)
    assert all(part.endswith(b"\n") for part in parts[:-1])
    assert parts[-1].endswith(b"\0")
    assert len(list(listing(b"".join(parts)))) == 1500


async def test_only_what_one_may_know_of_is_listed(client):
    await client.put("/site/mine/f", b"1")
    await client.put("/site/other/f", b"1")
    client.session.identity = who((Verb.READ, "/mine"))
    await refused(client.ask(Code.DIRLIST, b"/site/"), Forbidden, 3010)
    assert await client.ask(Code.DIRLIST, b"/site/mine") == b"f\0"
    await refused(client.ask(Code.STAT, b"/site/other/f"), Forbidden, 3010)
    client.session.identity = None
    await refused(client.ask(Code.STAT, b"/site/mine/f"), Unauthenticated, 3030)
    assert await client.ask(Code.DIRLIST, b"/") == b""


async def test_locate_gives_the_address_that_was_reached(client):
    await client.put("/site/f", b"1")
    assert await client.ask(Code.LOCATE, b"/site/f") == b"Sw127.0.0.1:1094\0"
    assert await client.ask(Code.LOCATE, b"*/data") == b"Sr127.0.0.1:1094\0"
    client.session.local = ("2001:db8::1", 1)
    assert await client.ask(Code.LOCATE, b"*") == b"Sr[2001:db8::1]:1\0"
    await refused(client.ask(Code.LOCATE, b"*/site/gone"), NotFound, 3011)


async def test_directories_are_made_one_by_one_or_all_the_way(client):
    await refused(client.ask(Code.MKDIR, b"/site/a/b", P_MKDIR.pack(0, 0)), Conflict, 3032)
    assert await client.ask(Code.MKDIR, b"/site/a/b/c", P_MKDIR.pack(1, 0)) == b""
    assert client.told() == [("directory.made", f"/site/{p}") for p in ("a", "a/b", "a/b/c")]
    assert await client.ask(Code.MKDIR, b"/site/a/b/c", P_MKDIR.pack(1, 0)) == b""
    await refused(client.ask(Code.MKDIR, b"/site/a", P_MKDIR.pack(0, 0)), AlreadyExists, 3018)
    await client.put("/site/f", b"1")
    await refused(client.ask(Code.MKDIR, b"/site/f/x", P_MKDIR.pack(1, 0)), Conflict, 3032)
    await refused(client.ask(Code.MKDIR, b"/site" + b"/d" * 300, P_MKDIR.pack(1, 0)), BadPath, 3000)


async def test_a_narrow_token_makes_the_way_to_its_own_place_only(client):
    client.session.identity = who((Verb.CREATE, "/a/mine"))
    await client.ask(Code.MKDIR, b"/site/a/mine/x", P_MKDIR.pack(1, 0))
    await refused(client.ask(Code.MKDIR, b"/site/b", P_MKDIR.pack(1, 0)), Forbidden, 3010)


async def test_rm_takes_files_and_rmdir_empty_directories(client):
    await client.put("/site/d/f", b"123")
    await refused(client.ask(Code.RM, b"/site/d"), Conflict, 3016)
    await refused(client.ask(Code.RMDIR, b"/site/d/f"), Conflict, 3015)
    await refused(client.ask(Code.RMDIR, b"/site/d"), Conflict, 3018)
    client.events.clear()
    await client.ask(Code.RM, b"/site/d/f")
    await client.ask(Code.RMDIR, b"/site/d")
    assert client.told() == [("file.deleted", "/site/d/f"), ("file.deleted", "/site/d")]
    await refused(client.ask(Code.RM, b"/site/d/f"), NotFound, 3011)


async def test_the_top_of_an_endpoint_or_area_is_never_removed(client):
    gate = Gate({ISSUER: ["/vo"]}, name="site")
    client = Client(site=Endpoint("site", client.site.endpoints["site"].store, gate))
    await client.ask(Code.MKDIR, b"/site/vo/x", P_MKDIR.pack(1, 0))
    for path in (b"/site/vo", b"/site"):
        with pytest.raises((Forbidden, DomaError)) as caught:
            await client.ask(Code.RMDIR, path)
        assert code_of(caught.value) == 3010
        await refused(client.ask(Code.MV, path + b" /site/vo/y", P_MV.pack(len(path))), DomaError, 3010)
    await client.ask(Code.RMDIR, b"/site/vo/x")


async def test_mv_moves_files_over_files_and_never_over_directories(client):
    await client.put("/site/a b", b"1")
    await client.put("/site/c", b"2")
    await client.put("/site/d/e", b"3")
    await client.ask(Code.MV, b"/site/a b /site/c", P_MV.pack(9))
    assert await client.get("/site/c") == b"1"
    assert client.told()[-1] == ("file.moved", "/site/c")
    await refused(client.ask(Code.MV, b"/site/c /site/d", P_MV.pack(7)), PreconditionFailed, 3032)
    await refused(client.ask(Code.MV, b"/site/d /site/d/x", P_MV.pack(7)), DomaError, 3010)
    await refused(client.ask(Code.MV, b"/site/gone /site/x", P_MV.pack(10)), NotFound, 3011)
    await client.ask(Code.MV, b"/site/c /site/d/c")
    assert await client.get("/site/d/c") == b"1"


@pytest.mark.parametrize("length", [-1, 8, 99, 32767, 6])
async def test_an_mv_that_lies_about_its_first_path_is_refused(client, length):
    await client.put("/site/f", b"1")
    with pytest.raises(BadRequest):
        await client.ask(Code.MV, b"/site/f /site/g"[:15], P_MV.pack(length))
    assert await client.get("/site/f") == b"1"


async def test_chmod_is_taken_and_changes_nothing(client):
    await client.put("/site/f", b"1")
    assert await client.ask(Code.CHMOD, b"/site/f") == b""
    await refused(client.ask(Code.CHMOD, b"/site/gone"), NotFound, 3011)


async def test_a_closed_endpoint_refuses_every_change(client):
    for ask in (
        client.open("/data/f"),
        client.ask(Code.MKDIR, b"/data/d", P_MKDIR.pack(1, 0)),
        client.ask(Code.RM, b"/data/f"),
        client.ask(Code.RMDIR, b"/data/f"),
        client.ask(Code.MV, b"/data/f /data/g", P_MV.pack(7)),
        client.ask(Code.CHMOD, b"/data/f"),
        client.ask(Code.TRUNCATE, b"/data/f"),
    ):
        error = await refused(ask, NotAllowed, 3025)
        assert "'data' is read-only" in error.message


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"site/f",
        b"/site/../etc/passwd",
        b"/site/.doma/x",
        b"/site/a\nb",
        b"/site/\xff",
        b"/site/" + b"x" * 300,
        b"/" + b"a/" * 9000,
        b"/site/" + b"x/" * 4000,
    ],
)
async def test_bad_paths_are_one_clear_error_for_every_request(client, path):
    for code in (
        Code.STAT,
        Code.DIRLIST,
        Code.RM,
        Code.RMDIR,
        Code.MKDIR,
        Code.CHMOD,
        Code.OPEN,
        Code.LOCATE,
    ):
        if not path and code in {Code.STAT, Code.LOCATE}:
            continue
        with pytest.raises(DomaError) as caught:
            await client.ask(code, path)
        assert caught.value.http < 500
    assert client.events == []
