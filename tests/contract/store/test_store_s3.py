"""What is particular to the S3 engine, against moto's server: parts, conditions, left-overs, addresses."""

import asyncio
import os
import uuid
import zlib

import pytest

from doma.core.errors import (
    ChecksumMismatch,
    ConfigError,
    Conflict,
    Forbidden,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    StorageUnavailable,
)
from doma.store import s3_bucket
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials
from doma.store.s3_upload import PART, written
from doma.store.s3_wire import address_of, credentials_of

MIB = 1 << 20


@pytest.fixture
async def place(s3_server):
    """Makes stores of one prefix that know nothing of each other."""
    top, made = f"s3://doma-test/{uuid.uuid4().hex}?endpoint={s3_server}", []

    def one(**how):
        made.append(S3Store(top, credentials=Credentials("any", "keys"), **how))
        return made[-1]

    yield one
    for store in made:
        await store.close()


async def put(store, path, data, **how):
    upload = await store.create(path, **how)
    for at in range(0, len(data), MIB):
        await upload.write(data[at : at + MIB])
    return await upload.commit()


async def uploads(store):
    """How many multipart uploads are under way."""
    _, data = await store._wire.told("GET", None, [("uploads", ""), ("prefix", store._wire.address.prefix)])
    return data.count(b"<Upload>")


@pytest.mark.parametrize("announced", [True, False])
async def test_a_large_file_goes_in_parts_and_keeps_its_checksums(place, announced):
    store, data = place(), os.urandom(2 * PART + 5)
    upload = await store.create("/d/big", size=len(data) if announced else None)
    for at in range(0, len(data), MIB):
        await upload.write(data[at : at + MIB])
        assert len(upload._buffer) <= PART + MIB
    assert await uploads(store) == 1
    with pytest.raises(NotFound):
        await store.stat("/d/big")
    done = await upload.commit()
    assert done.version.endswith("-3")
    other = await place().stat("/d/big")
    assert (other.version, other.size) == (done.version, len(data))
    assert other.checksums == {"adler32": f"{zlib.adler32(data):08x}"}
    reader = await place().open("/d/big")
    assert bytes(await reader.read(PART - 3, PART + 3)) == data[PART - 3 : PART + 3]
    assert await uploads(store) == 0


async def test_a_large_file_that_fails_leaves_no_parts(place):
    store, data = place(), bytes(2 * PART)
    with pytest.raises(ChecksumMismatch):
        await put(store, "/big", data, checksums={"adler32": "00000001"})
    upload = await store.create("/big")
    await upload.write(data[: PART + 1])
    await upload.abort()
    await upload.abort()
    with pytest.raises(Conflict):
        await upload.write(b"more")
    late = await store.create("/big", if_absent=True)
    await late.write(data[: PART + 1])
    await put(place(), "/big", b"quicker")
    with pytest.raises(PreconditionFailed):
        await late.commit()
    assert await uploads(store) == 0
    assert (await store.stat("/big")).size == 7


async def test_checksums_of_another_version_are_never_believed(place):
    store = place()
    await put(store, "/f", bytes(PART + 1))
    assert "adler32" in (await place().stat("/f")).checksums
    sums = (await store.stat("/f")).checksums
    # somebody replaces the object and its tags stay as they were: S3 drops them, a poor copy might not
    await put(store, "/g", b"x" * (PART + 1))
    await store._wire.told(
        "PUT", "g", [("tagging", "")], {},
        b"<Tagging><TagSet><Tag><Key>doma-sums</Key><Value>another-2+" + written(sums).encode()
        + b"</Value></Tag></TagSet></Tagging>",
    )  # fmt: skip
    assert (await place().stat("/g")).checksums == {}


async def test_a_listing_sorts_names_not_keys_and_goes_over_pages(place):
    store = place()
    names = ["a", "a-b", "a.b", "ab", "b!", "run-1.root", "run-2.root", "run-2.root!", "z"]
    for name in names:
        await put(store, f"/d/{name}" + ("/x" if name in {"a", "b!", "run-2.root"} else ""), b"1")
    await store.make_dir("/d/run")

    async def small(query):
        async for page in pages([*query, ("max-keys", "2")]):
            yield page

    pages, store._wire.pages = store._wire.pages, small
    listed = [entry.path[3:] async for entry in store.list("/d")]
    assert listed == sorted([*names, "run"])
    await store.delete("/d", recursive=True)
    with pytest.raises(NotFound):
        await store.stat("/d")


