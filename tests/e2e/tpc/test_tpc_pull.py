"""COPY with Source: what comes, what is told, what is refused, and that nothing half is ever left."""

import asyncio
import base64
import hashlib
import json
import os
import zlib

import pytest

from doma.doors import tpc_pull, tpc_source
from doma.store.quota import Quota
from tests.e2e.tpc.conftest import Other, serving

COPIES = int(os.environ.get("DOMA_TEST_COPIES", "200"))
"""Failed copies in a row; 1000 for a thorough run."""


def adler(data):
    return f"{zlib.adler32(data):08x}"


async def test_a_pull_brings_the_file_and_tells_it_in_markers(door, other):
    told = await door.copy(
        "/site/a/f",
        Source=other.url,
        TransferHeaderAuthorization="Bearer x",
        ClientInfo="job-id=7",
        SciTag="129",
    )
    assert (told.status, told.last) == (202, "success: Created")
    assert told.headers["content-type"] == "text/perf-marker-stream"
    assert told.text.endswith("success: Created\n")
    assert told.lines[0] == "Perf Marker"
    assert told.values("Stripe Bytes Transferred")[-1] == str(len(other.data))
    assert told.values("RemoteConnections")[-1] == f"tcp:127.0.0.1:{other.port}"
    assert (door.folder / "a" / "f").read_bytes() == other.data
    (asked,) = other.seen
    assert (asked.headers["authorization"], asked.headers["clientinfo"]) == ("Bearer x", "job-id=7")
    record = door.record("copy.finished")
    assert record["source"] == other.url
    assert record["destination"] == "/site/a/f"
    assert (record["bytes"], record["checksum"]) == (len(other.data), adler(other.data))
    assert (record["client_info"], record["scitag"], record["attempts"]) == ("job-id=7", 129, 1)
    assert "Bearer" not in json.dumps([event.data for event in door.events])


async def test_an_empty_file_is_copied_without_waiting(door, other):
    other.data = b""
    assert (await door.copy("/site/empty", Source=other.url)).last == "success: Created"
    assert (door.folder / "empty").read_bytes() == b""


async def test_the_other_stores_take_copies_too(door, other):
    assert (await door.copy("/memory/f", Source=other.url)).last == "success: Created"
    assert (await door.memory.stat("/f")).checksums["adler32"] == adler(other.data)


@pytest.mark.parametrize(
    ("headers", "status", "word"),
    [
        ({"Destination": "https://b.example/x"}, 400, "exactly one"),
        ({"Source": "ftp://a.example/x"}, 400, "Source"),
        ({"Source": "https://me:pw@a.example/x"}, 400, "user"),
        ({"Source": "https://a.example/x#y"}, 400, "fragment"),
        ({"Credential": "oidc"}, 400, "TransferHeaderAuthorization"),
        ({"Credential": "gridsite"}, 400, "TransferHeaderAuthorization"),
        ({"Overwrite": "maybe"}, 400, "Overwrite"),
        ({"RequireChecksumVerification": "maybe"}, 400, "RequireChecksumVerification"),
        ({"Digest": "adler32=zzz"}, 400, "adler32"),
        *(
            ({f"TransferHeader{name}": "x"}, 400, f"TransferHeader{name}")
            for name in [
                "Host", "Content-Length", "Transfer-Encoding", "Connection", "Range", "Expect", "Te",
                "Upgrade", "Trailer", "If-Match", "If-Range", "Accept-Encoding", "Content-Range",
                "Proxy-Connection",
            ]
        ),
    ],
)  # fmt: skip
async def test_a_copy_that_makes_no_sense_is_refused_at_once(door, other, headers, status, word):
    told = await door.copy("/site/f", **({"Source": other.url} | headers))
    assert told.status == status
    assert word in told.text
    assert other.seen == []
    assert door.files() == []


async def test_credential_is_ignored_when_a_token_for_the_other_side_is_there(door, other):
    told = await door.copy(
        "/site/f", Source=other.url, Credential="oidc", TransferHeaderAuthorization="Bearer y"
    )
    assert told.last == "success: Created"


