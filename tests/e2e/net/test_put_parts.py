"""PUT in parts over real sockets: what is kept, what is asked for again, whose it is."""

import asyncio
import zlib

import pytest

from doma.auth.gate import Gate
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.store.file import FileStore

DATA = bytes(i * 31 % 256 for i in range(300_000))


@pytest.fixture
def disk(site, launch, tools, tmp_path):
    """A server over a store of files; ``with disk.dial() as wire``."""
    store = FileStore(tmp_path / "store", fsync=False)
    gate = Gate({"https://issuer.example/doma": ["/"]})
    mine = Site(site.verifier, {"site": Endpoint("site", store, gate)})
    with launch(tools.application(mine), FastDoor(mine)) as server:
        server.folder = tmp_path / "store"
        yield server
        asyncio.run_coroutine_threadsafe(store.close(), server.loop).result(10)


@pytest.fixture(params=["plain", "tls"])
def wire(request, disk, trust):
    with disk.dial(trust if request.param == "tls" else None) as connection:
        yield connection


def part(wire, token, start, stop, *, named="u1", size=300_000, path="/site/d/f", data=None, **more):
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    if named:
        headers["X-Upload-Id"] = named
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return wire.ask("PUT", path, headers, DATA[start:stop] if data is None else data, token)


def offset(wire, token, named="u1"):
    return wire.ask("HEAD", "/site/d/f", {"X-Upload-Id": named}, token=token)


@pytest.mark.parametrize("named", ["u1", ""])
def test_a_file_comes_in_parts(wire, token, named):
    for start in range(0, 200_000, 100_000):
        got = part(wire, token, start, start + 100_000, named=named)
        assert (got.status, got.headers["x-upload-offset"]) == (202, str(start + 100_000))
        assert wire.ask("GET", "/site/d/f", token=token).status == 404
    got = part(wire, token, 200_000, 300_000, named=named)
    assert got.status == 201
    assert f"adler32={zlib.adler32(DATA):08x}" in got.headers["digest"]
    assert wire.ask("GET", "/site/d/f", token=token).body == DATA


def test_the_offset_is_told_before_and_after_the_end(wire, token):
    assert offset(wire, token).status == 404
    part(wire, token, 0, 5)
    got = offset(wire, token)
    assert (got.status, got.headers["x-upload-offset"]) == (200, "5")
    asked = wire.ask(
        "PUT", "/site/d/f", {"Content-Range": "bytes */300000", "X-Upload-Id": "u1"}, token=token
    )
    assert (asked.status, asked.headers["x-upload-offset"]) == (202, "5")
    assert part(wire, token, 5, 300_000).status == 201
    got = offset(wire, token)
    assert (got.status, got.headers["x-upload-offset"], got.headers["content-length"]) == (
        200, "300000", "300000",
    )  # fmt: skip
    assert offset(wire, token, "other").status == 404


def test_a_gap_is_refused_with_the_offset(wire, token):
    part(wire, token, 0, 1000)
    got = part(wire, token, 2000, 3000)
    assert (got.status, got.headers["x-upload-offset"]) == (409, "1000")
    assert b"go on with byte 1000" in got.body
    assert part(wire, token, 7, 9, named="unheard").status == 404
    assert part(wire, token, 7, 9, named="").headers["x-upload-offset"] == "0"


def test_bytes_that_come_again_are_compared(wire, token):
    part(wire, token, 0, 200_000)
    assert part(wire, token, 100, 5000).headers["x-upload-offset"] == "200000"
    wrong = part(wire, token, 100, 5000, data=b"?" * 4900)
    assert wrong.status == 409
    assert offset(wire, token).headers["x-upload-offset"] == "200000"
    assert part(wire, token, 100_000, 300_000).status == 201
    assert wire.ask("GET", "/site/d/f", token=token).body == DATA


def test_an_end_whose_answer_was_lost_is_answered_again(wire, token):
    first = part(wire, token, 0, 300_000)
    again = part(wire, token, 100_000, 300_000)
    assert (first.status, again.status, again.headers["etag"]) == (201, 204, first.headers["etag"])


def test_a_broken_connection_keeps_what_came(disk, token, tools):
    headers = {"Content-Range": "bytes 0-299999/300000", "X-Upload-Id": "u1", "Content-Length": "300000"}
    with disk.dial() as wire:
        wire.send(tools.request("PUT", "/site/d/f", headers, DATA[:123_456], token))
    with disk.dial() as wire:
        for _ in range(200):
            got = offset(wire, token)
            if got.status == 200 and got.headers["x-upload-offset"] == "123456":
                break
        assert got.headers["x-upload-offset"] == "123456"
        assert part(wire, token, 123_456, 300_000).status == 201
        assert wire.ask("GET", "/site/d/f", token=token).body == DATA


def test_an_upload_belongs_to_its_subject(wire, token, sign):
    part(wire, token, 0, 1000)
    other = sign(subject="mallory")
    assert offset(wire, other).status == 404
    assert part(wire, other, 1000, 2000).status == 404
    assert part(wire, other, 0, 10).headers["x-upload-offset"] == "10", "an upload of their own"
    assert offset(wire, token).headers["x-upload-offset"] == "1000"
    assert wire.ask("HEAD", "/site/d/f", {"X-Upload-Id": "u1"}).status == 401


def test_a_token_that_may_create_may_go_on_but_not_replace(wire, token, sign):
    create = sign("storage.create:/")
    assert part(wire, create, 0, 10).status == 202
    assert wire.ask("PUT", "/site/d/f", body=b"quicker", token=token).status == 201
    assert part(wire, create, 10, 20).status == 403
    assert wire.ask("GET", "/site/d/f", token=token).body == b"quicker"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Range": "bytes 0-4/3"}, b"hello", 400),
        ({"Content-Range": "bytes 4-0/10"}, b"hello", 400),
        ({"Content-Range": "bytes 0-4/*"}, b"hello", 400),
        ({"Content-Range": "octets 0-4/10"}, b"hello", 400),
        ({"Content-Range": "bytes 0-5/10"}, b"hello", 400),
        ({"Content-Range": "bytes 0-4/10", "X-Upload-Id": "a b"}, b"hello", 400),
        ({"Content-Range": "bytes 0-4/5", "Digest": "adler32=00000001"}, b"hello", 400),
        ({"Content-Range": "bytes 0-4/5", "Digest": "adler32=062c0215"}, b"hello", 201),
        ({"Content-Range": "bytes 0-9/20", "Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n", 422),
        ({"Content-Range": "bytes 0-3/20", "Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n", 422),
        ({"Content-Range": "bytes 0-4/20", "Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n", 202),
        ({"Content-Range": "bytes */0"}, b"", 201),
    ],
)
def test_parts_with_lies_are_refused(disk, token, headers, body, status):
    with disk.dial() as wire:
        assert wire.ask("PUT", "/site/x", headers, body, token).status == status


def test_the_id_of_an_upload_is_kept_with_the_file(wire, token):
    assert wire.ask("PUT", "/site/d/f", {"X-Upload-Id": "job-7:2"}, b"x", token).status == 201
    assert offset(wire, token, "job-7:2").headers["x-upload-offset"] == "1"
    assert wire.ask("PUT", "/site/d/f", {"X-Upload-Id": "a/b"}, b"x", token).status == 400