async def test_a_directory_moves_whole_or_not_at_all(place):
    store = place()
    for i in range(20):
        await put(store, f"/from/{i}/f", b"%d" % i)
    copy, asked = store._bucket.copy, []

    async def fails(*args, **how):
        asked.append(args)
        if len(asked) == 12:
            raise StorageUnavailable("the service is away")
        await copy(*args, **how)

    store._bucket.copy = fails
    with pytest.raises(StorageUnavailable):
        await store.rename("/from", "/to")
    assert [e.path async for e in store.list("/")] == ["/from"]
    store._bucket.copy = copy
    await store.rename("/from", "/to")
    assert [e.path async for e in store.list("/")] == ["/to"]
    assert len([e async for e in store.list("/to")]) == 20


async def test_what_is_too_large_for_one_copy_moves_in_parts(place, monkeypatch):
    monkeypatch.setattr(s3_bucket, "LARGEST_COPY", 5 * MIB)
    monkeypatch.setattr(s3_bucket, "COPY_PART", 5 * MIB)
    store, data = place(), os.urandom(12 * MIB)
    before = await put(store, "/d/large", data)
    await store.rename("/d/large", "/d/moved")
    reader = await place().open("/d/moved")
    assert reader.stat.checksums == before.checksums
    got = b"".join([bytes(await reader.read(at, at + MIB)) for at in range(0, len(data), MIB)])
    assert got == data
    assert [e.path async for e in store.list("/d")] == ["/d/moved"]
    assert await uploads(store) == 0


async def test_what_comes_to_a_name_that_is_moved_away_stays(place):
    store = place()
    await put(store, "/a", b"old")
    copy = store._bucket.copy

    async def meanwhile(*args, **how):
        await copy(*args, **how)
        await put(place(), "/a", b"newer")

    store._bucket.copy = meanwhile
    await store.rename("/a", "/b")
    assert ((await store.stat("/a")).size, (await store.stat("/b")).size) == (5, 3)


async def test_a_wrong_bucket_or_no_server_says_so_without_a_secret(s3_server):
    secret = "very-secret-key"
    for url, kind in (
        (f"s3://no-such-bucket?endpoint={s3_server}", OriginFailed),
        ("s3://bucket?endpoint=http://127.0.0.1:1", StorageUnavailable),
    ):
        store = S3Store(url, credentials=Credentials("id", secret, "token-of-session"))
        with pytest.raises((kind, NotFound)) as error:
            await asyncio.wait_for(put(store, "/x", b"1"), 30)
        assert secret not in str(error.value)
        assert "token-of-session" not in str(error.value)
        assert secret not in repr(Credentials("id", secret))
        await store.close()
    assert Forbidden.http == 403


def test_an_address_is_read_or_refused():
    found = address_of("s3://b-1/a%20b/c/?endpoint=https://s3.example.org:9000/&region=eu")
    assert (found.endpoint, found.bucket, found.prefix, found.region) == (
        "https://s3.example.org:9000", "b-1", "a b/c/", "eu",
    )  # fmt: skip
    assert address_of("s3://bucket").endpoint == "https://s3.us-east-1.amazonaws.com"
    for wrong in (
        "s3://", "s3:///x", "s3://id:secret@bucket/x", "s3://bucket/../x", "s3://bucket/a//b",
        "s3://bucket?secret_key=abc", "s3://bucket?endpoint=ftp://x", "s3://bucket?endpoint=http://x/path",
        "s3://bucket?endpoint=nonsense", "https://bucket/x", "s3://bu_ck?et",
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            address_of(wrong)
        assert "secret@" not in str(error.value)
        assert "abc" not in str(error.value)


def test_credentials_come_from_the_environment_only_as_a_pair():
    assert credentials_of({"AWS_ACCESS_KEY_ID": "a"}) is None
    found = credentials_of({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"})
    assert found == Credentials("a", "b", "c")
