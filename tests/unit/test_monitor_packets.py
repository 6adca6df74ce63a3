"""Monitoring packets, against packets that a real XRootD 5.5.3 proxy cache sent and a reader of our own."""

import json
from collections.abc import Iterator
from pathlib import Path
from struct import unpack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core.events import Event
from doma.monitor import packets
from doma.monitor.opens import Cached, Client, Opened, Sizes

RECORDED = [
    bytes.fromhex(line)
    for line in json.loads((Path(__file__).parent.parent / "data/xrootd-5.5.3-packets.json").read_text())
]
"""One xrdcp, which was cold, then others, of a file of 300,000 bytes."""
SID = 178555558973498


def records(body: bytes) -> Iterator[bytes]:
    """The records of an f-packet's body, by the sizes that they state."""
    while body:
        size = unpack_from(">H", body, 2)[0]
        assert 8 <= size <= len(body)
        yield body[:size]
        body = body[size:]


def of_code(code: bytes) -> list[bytes]:
    return [data for data in RECORDED if data[:1] == code]


def file(path: str = "/f1.bin", size: int = 300_000) -> Opened:
    return Opened(Client("xroot", "::ffff:127.0.0.1", 1), f"/cache{path}", size, writing=False, since=0)


def test_a_login_is_told_as_xrootd_tells_it() -> None:
    recorded = of_code(b"u")[0]
    pid = int(recorded.partition(b"root.")[2].partition(b":")[0])
    client = Client(
        "xroot", "::ffff:127.0.0.1", 1, name="root", pid=pid, app="xrdcp", release="v5.5.3"
    )  # fmt: skip
    body = packets.mapping(1, packets.who(client, SID), packets.login(client))
    start = unpack_from(">i", recorded, 4)[0]
    assert packets.packet("u", 1, start, body) == recorded


def test_an_open_and_the_end_of_a_login_are_told_as_xrootd_tells_them() -> None:
    found = list(records(of_code(b"f")[0][8:]))
    assert packets.opened(2, 1, file()) == found[1]
    assert packets.left(1) == found[3]


def test_a_close_has_the_places_that_xrootd_gives_it() -> None:
    recorded = next(r for r in records(of_code(b"f")[0][8:]) if r[0] == 0)
    mine = file()
    count, total = unpack_from(">i", recorded, 32)[0], unpack_from(">q", recorded, 8)[0]
    # 5.5.3 counts reads of pages but not their sizes: the least stays where it began
    mine.reads = Sizes(count=count, total=total, least=0x7FFFFFFF)
    assert packets.closed(2, mine, forced=False) == recorded


def test_the_time_of_a_packet_and_its_header_are_xrootds() -> None:
    recorded = of_code(b"f")[0]
    found = list(records(recorded[8:]))
    since, until = unpack_from(">ii", found[0], 8)
    body = packets.files(since, until, SID, found[1:], 0)
    assert packets.packet("f", recorded[1], unpack_from(">i", recorded, 4)[0], body) == recorded


def test_an_event_of_a_cache_has_xcaches_keys_first_and_in_its_order() -> None:
    recorded = of_code(b"g")[0]
    theirs = json.loads(recorded[24:].rstrip(b"\0").split(b"\n")[0])
    mine = file()
    mine.cached = Cached(hit=600_000, held=74, remotes=["127.0.0.1:24901"])
    data = json.loads(packets.cache_event(mine, 5.0, {"vo": "wlcg"}))
    # 5.7.2 put two keys before the last one of 5.5.3
    assert [key for key in data if key in theirs] == list(theirs)
    assert list(data)[-1] == "vo"
    assert data["n_blks"] == data["n_blks_done"] == 74
    whole = packets.packet("g", 1, 7, packets.events(packets.CACHE, 1, 2, SID, [b'{"a":1}', b'{"b":2}']))
    assert whole[:2] == recorded[:2]
    assert unpack_from(">Q", whole, 16) == unpack_from(">Q", recorded, 16)
    assert whole.endswith(b'{"a":1}\n{"b":2}\0')
    assert unpack_from(">H", whole, 2)[0] == len(whole)


def test_a_close_tells_counts_sizes_and_squares() -> None:
    mine = file()
    for size in (10, 30):
        mine.reads.add(size)
    mine.readvs.add(100)
    mine.segments.add(4)
    data = packets.closed(9, mine, forced=True)
    kind, flags, size, number, read, readv, write = unpack(">BBHIqqq", data[:32])
    assert (kind, flags, size, number) == (0, 7, 112, 9)
    assert (read, readv, write) == (40, 100, 0)
    assert unpack(">iiihhqiiiiii", data[32:80]) == (2, 1, 0, 4, 4, 4, 10, 30, 100, 100, 0, 0)
    assert unpack(">dddd", data[80:]) == (1000.0, 10_000.0, 16.0, 0.0)


def test_a_copy_is_told_with_whole_microseconds() -> None:
    facts = {"source": "https://a/x", "destination": "/site/x", "mode": "pull", "bytes": 7, "seconds": 1.5}
    data = json.loads(packets.copy_event(Event("copy.finished", "/site/x", facts, "iss#alice"), 10.000005))
    assert data["Xeq"]["End"] == "1970-01-01T00:00:10.000005Z"
    assert data["Xeq"]["RC"] == 0
    assert (data["TPC"], data["Client"], data["Size"]) == ("http", "alice", 7)


@given(st.text(), st.text(), st.text())
def test_no_text_of_a_client_can_pretend_to_be_another_field(name: str, app: str, info: str) -> None:
    client = Client("xroot", "192.0.2.1", 1, name=name, app=app, info=info, subject="a", issuer="i")
    assert "\n" not in packets.who(client, 1)
    fields = packets.login(client)[1:].split("&")
    assert [field.partition("=")[0] for field in fields] == list("pnhorgmRxyI")
    body = packets.mapping(1, packets.who(client, 1), packets.login(client))
    assert body.count(b"\n") == 1


@given(st.text(min_size=1).map(lambda text: "/" + text), st.integers(0, 2**62))
def test_the_record_of_an_open_can_be_read_back(path: str, size: int) -> None:
    data = packets.opened(3, 4, file(path, size))
    kind, _, length, number, told, user = unpack(">BBHIqI", data[:20])
    assert (kind, length, number, told, user) == (1, len(data), 3, size, 4)
    assert len(data) % 8 == 0
    assert data[20:].rstrip(b"\0") == path.encode().rstrip(b"\0")
    assert data.endswith(b"\0")


def test_what_was_not_read_through_a_cache_gives_no_event_of_one() -> None:
    with pytest.raises(ValueError, match="cache"):
        packets.cache_event(file(), 1.0, {})
