"""Streams of progress over real sockets."""

import asyncio

import uvloop

from doma.bus.local import Bus
from doma.core.config import Listen
from doma.core.events import Event
from doma.db.engine import Database
from doma.net.listener import Listener
from doma.web.stream import Streams


def test_a_reader_that_stalls_costs_one_frame_and_what_its_socket_holds(tmp_path):
    """Its stream waits for it: nothing is rendered that nobody takes."""
    db = Database(f"sqlite:///{tmp_path}/none.db")
    uvloop.run(asyncio.wait_for(stalled(Streams(db, bus := Bus(), look=0.001), bus), 60))
    db.close()


async def stalled(streams, bus):
    made = 0

    async def state():
        nonlocal made
        made += 1
        return f"{made % 10}" * (1 << 18)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for line in streams.page(state, float("inf"), owner="ada"):
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})

    listener = Listener(app, fast=None, listen=Listen(address="127.0.0.1:0"), tls=None)
    _, writer = await asyncio.open_connection(*await listener.start(), limit=1 << 16)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    before = -1
    while made != before or not made:
        assert made < 500  # 128 MiB and more
        before = made
        await asyncio.sleep(1)
    (waiting,) = streams._open
    for number in range(1000):
        bus.pass_on(number, Event("request.advanced", "r", {}, "ada"), 1.0)
    assert len(waiting._waiting) <= 1
    writer.close()
    bus.close()
    await listener.stop()
