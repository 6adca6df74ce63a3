"""Connections to others that have served before: what they may be used for, and what is asked once more."""

import asyncio

import pytest

from doma.doors import tpc
from tests.e2e.tpc.conftest import Other, serving


class Counted(Other):
    """Numbers its connections; ``seen`` tells requests, ``over`` the connection of each."""

    def __init__(self, data, odd=None):
        super().__init__(data)
        self.over, self._known = [], {}
        self._odd, self.act = odd, self._count

    async def _count(self, asked, writer):
        self.over.append(self._known.setdefault(writer, len(self._known)))
        again = self.over.count(self.over[-1]) > 1
        return bool(self._odd is not None and again and await self._odd(asked, writer))


@pytest.fixture
async def make_other():
    """Sources whose kept connections answer as a function says."""
    open_ones = []

    async def make(data, odd=None):
        context = serving(Counted(data, odd))
        open_ones.append(context)
        return await context.__aenter__()

    yield make
    for context in open_ones:
        await context.__aexit__(None, None, None)


async def test_a_connection_is_kept_but_not_after_an_empty_file(door, make_other):
    other = await make_other(b"")
    for name in "ab":
        assert (await door.copy(f"/site/{name}", Source=other.url)).last == "success: Created"
    assert other.over == [0, 1]
    other.data = b"x"
    for name in "cd":
        assert (await door.copy(f"/site/{name}", Source=other.url)).last == "success: Created"
    assert other.over == [0, 1, 2, 2]


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_an_odd_answer_over_a_kept_connection_is_asked_for_again_at_once(door, make_other, status):
    async def odd(asked, writer):
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 3\r\n\r\nodd" % status)
        return True

    other = await make_other(b"some bytes", odd)
    for name in "ab":
        assert (await door.copy(f"/site/{name}", Source=other.url)).last == "success: Created"
    assert other.over == [0, 0, 1]
    assert {asked.method for asked in other.seen} == {"GET"}
    assert door.record("copy.finished")["attempts"] == 1


async def test_a_kept_connection_that_stays_silent_is_left_for_a_fresh_one(
    make_door, make_other, monkeypatch
):
    monkeypatch.setattr(tpc, "AGAIN", 0.2)
    door = await make_door()

    async def odd(asked, writer):
        await asyncio.Event().wait()

    other = await make_other(b"some bytes", odd)
    for name in "ab":
        assert (await door.copy(f"/site/{name}", Source=other.url)).last == "success: Created"
    assert other.over == [0, 0, 1]


async def test_a_kept_connection_over_which_a_head_comes_but_no_body_is_left_too(
    make_door, make_other, monkeypatch
):
    monkeypatch.setattr(tpc, "AGAIN", 0.2)
    door = await make_door()

    async def odd(asked, writer):
        writer.write(other.head(200, len(other.data)))
        await writer.drain()
        await asyncio.Event().wait()

    other = await make_other(b"some bytes", odd)
    for name in "ab":
        assert (await door.copy(f"/site/{name}", Source=other.url)).last == "success: Created"
    assert other.over == [0, 0, 1]
    assert door.record("copy.finished")["attempts"] == 2
    assert (door.folder / "b").read_bytes() == b"some bytes"


async def test_what_is_not_there_is_asked_for_over_two_connections_at_most(door, make_other):
    other = await make_other(b"x")
    assert (await door.copy("/site/a", Source=other.url)).last == "success: Created"

    async def gone(asked, writer):
        other.over.append(asked.method)
        writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        return True

    other.act = gone
    assert (await door.copy("/site/b", Source=other.url)).status == 404
    assert len(other.seen) <= 5


async def test_every_failure_names_the_path_of_the_other_side_without_its_query(make_door, other):
    door = await make_door(stall=0.3)
    place = f"http://127.0.0.1:{other.port}/a/f.root"

    async def short(asked, writer):
        writer.write(other.head(200, len(other.data)) + other.data[:10])
        await writer.drain()
        writer.close()
        return True

    async def silent(asked, writer):
        writer.write(other.head(200, len(other.data)) + other.data[:10])
        await asyncio.sleep(5)

    async def garbled(asked, writer):
        writer.write(b"what?\r\n\r\n")
        return True

    for act, digest in ((short, ""), (silent, ""), (garbled, ""), (None, None), (None, "adler32=00000001")):
        other.act, other.digest = act, digest
        told = await door.copy("/site/f", Source=f"{other.url}?authz=hush")
        said = told.text if told.status >= 400 else told.last
        assert place in said
        assert "hush" not in said
    (door.folder / "f").write_bytes(b"x")
    for port in (22, 1025):  # one that is refused, one where nobody is
        there = f"http://127.0.0.1:{port}/there"
        told = await door.copy("/site/f", Destination=f"{there}?AWSAccessKeyId=hush&sig=hush")
        assert there in told.text
        assert "hush" not in told.text


async def test_a_signature_is_not_told_when_a_destination_says_too_much(door, other):
    (door.folder / "f").write_bytes(b"x")

    async def act(asked, writer):
        writer.write(other.head(201, 2 << 20) + bytes(2 << 20))
        return True

    other.act = act
    told = await door.copy("/site/f", Destination=f"{other.url}?X-Amz-Signature=hush")
    assert told.last.startswith("failure:")
    assert "hush" not in told.text + str([event.data for event in door.events])
