"""PUT over real sockets: what is published, what is refused, and that refused things leave no trace."""

import asyncio
import zlib

import pytest

from doma.auth.gate import Gate
from doma.doors import webdav
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.store.file import FileStore
from doma.store.memory import MemoryStore


def test_an_upload_can_be_read_back_and_is_told(wire, token, tools, events):
    events.clear()
    first = wire.ask("PUT", "/site/new/parents/f.json", body=tools.BIG, token=token)
    assert first.status in {201, 204}
    adler = f"{zlib.adler32(tools.BIG):08x}"
    assert f"adler32={adler}" in first.headers["digest"]
    got = wire.ask("GET", "/site/new/parents/f.json", token=token)
    assert (got.body, got.headers["etag"]) == (tools.BIG, first.headers["etag"])
    assert got.headers["content-type"] == "application/json"
    second = wire.ask("PUT", "/site/new/parents/f.json", body=b"other", token=token)
    assert second.status == 204
    assert second.headers["etag"] != first.headers["etag"]
    assert wire.ask("GET", "/site/new/parents/f.json", token=token).body == b"other"
    kinds = [(e.kind, e.subject, e.data["size"]) for e in events]
    assert kinds == [
        ("file.landed", "/site/new/parents/f.json", len(tools.BIG)),
        ("file.landed", "/site/new/parents/f.json", 5),
    ]
    assert events[0].data["adler32"] == adler
    assert events[0].owner == "https://issuer.example/doma#tester"


def test_bodies_of_any_framing_land(wire, token):
    assert wire.ask("PUT", "/site/zero", {"Content-Length": "0"}, token=token).status in {201, 204}
    assert wire.ask("PUT", "/site/nothing", token=token).status in {201, 204}
    assert wire.ask("GET", "/site/zero", token=token).body == b""
    chunked = b"3\r\nabc\r\n" + b"10000\r\n" + b"z" * 65536 + b"\r\n0\r\n\r\n"
    headers = {"Transfer-Encoding": "chunked"}
    assert wire.ask("PUT", "/site/chunks", headers, chunked, token).status in {201, 204}
    assert wire.ask("GET", "/site/chunks", token=token).body == b"abc" + b"z" * 65536


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Digest": "adler32=062c0215"}, 204),  # of b"hello"
        ({"Digest": "adler32=00000001"}, 400),
        ({"Content-MD5": "XUFAKrxLKna5cZ2REBfFkg=="}, 204),
        ({"Repr-Digest": "adler=:AAAAAQ==:"}, 400),
        ({"Oc-Checksum": "ADLER32:00000001"}, 400),
        ({"Digest": "adler32=nonsense"}, 400),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "*"}, 204),
        ({"If-None-Match": "*"}, 412),
        ({"Content-Range": "bytes 0-4/10"}, 501),
    ],
)
def test_conditions_and_digests_of_an_upload(wire, token, headers, status):
    before = wire.ask("PUT", "/site/kept", body=b"before", token=token).headers["etag"]
    got = wire.ask("PUT", "/site/kept", headers, b"hello", token)
    assert got.status == status, got.body
    now = wire.ask("GET", "/site/kept", token=token)
    assert now.body == (b"hello" if status == 204 else b"before")
    assert (now.headers["etag"] == before) == (status != 204)


def test_what_a_token_may_not_write_stays_as_it_was(wire, sign, token):
    wire.ask("PUT", "/site/mine", body=b"mine", token=token)
    create, read = sign("storage.create:/"), sign("storage.read:/")
    assert wire.ask("PUT", "/site/mine", body=b"x", token=create).status == 403
    assert wire.ask("PUT", "/site/mine", body=b"x", token=read).status == 403
    assert wire.ask("PUT", "/site/mine", body=b"x").status == 401
    assert wire.ask("PUT", "/fixed/mine", body=b"x", token=token).status == 405
    assert wire.ask("PUT", "/site/new", body=b"x", token=token).status == 405, "a directory"
    assert wire.ask("PUT", "/site/mine/below", body=b"x", token=token).status == 409
    assert wire.ask("PUT", "/site/a/../b", body=b"x", token=token).status == 400
    assert wire.ask("GET", "/site/mine", token=token).body == b"mine"
    assert wire.ask("PUT", "/site/mine", {"Accept": "application/json"}, b"x", read).body.startswith(
        b'{"type"'
    )


