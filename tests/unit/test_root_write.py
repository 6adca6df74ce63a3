"""What the root door takes, holds back and publishes, over a store in memory; no socket."""

import asyncio
import zlib
from random import Random

import pytest

from doma.auth.gate import Gate
from doma.auth.model import Verb
from doma.core.errors import (
    AlreadyExists,
    BadRequest,
    ChecksumMismatch,
    Conflict,
    DomaError,
    Forbidden,
    NotFound,
    StorageFull,
    TooManyRequests,
    Unsupported,
    WrongSize,
)
from doma.doors import root_write, root_writing
from doma.doors.endpoint import Endpoint
from doma.net.xroot_errors import code_of
from doma.net.xroot_frames import (
    ANSWER,
    P_PGWRITE,
    P_STAT,
    P_TRUNCATE,
    P_WRITE,
    Code,
    Open,
)
from doma.net.xroot_pages import STATUS, corrections, interleaved, page_head
from doma.net.xroot_text import stat_line
from doma.store.memory import MemoryStore
from tests.unit.root_client import ISSUER, Client, refused, who


@pytest.fixture
def client() -> Client:
    gate = Gate({ISSUER: ["/"]}, name="site")
    closed = Endpoint("data", MemoryStore(), Gate({ISSUER: ["/"]}, name="data"), writable=False)
    return Client(site=Endpoint("site", MemoryStore(), gate), data=closed)


async def test_what_is_written_appears_when_it_is_closed(client):
    data = Random(1).randbytes(3_000_000)
    handle = await client.open("/site/new/dir/f?oss.asize=3000000")
    await client.write(handle, 0, data[:1_000_000])
    await refused(client.ask(Code.STAT, b"/site/new/dir/f"), NotFound, 3011)
    assert (
        stat_line((await client.ask(Code.STAT, b"", P_STAT.pack(0, handle)))[:-1].decode()).size == 1_000_000
    )
    await client.write(handle, 1_000_000, data[1_000_000:])
    await client.ask(Code.SYNC, b"", handle + bytes(12))
    await client.close(handle)
    assert await client.get("/site/new/dir/f") == data
    assert client.told() == [("file.landed", "/site/new/dir/f")]
    assert client.events[0].data["size"] == 3_000_000
    assert client.events[0].owner == f"{ISSUER}#ada"


async def test_bytes_may_come_out_of_order_as_over_several_streams(client):
    data, rng = Random(2).randbytes(1 << 20), Random(3)
    pieces = [(at, data[at : at + 70_000]) for at in range(0, len(data), 70_000)]
    rng.shuffle(pieces)
    handle = await client.open("/site/f")
    await asyncio.gather(*(client.write(handle, at, piece) for at, piece in pieces))
    await client.close(handle)
    assert await client.get("/site/f") == data


async def test_what_runs_too_far_ahead_is_refused(client, monkeypatch):
    monkeypatch.setattr(root_writing, "AHEAD", 1000)
    handle = await client.open("/site/f")
    await client.write(handle, 5000, bytes(900))
    await refused(client.write(handle, 8000, bytes(900)), Unsupported, 3013)
    await refused(client.close(handle), Unsupported, 3013)
    await refused(client.ask(Code.STAT, b"/site/f"), NotFound, 3011)


async def test_what_waits_of_all_files_together_is_bounded_and_given_back(client, monkeypatch):
    monkeypatch.setattr(root_writing, "ROOM", 1000)
    one, two = await client.open("/site/one"), await client.open("/site/two")
    await client.write(one, 10, bytes(900))
    await refused(client.write(two, 200, bytes(200)), TooManyRequests, 3024)
    await client.write(two, 0, bytes(200))
    await client.session.files.pop(one).drop()
    await client.write(two, 400, bytes(200))
    await client.write(two, 200, bytes(200))
    await client.close(two)
    assert await client.get("/site/two") == bytes(600)
    assert root_writing._Room.used == 0


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (4, 5), (9, 1)])
async def test_a_byte_that_comes_twice_ends_the_upload(client, offset, size):
    handle = await client.open("/site/f")
    await client.write(handle, 0, bytes(10))
    await refused(client.write(handle, offset, bytes(size)), Unsupported, 3013)
    await refused(client.write(handle, 10, b"more"), Unsupported, 3013)
    await refused(client.close(handle), Unsupported, 3013)
    await refused(client.ask(Code.STAT, b"/site/f"), NotFound, 3011)