async def test_what_clients_send_along_is_no_error(door, other):
    told = await door.copy(
        "/site/f", Source=other.url, Secure_Redirection="1", X_No_Delegate="true", Copy_Flags="NoHead",
        TE="trailers", X_Number_Of_Streams="many", SciTag="7", Depth="0", Credential="none",
    )  # fmt: skip
    assert told.last == "success: Created"
    assert "scitag" not in door.record("copy.finished")


async def test_a_source_that_does_not_fit_is_refused_before_a_byte_of_it_is_kept(make_door, other):
    door = await make_door(quota=Quota({"/": len(other.data) + 10}))
    assert (await door.copy("/site/f", Source=other.url)).last == "success: Created"
    told = await door.copy("/site/g", Source=other.url)
    assert (told.status, told.headers["x-error-code"]) == (507, "storage-full")
    assert told.text.startswith("/site/g: ")
    assert "quota of /" in told.text
    assert door.files() == ["f"]
    assert (await door.copy("/site/f", Source=other.url)).last == "success: Created"  # in its own place


@pytest.mark.parametrize(("scope", "status"), [("storage.read:/", 403), ("storage.create:/b", 403)])
async def test_who_may_not_write_here_moves_nothing(door, other, scope, status):
    told = await door.copy("/site/a", Source=other.url, Authorization=f"Bearer {door.token(scope)}")
    assert told.status == status
    assert other.seen == []


async def test_a_token_that_may_only_create_replaces_nothing(door, other):
    create = f"Bearer {door.token('storage.create:/')}"
    assert (await door.copy("/site/a", Source=other.url, Authorization=create)).last == "success: Created"
    assert (await door.copy("/site/a", Source=other.url, Authorization=create)).status == 403


async def test_overwrite_f_is_refused_before_the_stream_and_again_at_publish(door, other):
    (door.folder / "old").write_bytes(b"old")
    told = await door.copy("/site/old", Source=other.url, Overwrite="F")
    assert told.status == 412
    assert other.seen == []

    async def act(asked, writer):
        writer.write(other.head(200, len(other.data)) + other.data[:100])
        await asyncio.sleep(0.4)
        (door.folder / "new").write_bytes(b"somebody was faster")
        writer.write(other.data[100:])
        return True

    other.act = act
    told = await door.copy("/site/new", Source=other.url, Overwrite="F")
    assert told.status == 202
    assert told.last.startswith("failure:")
    assert (door.folder / "new").read_bytes() == b"somebody was faster"


async def test_a_condition_on_the_destination_is_honoured(door, other):
    assert (await door.copy("/site/f", Source=other.url, If_Match='"x"')).status == 412
    assert (await door.copy("/site/f", Source=other.url, If_None_Match="*")).last == "success: Created"
    assert (await door.copy("/site/f", Source=other.url, If_None_Match="*")).status == 412


@pytest.mark.parametrize(
    ("status", "ours"), [(404, 404), (401, 403), (403, 403), (400, 502), (500, 502), (405, 502)]
)
async def test_what_the_source_refuses_is_a_plain_answer(door, other, status, ours):
    async def act(asked, writer):
        text = b"token abc.def lacks storage.read:/x\n"
        body = b"" if asked.method == "HEAD" else text
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(text)) + body)
        return True

    other.act = act
    told = await door.copy("/site/f", Source=other.url, TransferHeaderAuthorization="Bearer abc.def")
    assert told.status == ours
    assert f"source http://127.0.0.1:{other.port}/a/f.root answered" in told.text
    assert f" answered {status} to " in told.text
    assert "abc.def" not in told.text
    assert door.files() == []
    assert door.record("copy.failed")["error"]


async def test_a_source_that_is_not_there_is_bad_gateway(door):
    async with serving(Other()) as other:
        url = other.url
    told = await door.copy("/site/f", Source=url)
    assert told.status == 502
    assert "source" in told.text


async def test_a_source_that_lies_about_its_checksum_publishes_nothing(door, other):
    (door.folder / "f").write_bytes(b"old")
    other.digest = "adler32=00000001"
    told = await door.copy("/site/f", Source=other.url)
    assert told.status == 202
    assert told.last.startswith("failure: checksum mismatch")
    fault = json.loads(told.lines[-2].removeprefix("X-TPC-Error: "))
    assert (fault["code"], fault["side"]) == ("checksum-mismatch", "transfer")
    assert (door.folder / "f").read_bytes() == b"old"
    assert door.files() == ["f"]


