"""Several at one name, readers of what goes away, room that is not there: over real sockets."""

import asyncio
import socket

import pytest

from doma.auth.gate import Gate
from doma.doors import webdav
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.store.file import FileStore
from doma.store.quota import Quota

SIZE = 400_000


@pytest.fixture
def disk(site, launch, tmp_path):
    """A server over a store of files that may hold 2 MB."""
    store = FileStore(tmp_path / "store", fsync=False, quota=Quota({"/": 2_000_000, "/small": 1000}))
    gate = Gate({"https://issuer.example/doma": ["/"]})
    mine = Site(site.verifier, {"site": Endpoint("site", store, gate)})
    with launch(webdav.app(mine), FastDoor(mine)) as server:
        server.new = tmp_path / "store" / ".doma" / "new"
        yield server
        asyncio.run_coroutine_threadsafe(store.close(), server.loop).result(10)


def begin(wire, tools, token, data, size=SIZE, target="/site/f", **headers):
    """Send the head of an upload and half of its body."""
    fields = {"Content-Length": str(size)} | {name.replace("_", "-"): v for name, v in headers.items()}
    wire.send(tools.request("PUT", target, fields, data[: size // 2], token))


def test_of_two_writers_the_last_to_end_wins_and_no_reader_sees_a_mix(disk, token, tools):
    one, other = b"1" * SIZE, b"2" * SIZE
    with disk.dial() as first, disk.dial() as second, disk.dial() as reader:
        begin(first, tools, token, one)
        begin(second, tools, token, other)
        assert reader.ask("GET", "/site/f", token=token).status == 404
        second.send(other[SIZE // 2 :])
        assert second.answer("PUT").status == 201
        assert reader.ask("GET", "/site/f", token=token).body == other
        first.send(one[SIZE // 2 :])
        assert first.answer("PUT").status in {201, 204}
        assert reader.ask("GET", "/site/f", token=token).body == one


@pytest.mark.parametrize("headers", [{"If_None_Match": "*"}, {"If_Match": "etag"}])
def test_a_condition_is_asked_again_at_the_end(disk, token, tools, headers):
    one, other = b"1" * SIZE, b"2" * SIZE
    with disk.dial() as first, disk.dial() as second:
        if "If_Match" in headers:
            etag = second.ask("PUT", "/site/f", body=b"old", token=token).headers["etag"]
            headers = {"If_Match": etag}
        begin(first, tools, token, one, **headers)
        assert second.ask("PUT", "/site/f", body=other, token=token).status in {201, 204}
        first.send(one[SIZE // 2 :])
        assert first.answer("PUT").status == 412
        assert second.ask("GET", "/site/f", token=token).body == other
    assert list(disk.new.iterdir()) == []


def test_a_late_delete_does_not_touch_a_newer_upload(disk, token, tools):
    data = b"1" * SIZE
    with disk.dial() as writer, disk.dial() as cleaner:
        old = cleaner.ask("PUT", "/site/f", {"X-Upload-Id": "try-1"}, b"old", token)
        begin(writer, tools, token, data, X_Upload_Id="try-2")
        assert cleaner.ask("DELETE", "/site/f", token=token).status == 204
        writer.send(data[SIZE // 2 :])
        assert writer.answer("PUT").status in {201, 204}
        late = {"If-Match": old.headers["etag"]}, {"X-Upload-Id": "try-1"}
        for headers in late:
            assert cleaner.ask("DELETE", "/site/f", headers, token=token).status == 412
        assert cleaner.ask("GET", "/site/f", token=token).body == data
        assert cleaner.ask("DELETE", "/site/f", {"X-Upload-Id": "try-2"}, token=token).status == 204


def test_a_reader_ends_on_the_version_that_it_began(disk, token, tools):
    data = bytes(i % 251 for i in range(1_500_000))
    with disk.dial() as reader, disk.dial() as other:
        assert other.ask("PUT", "/site/f", body=data, token=token).status == 201
        reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        reader.send(tools.request("GET", "/site/f", token=token))
        reader.more()
        assert other.ask("DELETE", "/site/f", token=token).status == 204
        assert other.ask("PUT", "/site/f", body=b"new", token=token).status == 201
        assert reader.answer().body == data


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/site/f", {"Content-Length": "2000001"}, 507),
        ("/site/small/f", {"Content-Length": "1001"}, 507),
        ("/site/f", {"Transfer-Encoding": "chunked", "X-Expected-Size": "2000001"}, 507),
        ("/site/f", {"Content-Length": "2000000"}, 100),
        ("/site/small/f", {"Transfer-Encoding": "chunked"}, 100),
    ],
)
def test_room_is_asked_for_before_the_body(disk, token, tools, target, headers, status):
    with disk.dial() as wire:
        wire.send(tools.request("PUT", target, {**headers, "Expect": "100-continue"}, token=token))
        got = wire.answer("PUT")
        assert got.status == status
        if status == 507:
            assert b"quota of /" in got.body


def test_a_body_of_unknown_length_ends_at_the_quota_and_leaves_nothing(disk, token):
    chunked = b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"
    with disk.dial() as wire:
        got = wire.ask("PUT", "/site/small/f", {"Transfer-Encoding": "chunked"}, chunked, token)
        assert (got.status, got.headers["x-error-code"]) == (507, "storage-full")
    with disk.dial() as wire:
        assert wire.ask("GET", "/site/small/f", token=token).status == 404
        assert wire.ask("PUT", "/site/small/f", body=b"x" * 1000, token=token).status == 201
    assert list(disk.new.iterdir()) == []


def test_many_idle_connections_cost_nobody_else_anything(disk, token):
    idle = []
    try:
        for _ in range(1500):
            idle.append(socket.create_connection(disk.address))
        with disk.dial() as wire:
            assert wire.ask("PUT", "/site/f", body=b"x", token=token).status == 201
            assert wire.ask("GET", "/site/f", token=token).body == b"x"
    finally:
        for sock in idle:
            sock.close()