async def test_a_hole_is_never_published(client):
    handle = await client.open("/site/f")
    await client.write(handle, 0, b"12")
    await client.write(handle, 3, b"45")
    await refused(client.close(handle), WrongSize, 3026)
    await refused(client.ask(Code.STAT, b"/site/f"), NotFound, 3011)
    assert client.events == []


@pytest.mark.parametrize("offset", [-1, (1 << 63) - 1, 1 << 62])
async def test_offsets_that_no_file_has_are_refused(client, offset):
    handle = await client.open("/site/f")
    await refused(client.write(handle, offset, b"12"), BadRequest, 3000)
    handle = await client.open("/site/g")
    with pytest.raises(BadRequest):
        await client.ask(Code.PGWRITE, interleaved(0, b"12"), P_PGWRITE.pack(handle, offset, 0, 0))


async def test_more_or_fewer_bytes_than_announced_are_not_published(client):
    handle = await client.open("/site/f?oss.asize=4")
    await refused(client.write(handle, 0, b"12345"), WrongSize, 3026)
    handle = await client.open("/site/f?oss.asize=4")
    await client.write(handle, 0, b"123")
    await refused(client.close(handle), WrongSize, 3026)
    await refused(client.ask(Code.STAT, b"/site/f"), NotFound, 3011)
    with pytest.raises(BadRequest, match=r"oss\.asize"):
        await client.open("/site/f?oss.asize=-4")


async def test_space_is_refused_when_the_file_is_announced(client):
    small = Client(site=Endpoint("site", MemoryStore(1000), client.site.endpoints["site"].gate))
    await refused(small.open("/site/f?oss.asize=2000"), StorageFull, 3009)
    handle = await small.open("/site/f")
    await refused(small.write(handle, 0, bytes(2000)), StorageFull, 3009)
    await refused(small.close(handle), StorageFull, 3009)
    await refused(small.ask(Code.STAT, b"/site/f"), NotFound, 3011)


async def test_a_stated_checksum_is_verified(client):
    value = f"{zlib.adler32(b'12345'):08x}"
    handle = await client.open(f"/site/f?cks.type=adler32&cks.value={value}")
    await client.write(handle, 0, b"12345")
    await client.close(handle)
    handle = await client.open(f"/site/g?cks.value={value}")
    await client.write(handle, 0, b"12346")
    await refused(client.close(handle), ChecksumMismatch, 3019)
    await refused(client.ask(Code.STAT, b"/site/g"), NotFound, 3011)
    with pytest.raises(Unsupported):
        await client.open("/site/g?cks.type=nonsense&cks.value=1")


async def test_a_file_is_replaced_only_on_demand(client):
    await client.put("/site/f", b"old")
    await refused(client.open("/site/f", Open.NEW | Open.UPDATE), AlreadyExists, 3018)
    handle = await client.open("/site/f", Open.DELETE | Open.UPDATE)
    await client.write(handle, 0, b"new one")
    assert await client.get("/site/f") == b"old"
    await client.close(handle)
    assert await client.get("/site/f") == b"new one"
    await refused(client.open("/site", Open.DELETE), Conflict, 3016)
    await client.ask(Code.MKDIR, b"/site/d")
    await refused(client.open("/site/d", Open.NEW), Conflict, 3016)


async def test_of_two_who_make_one_name_the_second_is_told(client):
    one, two = await client.open("/site/f"), await client.open("/site/f")
    await client.write(one, 0, b"one")
    await client.write(two, 0, b"two")
    await client.close(two)
    await refused(client.close(one), AlreadyExists, 3018)
    assert await client.get("/site/f") == b"two"


async def test_a_token_that_only_creates_replaces_nothing(client):
    await client.put("/site/f", b"old")
    client.session.identity = who((Verb.CREATE, "/"))
    await refused(client.open("/site/f", Open.DELETE), Forbidden, 3010)
    await client.put("/site/g", b"mine")
    client.session.identity = who((Verb.READ, "/"))
    await refused(client.open("/site/h"), Forbidden, 3010)


@pytest.mark.parametrize("options", [Open.UPDATE, Open.APPEND | Open.UPDATE, Open.NEW | Open.APPEND])
async def test_changes_in_place_are_refused_with_the_remedy(client, options):
    await client.put("/site/f", b"old")
    error = await refused(client.open("/site/f", options), Unsupported, 3013)
    assert "write it anew" in error.message
    assert await client.get("/site/f") == b"old"
    await refused(client.open("/site/gone", Open.UPDATE), NotFound, 3011)


async def test_a_client_that_goes_away_leaves_nothing(client):
    await client.put("/site/f", b"old")
    handle = await client.open("/site/f", Open.DELETE)
    await client.write(handle, 0, b"half of the n")
    file = client.session.files.pop(handle)
    await file.drop()
    await file.drop()
    assert await client.get("/site/f") == b"old"


