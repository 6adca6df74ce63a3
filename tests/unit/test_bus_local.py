import asyncio

from doma.bus.local import LAGGED, Bus


async def drained(subscription):
    subscription.close()
    return [(n.kind, n.subject, dict(n.data)) async for n in subscription]


async def test_a_subscriber_hears_what_it_asked_for_in_order():
    bus = Bus(clock=lambda: 7.0)
    files = bus.subscribe(["file.*", "request.done"])
    mine = bus.subscribe(owner="iss#me")
    bus.publish("file.landed", "/a", {"bytes": 1}, 1, owner="iss#me")
    bus.publish("filed", "/b", id=2)
    bus.publish("request.done", "r", id=3, owner="iss#you")
    assert [n[:2] for n in await drained(files)] == [("file.landed", "/a"), ("request.done", "r")]
    assert [n[:2] for n in await drained(mine)] == [("file.landed", "/a")]


async def test_a_slow_subscriber_is_told_what_it_missed_and_slows_nobody():
    bus = Bus()
    slow, quick = bus.subscribe(capacity=3), bus.subscribe()
    for i in range(10):
        bus.publish("a.b", str(i), id=i)
    assert [(await anext(slow)).subject for _ in range(2)] == ["0", "1"]
    bus.publish("a.b", "late")
    seen = await drained(slow)
    assert seen == [("a.b", "2", {}), (LAGGED, "", {"missed": 7}), ("a.b", "late", {})]
    assert len(await drained(quick)) == 11


async def test_what_was_missed_at_the_end_is_told_too():
    bus = Bus()
    slow = bus.subscribe(capacity=1)
    for _ in range(3):
        bus.publish("a.b", "x")
    assert await drained(slow) == [("a.b", "x", {}), (LAGGED, "", {"missed": 2})]


async def test_a_waiting_subscriber_wakes():
    bus = Bus()
    async with bus.subscribe() as events:
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        assert not waiting.done()
        bus.publish("a.b", "x", id=9)
        assert (await asyncio.wait_for(waiting, 10)).id == 9


async def test_closing_ends_everybody_and_leaves_nothing_behind():
    bus = Bus()
    waiting = [asyncio.create_task(drain(bus.subscribe())) for _ in range(3)]
    await asyncio.sleep(0)
    bus.close()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [[], [], []]
    assert not bus._subscribers


async def drain(subscription):
    return [n async for n in subscription]
