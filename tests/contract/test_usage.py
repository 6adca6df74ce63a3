"""Accounting: what each user did at each endpoint, by every road, told once and whole."""

from doma.auth.model import Identity
from doma.core.events import Event
from doma.doors.usage import MOST, Usage

ADA = Identity("https://issuer.example/dv", "ada", 9e9, vo="dv")


def usage():
    events, clock = [], [100.0]
    made = Usage(events.append, {"https://issuer.example/dv/": "dv"}, clock=lambda: clock[0])
    return made, events, clock


def test_sums_are_told_by_user_and_endpoint_and_begin_anew():
    made, events, clock = usage()
    made.read("site", ADA, 10)
    made.read("site", ADA, 5, operations=3)
    made.read("site", None, 7)
    owner = "https://issuer.example/dv#ada"
    made.see(Event("file.landed", "/site/f", {"endpoint": "site", "size": 40}, owner))
    made.see(Event("file.deleted", "/site/f", {"endpoint": "site", "bytes": 40}, owner))
    made.see(Event("request.finished", "x", {"endpoint": "site"}, owner))
    assert [event.kind for event in events] == ["file.landed", "file.deleted", "request.finished"]
    clock[0] = 160.0
    made.tell()
    told = {event.owner: event.data for event in events[3:]}
    assert told == {
        owner: {
            "endpoint": "site", "issuer": "https://issuer.example/dv", "vo": "dv", "user": "ada",
            "since": 100.0, "until": 160.0, "operations": 6, "bytes_read": 15, "bytes_written": 40,
            "files_written": 1, "files_deleted": 1,
        },
        "": {
            "endpoint": "site", "issuer": "", "vo": "", "user": "", "since": 100.0, "until": 160.0,
            "operations": 1, "bytes_read": 7, "bytes_written": 0, "files_written": 0, "files_deleted": 0,
        },
    }  # fmt: skip
    made.tell()
    assert len(events) == 5
    assert made.numbers("bytes_read") == {("site", "dv"): 15, ("site", ""): 7}


def test_many_users_need_no_more_than_their_bound():
    made, events, _ = usage()
    for number in range(MOST + 50):
        made.read("site", Identity("i", f"user{number}", 9e9), 1)
    made.tell()
    assert len(events) == MOST + 1
    assert sum(event.data["bytes_read"] for event in events) == MOST + 50


async def test_every_road_counts(door):
    made = Usage(door.events.append, {door.issuer: "dv"})
    object.__setattr__(door.site, "usage", made)
    object.__setattr__(door.site, "emit", made.see)
    assert (
        await door.ask("PUT", "/site/f", headers={"Content-Length": "1000"}, body=b"x" * 1000)
    ).status == 201
    assert (await door.ask("GET", "/site/f")).status == 200
    assert (await door.ask("GET", "/site/f", headers={"Range": "bytes=0-9,20-29"})).status == 206
    assert (await door.ask("COPY", "/site/f", headers={"Destination": "/site/g"})).status == 201
    assert (await door.ask("DELETE", "/site/f")).status == 204
    made.tell()
    (event,) = [e for e in door.events if e.kind == "storage.usage"]
    names = ("vo", "user", "bytes_read", "bytes_written", "files_written", "files_deleted")
    assert [event.data[name] for name in names] == ["dv", "ada", 1020, 2000, 2, 1]