async def test_the_clients_checksum_is_compared_before_and_after(door, other):
    told = await door.copy("/site/f", Source=other.url, Digest="adler32=00000001")
    assert told.status == 412
    other.digest = None
    told = await door.copy("/site/f", Source=other.url, Digest="adler32=1")
    assert told.last.startswith("failure: checksum mismatch")
    told = await door.copy("/site/f", Source=other.url, Digest=f"adler32={adler(other.data)}")
    assert told.last == "success: Created"


async def test_without_any_checksum_a_copy_needs_the_clients_leave(door, other):
    other.digest = None
    assert (await door.copy("/site/f", Source=other.url)).status == 412
    told = await door.copy("/site/f", Source=other.url, RequireChecksumVerification="false")
    assert told.last == "success: Created"


async def test_a_checksum_is_verified_also_where_it_need_not_be(door, other):
    other.digest = "adler32=00000001"
    told = await door.copy("/site/f", Source=other.url, RequireChecksumVerification="false")
    assert told.last.startswith("failure: checksum mismatch")


@pytest.mark.parametrize(
    "digest", ["Adler32:{}", "adler32={:.>0}", "ADLER32={}", "md5=bm9uc2Vuc2U=,adler32={}"]
)
async def test_checksums_are_read_as_others_write_them(door, other, digest):
    other.digest = digest.format(adler(other.data))
    assert (await door.copy("/site/f", Source=other.url)).last == "success: Created"


async def test_a_checksum_told_by_head_only_is_asked_for_and_remembered(door, other):
    async def act(asked, writer):
        other.digest = "" if asked.method == "HEAD" and "want-digest" in asked.headers else None
        return False

    other.act = act
    for name in ("one", "two"):
        assert (await door.copy(f"/site/{name}", Source=other.url)).last == "success: Created"
    assert [asked.method for asked in other.seen] == ["GET", "HEAD", "GET", "HEAD", "GET"]


@pytest.mark.parametrize("busy", [b"202 Accepted\r\n", b"503 Busy\r\nRetry-After: 1\r\n"])
async def test_a_checksum_that_is_being_computed_is_waited_for(door, other, busy):
    heads = []

    async def act(asked, writer):
        other.digest = None
        if asked.method == "HEAD":
            heads.append(asked)
            if len(heads) < 3:
                writer.write(b"HTTP/1.1 " + busy + b"Content-Length: 0\r\n\r\n")
                return True
            other.digest = ""
        return False

    other.act = act
    told = await door.copy("/site/f", Source=other.url)
    assert told.last == "success: Created"
    assert len(heads) == 3


async def test_a_broken_pull_goes_on_where_it_stopped(door, other):
    other.data = bytes(range(256)) * 4000
    cut = [100_000, 500_000]

    async def act(asked, writer):
        if not cut:
            return False
        stop = cut.pop(0)
        if asked.start:
            assert asked.headers["if-match"] == '"v1"'
            last = len(other.data) - 1
            writer.write(
                other.head(
                    206, last + 1 - asked.start, f"Content-Range: bytes {asked.start}-{last}/{last + 1}"
                )
            )
        else:
            writer.write(other.head(200, len(other.data)))
        writer.write(other.data[asked.start : stop])
        await writer.drain()
        writer.close()
        return True

    other.act = act
    told = await door.copy("/site/f", Source=other.url)
    assert told.last == "success: Created"
    assert [asked.start for asked in other.seen] == [0, 100_000, 500_000]
    assert (door.folder / "f").read_bytes() == other.data
    assert door.record("copy.finished")["attempts"] == 3


@pytest.mark.parametrize("tells", ["412", "200", "206"])
async def test_a_source_that_changed_meanwhile_is_copied_anew(door, other, tells):
    new = b"new content " * 20_000

    async def act(asked, writer):
        if other.data != new:
            writer.write(other.head(200, len(other.data)) + other.data[:5000])
            await writer.drain()
            other.data, other.etag = new, '"v2"'
            writer.close()
            return True
        if asked.start and tells == "412":
            writer.write(b"HTTP/1.1 412 Changed\r\nContent-Length: 0\r\n\r\n")
            return True
        if tells == "200":
            asked.headers.pop("range", None)
        return False

    other.act = act
    told = await door.copy("/site/f", Source=other.url)
    assert told.last == "success: Created"
    assert (door.folder / "f").read_bytes() == new
    sizes = [int(size) for size in told.values("Stripe Bytes Transferred")]
    assert sizes == sorted(sizes)