def test_a_full_store_refuses_before_the_body(site, launch, token, tools):
    full = Endpoint("site", MemoryStore(capacity=1000), Gate({"https://issuer.example/doma": ["/"]}))
    small = Site(site.verifier, {"site": full})
    with launch(tools.application(small), FastDoor(small)) as server, server.dial() as wire:
        headers = {"Content-Length": "5000", "Expect": "100-continue"}
        wire.send(tools.request("PUT", "/site/f", headers, token=token))
        assert wire.answer("PUT").status == 507


def test_a_store_of_files_serves_and_takes_through_the_same_door(site, launch, trust, token, tools, tmp_path):
    store = FileStore(tmp_path / "store", fsync=False)
    disk = Site(
        site.verifier, {"site": Endpoint("site", store, Gate({"https://issuer.example/doma": ["/"]}))}
    )
    with launch(tools.application(disk), FastDoor(disk)) as server:
        for context in (None, trust):
            with server.dial(context) as wire:
                assert wire.ask("PUT", "/site/d/big", body=tools.BIG, token=token).status in {201, 204}
                for _ in range(3):
                    assert wire.ask("GET", "/site/d/big", token=token).body == tools.BIG
                    part = wire.ask("GET", "/site/d/big", {"Range": "bytes=65535-131073"}, token=token)
                    assert part.body == tools.BIG[65535:131074]
        asyncio.run_coroutine_threadsafe(store.close(), server.loop).result(10)


class Counting(FileStore):
    """Tells which files it published in one step."""

    def land(self, path, data):
        stat = super().land(path, data)
        self.landed = [*getattr(self, "landed", ()), (path, stat is not None)]
        return stat


def test_a_small_new_file_lands_at_once_and_is_answered_like_any_other(site, launch, tmp_path, token):
    store, told = Counting(tmp_path / "store", fsync=False), []
    gate = Gate({"https://issuer.example/doma": ["/"]})
    mine = Site(site.verifier, {"site": Endpoint("site", store, gate)}, told.append)
    with launch(webdav.app(mine), FastDoor(mine)) as server:
        with server.dial() as wire:
            first = wire.ask("PUT", "/site/d/one", body=b"hello", token=token)
            second = wire.ask("PUT", "/site/d/two", body=b"hello", token=token)
            again = wire.ask("PUT", "/site/d/two", body=b"other", token=token)
            refused = wire.ask("PUT", "/site/d/two", {"If-None-Match": "*"}, b"third", token)
            head, body = wire_request("PUT", "/site/d/three", b"in two pieces", token)
            wire.send(head)
            wire.send(body)
            third = wire.answer("PUT")
            wire.send(
                b"".join(b"".join(wire_request("PUT", f"/site/d/p{n}", b"x", token)) for n in range(20))
            )
            assert [wire.answer("PUT").status for _ in range(20)] == [201] * 20
            assert wire.ask("GET", "/site/d/two", token=token).body == b"other"
            assert wire.ask("GET", "/site/d/three", token=token).body == b"in two pieces"
        asyncio.run_coroutine_threadsafe(store.close(), server.loop).result(10)
    assert [one.status for one in (first, second, again, refused, third)] == [201, 201, 204, 412, 201]
    at_once = dict(store.landed)
    assert ("/d/one", True) not in store.landed, "its token was not known yet, and there was no directory"
    if at_once["/d/p1"]:
        assert ("/d/two", True) in store.landed
    one, two = (
        {k: v for k, v in got.headers.items() if k not in {"etag", "date"}} for got in (first, second)
    )
    assert one == two
    assert len(told) == 24
    facts = [(event.kind, event.owner, event.data) for event in told[:2]]
    assert facts[0] == facts[1]


def wire_request(method, target, body, token):
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body