async def test_a_session_writes_only_so_many_files_at_once(client, monkeypatch):
    monkeypatch.setattr(root_write, "MOST_OPEN", 2)
    first, _ = await client.open("/site/1"), await client.open("/site/2")
    await refused(client.open("/site/3"), DomaError, 3008)
    await client.close(first)
    await client.open("/site/3")


async def test_damaged_pages_come_again_before_the_file_is_published(client):
    data = Random(4).randbytes(5 * 4096 + 100)
    wire = bytearray(interleaved(0, data))
    for page in (1, 5):
        wire[page * 4100 + 50] ^= 1
    handle = await client.open("/site/f")
    told = await client.ask(Code.PGWRITE, bytes(wire), P_PGWRITE.pack(handle, 0, 0, 0))
    head = page_head(told, ANSWER.size)
    assert (head.stream, head.request, head.offset) == (7, Code.PGWRITE, 0)
    bad = corrections(told[ANSWER.size + STATUS.size :], 0, len(data))
    assert bad == [(4096, 4096), (5 * 4096, 100)]
    for at, size in reversed(bad):
        again = interleaved(at, data[at : at + size])
        told = await client.ask(Code.PGWRITE, again, P_PGWRITE.pack(handle, at, 0, 1))
        assert corrections(told[ANSWER.size + STATUS.size :], at, size) == []
    await client.close(handle)
    assert await client.get("/site/f") == data


@pytest.mark.parametrize("page", [0, 1, 2])
async def test_pages_that_stay_damaged_are_never_published(client, page):
    data = Random(5).randbytes(3 * 4096)
    wire = bytearray(interleaved(0, data))
    wire[page * 4100 + 50] ^= 1
    handle = await client.open("/site/f")
    await client.ask(Code.PGWRITE, bytes(wire), P_PGWRITE.pack(handle, 0, 0, 0))
    await refused(client.close(handle), ChecksumMismatch, 3019)
    await refused(client.ask(Code.STAT, b"/site/f"), NotFound, 3011)


async def test_pages_without_data_or_damaged_by_the_hundred_end_the_request(client):
    handle = await client.open("/site/f")
    with pytest.raises(BadRequest):
        await client.ask(Code.PGWRITE, bytes(4), P_PGWRITE.pack(handle, 0, 0, 0))
    bad = bytes(4100 * 200)
    with pytest.raises(DomaError) as caught:
        await client.ask(Code.PGWRITE, bad, P_PGWRITE.pack(handle, 0, 0, 0))
    assert code_of(caught.value) == 3033


async def test_a_handle_that_was_never_opened_is_told_so(client):
    for code, body in (
        (Code.WRITE, P_WRITE.pack(b"none", 0, 0)),
        (Code.PGWRITE, P_PGWRITE.pack(b"none", 0, 0, 0)),
        (Code.SYNC, b"none" + bytes(12)),
        (Code.TRUNCATE, P_TRUNCATE.pack(b"none", 0)),
        (Code.STAT, P_STAT.pack(0, b"none")),
    ):
        with pytest.raises(DomaError) as caught:
            await client.ask(code, b"", body)
        assert code_of(caught.value) == 3004


async def test_truncate_cuts_a_file_and_stretches_none(client):
    await client.put("/site/f", b"0123456789")
    client.events.clear()
    assert await client.ask(Code.TRUNCATE, b"/site/f", P_TRUNCATE.pack(bytes(4), 4)) == b""
    assert await client.get("/site/f") == b"0123"
    assert client.told() == [("file.landed", "/site/f")]
    assert await client.ask(Code.TRUNCATE, b"/site/f", P_TRUNCATE.pack(bytes(4), 4)) == b""
    await refused(
        client.ask(Code.TRUNCATE, b"/site/f", P_TRUNCATE.pack(bytes(4), 1 << 62)), Unsupported, 3013
    )
    await refused(client.ask(Code.TRUNCATE, b"/site/f", P_TRUNCATE.pack(bytes(4), -1)), BadRequest, 3000)
    await refused(client.ask(Code.TRUNCATE, b"/site", P_TRUNCATE.pack(bytes(4), 0)), Conflict, 3016)
    handle = await client.open("/site/g")
    await client.write(handle, 0, b"12")
    await client.ask(Code.TRUNCATE, b"", P_TRUNCATE.pack(handle, 2))
    await refused(client.ask(Code.TRUNCATE, b"", P_TRUNCATE.pack(handle, 9)), Unsupported, 3013)