async def test_a_source_that_always_breaks_is_given_up_after_three_more_tries(door, other):
    async def act(asked, writer):
        writer.write(other.head(200, len(other.data)) + other.data[:10])
        await writer.drain()
        writer.close()
        return True

    other.act, other.etag = act, ""
    told = await door.copy("/site/f", Source=other.url)
    assert told.last.startswith("failure: source")
    assert len(other.seen) == 4
    assert door.files() == []


@pytest.mark.parametrize("change", [-1, +1])
async def test_a_source_that_sends_more_or_less_than_it_said_fails(door, other, change):
    async def act(asked, writer):
        writer.write(other.head(200, len(other.data) - change) + other.data)
        await writer.drain()
        writer.close()
        return True

    other.act = act
    told = await door.copy("/site/f", Source=other.url)
    assert told.last.startswith("failure:")
    assert door.files() == []


async def test_a_source_that_falls_silent_fails_by_name(make_door, other):
    door = await make_door(stall=0.3)

    async def act(asked, writer):
        writer.write(other.head(200, len(other.data)) + other.data[:10])
        await writer.drain()
        await asyncio.sleep(10)
        return True

    other.act = act
    told = await door.copy("/site/f", Source=other.url)
    assert told.last.startswith("failure: source: no data for too long from 127.0.0.1 after 10 bytes")
    assert len(other.seen) == 1
    assert door.files() == []


async def test_a_source_that_is_too_slow_fails(make_door, other):
    door = await make_door(rate_window=0.5)

    async def act(asked, writer):
        writer.write(other.head(200, len(other.data)))
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)
        return True

    other.act = act
    told = await door.copy("/site/f", Source=other.url, X_Min_Throughput="1000000")
    assert told.last.startswith("failure: too slow")
    assert len(told.values("Timestamp")) >= 2
    assert door.files() == []


async def test_a_client_that_goes_away_ends_its_copy(door, other):
    stopped = asyncio.Event()

    async def act(asked, writer):
        writer.write(other.head(200, 1 << 30))
        try:
            while True:
                writer.write(bytes(1000))
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            stopped.set()
            raise

    other.act = act
    async with door.http.stream("COPY", f"{door.url}/site/f", headers={"Source": other.url}) as answer:
        async for _ in answer.aiter_text():
            break
    async with asyncio.timeout(10):
        await stopped.wait()
        while door.files() or not [e for e in door.events if e.kind == "copy.failed"]:
            await asyncio.sleep(0.02)
    assert door.record("copy.failed")["error"] == "cancelled"


async def test_several_streams_take_blocks_side_by_side(door, other, monkeypatch):
    for module in (tpc_pull, tpc_source):
        monkeypatch.setattr(module, "BLOCK", 1 << 16)
    other.data = b"".join(i.to_bytes(4, "big") for i in range(100_000))
    told = await door.copy("/site/f", Source=other.url, X_Number_Of_Streams="4")
    assert told.last == "success: Created"
    assert (door.folder / "f").read_bytes() == other.data
    assert (await door.store.stat("/f")).checksums["adler32"] == adler(other.data)
    starts = [asked.start for asked in other.seen if "range" in asked.headers]
    assert sorted(starts) == list(range(0, len(other.data), 1 << 16))


async def test_a_block_that_breaks_goes_on_alone(door, other, monkeypatch):
    for module in (tpc_pull, tpc_source):
        monkeypatch.setattr(module, "BLOCK", 1 << 16)
    other.data = bytes(range(256)) * 1024
    broken = []

    async def act(asked, writer):
        if asked.start == 1 << 16 and not broken:
            broken.append(asked)
            span = f"Content-Range: bytes {1 << 16}-{(2 << 16) - 1}/{len(other.data)}"
            writer.write(other.head(206, 1 << 16, span) + other.data[1 << 16 : (1 << 16) + 1000])
            await writer.drain()
            writer.close()
            return True
        return False

    other.act = act
    told = await door.copy("/site/f", Source=other.url, X_Number_Of_Streams="3")
    assert told.last == "success: Created"
    assert (1 << 16) + 1000 in [asked.start for asked in other.seen]
    assert (door.folder / "f").read_bytes() == other.data


