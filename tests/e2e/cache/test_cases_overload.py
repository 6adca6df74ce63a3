"""Overload and failing origins at both doors: O1, O2, O4, O5, O7, O10-O14, and the circuit breaker."""

import asyncio
import itertools
import socket
from contextlib import AsyncExitStack
from contextvars import ContextVar

import pytest

from doma.cache.lanes import REST
from doma.cache.pages import PageFile
from doma.net.xroot_frames import P_OPEN, P_READ, Code, Open, Status
from tests.e2e.cache.conftest import Caching, Client, Thing, Visitor, content, serving
from tests.e2e.root.conftest import Wire

MIB = 1 << 20
DOORS = ["http", "root"]
_names = itertools.count()


@pytest.fixture
def named():
    """Makes the path of a file of this size that nobody has asked for before."""
    return lambda size: f"/{size}/busy-{next(_names)}"


@pytest.fixture
async def many(caching):
    """Makes clients of a cache, which end with the test."""
    async with AsyncExitStack() as after:

        def make(how, of=caching):
            visitor = Visitor(of, how)
            after.push_async_callback(visitor.close)
            return visitor

        yield make
    caching.origin.up, caching.origin.stall, caching.origin.cut = True, None, None
    caching.clock.ahead += 60


async def until(true):
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("state", ["cold", "half"])
@pytest.mark.parametrize("doors", [["http"], ["root"], DOORS], ids="-and-".join)
async def test_o1_sixteen_clients_of_one_object_cost_the_origin_one_copy(caching, named, many, state, doors):
    size = 3 * MIB + 17
    path = named(size)
    if state == "half":
        for start in (0, MIB):
            await many("http").read(path, start, start + 300_000)
    visitors = [many(door) for door in doors * (16 // len(doors))]
    got = await asyncio.gather(*(visitor.read(path, 0, size) for visitor in visitors))
    assert all(copy == content(0, size) for copy in got)
    assert caching.origin.sent[path] == size


@pytest.mark.parametrize("door", DOORS)
async def test_o2_o3_what_is_here_comes_while_forty_readers_wait_for_an_origin_that_stalls(
    caching, named, many, door
):
    warm, half = named(MIB), named(MIB)
    visitor = many(door)
    assert await visitor.read(warm, 0, MIB) == content(0, MIB)
    assert await visitor.read(half, 0, 9000) == content(0, 9000)
    caching.origin.stall = 0
    caching.origin.stuck.clear()
    waiting = [asyncio.create_task(many(DOORS[n % 2]).read(named(MIB), 0, MIB)) for n in range(40)]
    assert await asyncio.to_thread(caching.origin.stuck.wait, 10)
    for _ in range(20):
        assert await visitor.read(warm, 0, MIB) == content(0, MIB)
        assert await visitor.read(half, 0, 9000) == content(0, 9000)
    assert not any(task.done() for task in waiting)
    caching.origin.stall = None
    assert set(await asyncio.gather(*waiting)) == {content(0, MIB)}


@pytest.fixture(scope="module")
def narrow(origin, tmp_path_factory):
    """A cache with one slot for fetches and a short queue."""
    with Caching(tmp_path_factory.mktemp("narrow"), origin, origin.url, fetches=1, waiting=4) as one:
        yield one


@pytest.mark.parametrize("door", DOORS)
async def test_o4_a_full_queue_is_told_with_a_time_to_come_again_and_hits_go_on(narrow, named, many, door):
    warm, cold = named(9000), [named(9000) for _ in range(3)]
    visitor = many(door, narrow)
    assert await visitor.read(warm, 0, 9000) == content(0, 9000)
    narrow.origin.stall = 0
    narrow.origin.stuck.clear()
    # one has the slot; half of the queue is what one client, here nobody in particular, may take
    waiting = [asyncio.create_task(many("http", narrow).read(cold[0], 0, 9000))]
    assert await asyncio.to_thread(narrow.origin.stuck.wait, 10)
    waiting += [asyncio.create_task(many(door, narrow).read(path, 0, 9000)) for path in cold[1:]]
    await until(lambda: narrow.store.lanes.depth() == {"origin": 2})
    late = f"/cache{named(9000)}"
    if door == "http":
        client = Client(narrow)
        status, headers, text = client.ask(late, Accept="application/json")
        client.close()
        assert (status, int(headers["retry-after"]) >= 1) == (429, True)
        assert b"wait for this origin" in text
    else:
        status, said = await (await visitor.wire()).ask(
            Code.OPEN, P_OPEN.pack(0, Open.READ, 0), late.encode()
        )
        assert (status, int.from_bytes(said[:4]) >= 1) == (Status.WAIT, True)
    assert await visitor.read(warm, 0, 9000) == content(0, 9000)
    narrow.origin.stall = None
    assert set(await asyncio.gather(*waiting)) == {content(0, 9000)}
    assert await visitor.read(late.removeprefix("/cache"), 0, 9000) == content(0, 9000)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("state", ["cold", "half"])
async def test_o5_who_waits_too_long_is_told_before_it_gives_up(
    caching, named, many, door, state, monkeypatch
):
    path, visitor = named(MIB), many(door)
    if state == "half":
        assert await visitor.read(path, 0, 9000) == content(0, 9000)
    caching.origin.stall = 0
    if door == "http":
        client = Client(caching)
        status, _, text = client.ask(f"/cache{path}", "bytes=9000-99999", X_Pelican_Timeout="200ms")
        assert (status, path.encode() in text) == (504, True)
        client.close()
    else:  # where nobody can say how long, and this is what is taken for granted
        monkeypatch.setattr("doma.cache.reader.patience", ContextVar("shorter", default=0.2))
        assert await visitor.read(path, 9000, 100_000) == 3034
        monkeypatch.undo()
    caching.origin.stall = None
    caching.clock.ahead += 60
    assert await visitor.read(path, 0, MIB) == content(0, MIB)


def deaf(caching):
    """A connection that takes next to nothing."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    raw.connect(caching.address)
    return raw


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("door", DOORS)
async def test_o7_who_does_not_read_holds_a_few_megabytes_and_delays_nobody(
    caching, named, many, door, state
):
    size = 48 * MIB
    path = named(size)
    if state == "warm":
        await many("http").read(path, 0, size)
    sent = caching.origin.sent[path]
    raw = await asyncio.to_thread(deaf, caching)
    if door == "http":
        raw.sendall(f"GET /cache{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    else:
        raw.setblocking(False)
        wire = Wire(*await asyncio.open_connection(sock=raw, limit=8192))
        await wire.login()
        handle = await wire.open(f"/cache{path}")
        for at in range(0, size, 2 * MIB):
            wire.send(Code.PGREAD, P_READ.pack(handle, at, 2 * MIB), b"\0\0")
    hub = caching.listener._hub
    await until(lambda: any(c.transport.get_write_buffer_size() for c in hub.connections))
    other = many(door)
    for start in range(0, 20 * MIB, MIB):
        assert await other.read(path, start, start + 9000) == content(start, start + 9000)
    held = sum(connection.transport.get_write_buffer_size() for connection in hub.connections)
    assert 0 < held < 8 * MIB
    assert caching.store.stats().fetching <= 24 * MIB
    if state == "cold":
        assert caching.origin.sent[path] < size
    else:
        assert caching.origin.sent[path] == sent
    if door == "http":
        raw.close()
    else:
        wire.writer.transport.abort()
    await until(lambda: caching.store.stats().fetching == 0)


@pytest.fixture(scope="module")
def poor(origin, tmp_path_factory):
    """A cache with next to no memory for fetches."""
    with Caching(tmp_path_factory.mktemp("poor"), origin, origin.url, memory=100_000) as one:
        yield one


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("state", ["cold", "half"])
async def test_o10_without_memory_bytes_pass_through_and_are_counted(poor, named, many, door, state):
    path, visitor = named(MIB), many(door, poor)
    if state == "half":
        assert await visitor.read(path, 0, 50_000) == content(0, 50_000)
        assert poor.store.stats().bytes["stored"] > 0
    before = poor.store.stats().bytes["bypass"]
    assert await visitor.read(path, 0, MIB) == content(0, MIB)
    assert poor.store.stats().bytes["bypass"] > before
    assert not await visitor.held(path)
    for start in range(0, MIB, 50_000):
        stop = min(MIB, start + 50_000)
        assert await visitor.read(path, start, stop) == content(start, stop)
    assert await visitor.held(path)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A cache before two origins with the same files."""
    with (
        serving() as first,
        serving() as second,
        Caching(tmp_path_factory.mktemp("twice"), first, first.url, [second.url]) as one,
    ):
        one.replica = second
        yield one


@pytest.fixture
def dying(twice):
    yield twice.origin
    twice.origin.cut, twice.origin.up = None, True
    twice.clock.ahead += 60


@pytest.mark.parametrize("door", ["http", "https", "read", "pgread", "readv"])
@pytest.mark.parametrize("state", ["cold", "half"])
async def test_o12_an_origin_that_dies_in_mid_file_is_left_for_another_one(
    twice, dying, named, many, door, state
):
    size = 2_000_000  # as much as one element of a readv may ask for
    path, visitor = named(size), many(door, twice)
    if state == "half":
        assert await visitor.read(path, 0, 500_000) == content(0, 500_000)
    dying.cut = 600_000
    assert await visitor.read(path, 0, size) == content(0, size)
    assert twice.replica.sent[path] > 0
    sent = twice.replica.sent[path]
    assert await visitor.read(path, 0, size) == content(0, size)
    assert twice.replica.sent[path] == sent


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("other", [Thing(2 * MIB, version=1), Thing(2 * MIB - 1), None],
                         ids=["another-version", "another-size", "absent"])  # fmt: skip
async def test_o12_another_version_is_not_mixed_in(twice, dying, named, many, door, other):
    path, visitor = named(2 * MIB), many(door, twice)
    assert await visitor.read(path, 0, 500_000) == content(0, 500_000)
    twice.replica.things[path] = other or Thing(0, status=404)
    dying.cut = 600_000
    assert isinstance(await visitor.read(path, 0, 2 * MIB), int)
    assert twice.replica.sent[path] == 0
    assert await visitor.read(path, 0, 500_000) == content(0, 500_000)


@pytest.mark.parametrize("door", DOORS)
async def test_five_failures_open_the_circuit_and_a_trial_after_a_while_closes_it(caching, named, many, door):
    warm, visitor = named(9000), many(door)
    assert await visitor.read(warm, 0, 9000) == content(0, 9000)
    caching.origin.up = False
    for _ in range(5):
        assert isinstance(await visitor.read(named(9000), 0, 9000), int)
    tried = caching.origin.tried
    for other in DOORS:
        assert isinstance(await many(other).read(named(9000), 0, 9000), int)
        assert await many(other).read(warm, 0, 9000) == content(0, 9000)
    client = Client(caching)
    status, headers, _ = client.ask(f"/cache{named(9000)}")
    assert (status, 1 <= int(headers["retry-after"]) <= REST) == (503, True)
    client.close()
    assert caching.origin.tried == tried
    caching.clock.ahead += REST
    assert isinstance(await visitor.read(named(9000), 0, 9000), int)
    assert caching.origin.tried > tried
    caching.origin.up = True
    caching.clock.ahead += REST
    assert await visitor.read(named(9000), 0, 9000) == content(0, 9000)


def refused(address):
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("door", ["http", "https", "pgread"])
async def test_o14_a_stop_lets_answers_end_takes_no_new_ones_and_keeps_what_came(
    origin, named, tmp_path, door
):
    size = 3 * MIB
    path = named(size)
    try:
        with Caching(tmp_path, origin, origin.url) as first:
            visitor = Visitor(first, door)
            origin.stall = MIB
            origin.stuck.clear()
            if visitor.web:
                asked = visitor.read(path, 0, size)
            else:  # not closed again: a stop ends a connection that has its answer
                asked = visitor.take(await visitor.open(path), 0, size)
            reading = asyncio.create_task(asked)
            assert await asyncio.to_thread(origin.stuck.wait, 10)
            first.stop()
            await until(lambda: refused(first.address))
            assert not reading.done()
            origin.stall = None
            assert await reading == content(0, size)
            await visitor.close()
    finally:
        origin.stall = None
    assert origin.sent[path] == size
    with Caching(tmp_path, origin, origin.url) as second:
        for again in DOORS:
            visitor = Visitor(second, again)
            assert await visitor.held(path)
            assert await visitor.read(path, 0, size) == content(0, size)
            await visitor.close()
    assert origin.sent[path] == size


@pytest.mark.parametrize("door", DOORS)
async def test_o11_a_redirect_is_followed_and_a_circle_of_them_is_an_error_that_ends(
    caching, named, many, door
):
    size, origin, visitor = MIB, caching.origin, many(door)
    real, moved, circle = named(size), f"/moved{next(_names)}", f"/circle{next(_names)}"
    for path, to in ((moved, real), (circle, circle)):
        origin.things[path] = Thing(size, status=307, headers={"Location": to})
    assert await visitor.read(moved, 0, 300_000) == content(0, 300_000)
    assert await visitor.read(moved, 0, size) == content(0, size)
    assert origin.sent[real] == size
    before = origin.asked[circle]
    assert await visitor.read(circle, 0, 10) == (502 if door == "http" else 3012)
    assert origin.asked[circle] - before <= 30  # eight redirects, tried three times
    assert await visitor.read(real, 0, size) == content(0, size)


@pytest.mark.parametrize("door", DOORS)
async def test_o13_a_disk_that_takes_nothing_delays_no_client_and_has_it_in_the_end(
    caching, named, many, door, monkeypatch
):
    path, visitor, disk, save = named(3 * MIB), many(door), asyncio.Event(), PageFile.save
    stored = caching.store.stats().bytes["stored"]

    async def slow(self, first, data):
        await disk.wait()
        await save(self, first, data)

    monkeypatch.setattr(PageFile, "save", slow)
    try:
        assert await visitor.read(path, 0, 3 * MIB) == content(0, 3 * MIB)
        assert caching.store.stats().bytes["stored"] == stored
    finally:
        caching.run(opened(disk))
    await until(lambda: caching.store.stats().bytes["stored"] == stored + 3 * MIB)
    assert await visitor.held(path)
    assert await visitor.read(path, 0, 3 * MIB) == content(0, 3 * MIB)
    assert caching.origin.sent[path] == 3 * MIB


async def opened(gate):
    gate.set()
