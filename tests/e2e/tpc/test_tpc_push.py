"""COPY with Destination: what is sent, and that success means the other side has it."""

import asyncio
import zlib

import pytest

DATA = bytes(range(256)) * 3000


def adler(data):
    return f"{zlib.adler32(data):08x}"


@pytest.fixture
def file(door):
    (door.folder / "f").write_bytes(DATA)
    return "/site/f"


async def test_a_push_sends_the_file_with_its_checksum(door, other, file):
    told = await door.copy(
        file,
        Destination=other.url,
        TransferHeaderAuthorization="Bearer z",
        TransferHeaderArchiveMetadata="e30=",
    )
    assert (told.status, told.last) == (202, "success: Created")
    assert told.values("RemoteConnections")[-1] == f"tcp:127.0.0.1:{other.port}"
    put = other.seen[0]
    assert (put.method, put.body) == ("PUT", DATA)
    assert put.headers["authorization"] == "Bearer z"
    assert put.headers["archivemetadata"] == "e30="
    assert put.headers["expect"] == "100-continue"
    assert put.headers["digest"] == f"adler32={adler(DATA)}"
    record = door.record("copy.finished")
    assert (record["mode"], record["destination"], record["bytes"]) == ("push", other.url, len(DATA))
    assert record["checksum"] == adler(DATA)


async def test_an_empty_file_is_pushed_without_waiting(door, other):
    (door.folder / "empty").write_bytes(b"")
    other.data = b"x"
    assert (await door.copy("/site/empty", Destination=other.url)).last == "success: Created"
    assert "expect" not in other.seen[0].headers
    assert other.data == b""


async def test_a_put_answer_without_checksum_is_followed_by_a_look(door, other, file):
    async def act(asked, writer):
        other.digest = None if asked.method == "PUT" else ""
        return False

    other.act = act
    assert (await door.copy(file, Destination=other.url)).last == "success: Created"
    assert [asked.method for asked in other.seen] == ["PUT", "HEAD"]


async def test_a_destination_that_has_something_else_is_a_failure(door, other, file):
    other.digest = "adler32=00000001"
    told = await door.copy(file, Destination=other.url)
    assert told.last.startswith("failure: checksum mismatch: source adler32")


async def test_a_destination_without_checksums_needs_the_clients_leave(door, other, file):
    other.digest = None
    assert (await door.copy(file, Destination=other.url)).last.startswith("failure: destination")
    told = await door.copy(file, Destination=other.url, RequireChecksumVerification="false")
    assert told.last == "success: Created"


async def test_overwrite_f_is_refused_before_the_stream(door, other, file):
    assert (await door.copy(file, Destination=other.url, Overwrite="F")).status == 412
    assert [asked.method for asked in other.seen] == ["HEAD"]


async def test_with_overwrite_f_the_put_says_so_too(door, other, file):
    async def act(asked, writer):
        if asked.method == "HEAD" and len(other.seen) == 1:
            writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            return True
        return False

    other.act = act
    assert (await door.copy(file, Destination=other.url, Overwrite="F")).last == "success: Created"
    assert other.seen[1].headers["if-none-match"] == "*"


@pytest.mark.parametrize(("status", "ours"), [(403, 403), (507, 507), (413, 413), (409, 502)])
async def test_what_the_destination_refuses_is_a_plain_answer(door, file, status, ours):
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 9\r\n\r\nbecause.\n" % status)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    told = await door.copy(file, Destination=f"http://127.0.0.1:{port}/x/y")
    server.close()
    assert told.status == ours
    assert f"destination http://127.0.0.1:{port}/x/y answered {status} to PUT: because." in told.text


async def test_a_push_that_breaks_is_sent_again(door, other, file):
    async def act(asked, writer):
        if asked.method == "PUT" and len(other.seen) < 3:
            writer.close()
            return True
        return False

    other.act = act
    assert (await door.copy(file, Destination=other.url)).last == "success: Created"
    assert [asked.method for asked in other.seen] == ["PUT"] * 3
    assert door.record("copy.finished")["attempts"] == 3


async def test_a_file_that_is_replaced_meanwhile_is_not_sent_to_its_end(door, other, file, monkeypatch):
    reading = door.store.stat
    seen = []

    async def stat(path):
        seen.append(path)
        if len(seen) == 2:  # the look before the last piece
            (door.folder / "new").write_bytes(b"new")
            (door.folder / "new").rename(door.folder / "f")
        return await reading(path)

    monkeypatch.setattr(door.store, "stat", stat)
    told = await door.copy(file, Destination=other.url)
    assert told.last.startswith("failure: /f: was replaced") or told.last.startswith("failure: source")
    assert all(asked.body == b"" for asked in other.seen)


async def test_the_clients_checksum_is_ours_or_nothing_is_sent(door, other, file):
    assert (await door.copy(file, Destination=other.url, Digest="adler32=1")).status == 412
    assert other.seen == []
    told = await door.copy(file, Destination=other.url, Digest=f"adler32={adler(DATA)}")
    assert told.last == "success: Created"


async def test_only_files_are_pushed_and_only_by_who_may_read(door, other, file):
    (door.folder / "d").mkdir()
    assert (await door.copy("/site/d", Destination=other.url)).status == 409
    assert (await door.copy("/site/none", Destination=other.url)).status == 404
    writer = f"Bearer {door.token('storage.create:/')}"
    assert (await door.copy(file, Destination=other.url, Authorization=writer)).status == 403
    assert other.seen == []


async def test_a_signed_destination_sees_one_put(door, other, file):
    other.digest = None
    told = await door.copy(file, Destination=f"{other.url}?X-Amz-Signature=secret")
    assert told.last == "success: Created"
    assert [asked.method for asked in other.seen] == ["PUT"]
    assert "secret" not in str(door.events)