async def test_a_source_without_ranges_is_copied_in_one_stream(door, other, monkeypatch):
    for module in (tpc_pull, tpc_source):
        monkeypatch.setattr(module, "BLOCK", 1000)

    async def act(asked, writer):
        asked.headers.pop("range", None)
        return False

    other.act = act
    told = await door.copy("/site/f", Source=other.url, X_Number_Of_Streams="100")
    assert told.last == "success: Created"
    assert (door.folder / "f").read_bytes() == other.data


async def test_a_signed_url_is_asked_by_get_alone(door, other):
    other.digest = None
    url = f"{other.url}?X-Amz-Signature=secret&X-Amz-Expires=60"
    told = await door.copy("/site/f", Source=url, RequireChecksumVerification="false")
    assert told.last == "success: Created"
    assert [asked.method for asked in other.seen] == ["GET"]
    assert "secret" not in str([event.data for event in door.events])


async def test_many_failed_copies_leave_nothing(door, other):
    async def act(asked, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nDigest: adler32=1\r\n\r\n0123456789")
        return True

    other.act = act
    for _ in range(COPIES // 20):
        told = await asyncio.gather(*(door.copy(f"/site/f{i}", Source=other.url) for i in range(20)))
        assert all(one.last.startswith("failure: checksum mismatch") for one in told)
    assert door.files() == []


async def test_a_delete_by_upload_id_means_one_attempt_alone(door, other):
    await door.copy("/site/f", Source=other.url, X_Upload_Id="first")
    await door.copy("/site/f", Source=other.url, X_Upload_Id="second")
    for name, status in (("first", 412), ("second", 204)):
        answer = await door.http.request("DELETE", f"{door.url}/site/f", headers={"X-Upload-Id": name})
        assert answer.status_code == status


async def test_a_late_delete_of_a_failed_attempt_spares_the_newer_file(door, other):
    await door.copy("/site/f", Source=other.url)
    old = (await door.http.head(f"{door.url}/site/f")).headers["etag"]
    other.data = b"newer"
    await door.copy("/site/f", Source=other.url)
    late = await door.http.request("DELETE", f"{door.url}/site/f", headers={"If-Match": old})
    assert late.status_code == 412
    assert (door.folder / "f").read_bytes() == b"newer"


async def test_streams_of_a_source_that_refuses_head_begin_with_get(door, other):
    async def act(asked, writer):
        if asked.method == "HEAD":
            writer.write(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
            return True
        return False

    other.act = act
    told = await door.copy("/site/f", Source=other.url, X_Number_Of_Streams="4")
    assert told.last == "success: Created"
    assert (door.folder / "f").read_bytes() == other.data


async def test_a_get_that_misses_what_a_head_has_seen_is_sent_again(door, other):
    misses = []

    async def act(asked, writer):
        if asked.method == "GET" and len(misses) < 2:
            misses.append(asked)
            writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            return True
        return False

    other.act = act
    assert (await door.copy("/site/f", Source=other.url)).last == "success: Created"
    assert [asked.method for asked in other.seen] == ["GET", "HEAD", "GET", "GET"]


@pytest.mark.parametrize("algorithm", ["md5", "sha-256"])
async def test_the_clients_own_algorithm_is_verified_in_any_number_of_streams(
    door, other, algorithm, monkeypatch
):
    for module in (tpc_pull, tpc_source):
        monkeypatch.setattr(module, "BLOCK", 1000)
    digest = hashlib.new(algorithm.replace("-", ""), other.data).digest()
    for stated, last in ((digest, "success: Created"), (digest[::-1], "failure: checksum mismatch")):
        told = await door.copy(
            "/site/f",
            Source=other.url,
            X_Number_Of_Streams="3",
            Digest=f"{algorithm}={base64.b64encode(stated).decode()}",
        )
        assert told.last.startswith(last)
