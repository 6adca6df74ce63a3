"""Uploads that come in parts: one after the other over days, or several at once."""

import os
import random
import time
import zlib

import pytest

from doma.core.errors import (
    ChecksumMismatch,
    Conflict,
    PreconditionFailed,
    TooManyRequests,
    Unsupported,
    WrongSize,
)
from doma.store import session
from doma.store.file import FileStore
from doma.store.protocol import CanResume, CanScatter

DATA = bytes(i * 31 % 256 for i in range(10_000))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(session, "BLOCK", 1000)


@pytest.fixture
async def store(tmp_path):
    made = FileStore(tmp_path, fsync=False)
    assert isinstance(made, CanResume)
    yield made
    await made.close()


def adler(data):
    return f"{zlib.adler32(data):08x}"


async def content(store, path):
    reader = await store.open(path)
    return bytes(await reader.read(0, reader.stat.size))


async def begin(store, **options):
    return await store.resume("/d/f", "k1", **{"size": len(DATA), **options})


async def test_parts_of_any_length_become_the_file(store, tmp_path):
    rng, at = random.Random(7), 0
    while at < len(DATA):
        upload = await begin(store)
        assert upload.offset == at
        at += len(piece := DATA[at : at + rng.randrange(1, 2500)])
        await upload.write(piece)
        if at < len(DATA):
            await upload.pause()
            assert await store.resumable("/d/f", "k1") == at
    upload.tag("mine")
    stat = await upload.commit()
    assert (stat.size, stat.checksums["adler32"], stat.upload) == (len(DATA), adler(DATA), "mine")
    assert (await store.stat("/d/f")).upload == "mine"
    assert await content(store, "/d/f") == DATA
    assert await store.resumable("/d/f", "k1") is None
    assert os.listdir(tmp_path / ".doma" / "parts") == []


async def test_nothing_is_visible_before_the_end(store):
    upload = await begin(store)
    await upload.write(DATA[:-1])
    await upload.pause()
    assert [entry.path async for entry in store.list("/")] == []


async def test_a_session_has_one_writer(store):
    upload = await begin(store)
    with pytest.raises(TooManyRequests):
        await begin(store)
    await upload.pause()
    await (await begin(store)).abort()
    assert await store.resumable("/d/f", "k1") is None


async def test_a_session_keeps_its_size(store):
    await (await begin(store)).pause()
    with pytest.raises(Conflict):
        await begin(store, size=5)


@pytest.mark.parametrize("damage", ["none", "tail", "block", "short", "state"])
async def test_what_a_kill_interrupted_is_verified_before_it_goes_on(store, tmp_path, damage):
    upload = await begin(store)
    await upload.write(DATA[:3000])
    await upload.write(DATA[3000:3500])
    if damage != "none":
        await upload.pause()
    parts = tmp_path / ".doma" / "parts"
    raw = parts / "k1"
    if damage == "none":  # killed in the middle: only whole blocks are known
        upload._temporary.keep()
    elif damage == "state":
        (parts / "k1.json").unlink()
    else:
        state = (parts / "k1.json").read_text().replace(session._boot(), "another run")
        (parts / "k1.json").write_text(state)
        if damage == "short":
            os.truncate(raw, 2500)
        else:
            with raw.open("r+b") as file:
                file.seek(3200 if damage == "tail" else 1500)
                file.write(b"?")
    expected = {"none": 3000, "tail": 3000, "block": 1000, "short": 2000, "state": 0}[damage]
    assert await store.resumable("/d/f", "k1") == (expected or None)
    upload = await begin(store)
    assert upload.offset == expected
    await upload.write(DATA[expected:])
    assert (await upload.commit()).checksums["adler32"] == adler(DATA)
    assert await content(store, "/d/f") == DATA


async def test_bytes_that_come_again_must_be_the_same(store):
    upload = await begin(store)
    await upload.write(DATA[:500])
    await upload.check(100, DATA[100:300])
    with pytest.raises(Conflict):
        await upload.check(100, DATA[101:300])
    await upload.abort()


async def test_the_end_is_judged_as_that_of_any_upload(store):
    import hashlib

    upload = await begin(store, checksums={"md5": hashlib.md5(DATA).hexdigest()})
    await upload.write(DATA[:100])
    await upload.pause()
    upload = await begin(store, checksums={"md5": hashlib.md5(DATA).hexdigest()}, if_absent=True)
    await upload.write(DATA[100:])
    stat = await upload.commit()
    assert stat.checksums["md5"] == hashlib.md5(DATA).hexdigest()
    with pytest.raises(PreconditionFailed):
        await begin(store, if_absent=True)
    upload = await begin(store, checksums={"md5": "0" * 32})
    await upload.write(DATA)
    with pytest.raises(ChecksumMismatch):
        await upload.commit()
    assert await store.resumable("/d/f", "k1") is None
    assert await content(store, "/d/f") == DATA


async def test_sessions_are_swept_after_a_day(store, tmp_path):
    await (await begin(store)).pause()
    await (await store.resume("/g", "k2", size=5)).pause()
    old = time.time() - 25 * 3600
    for name in ("k1", "k1.json"):
        os.utime(tmp_path / ".doma" / "parts" / name, (old, old))
    again = FileStore(tmp_path, fsync=False)
    assert sorted(os.listdir(tmp_path / ".doma" / "parts")) == ["k2", "k2.json"]
    await again.close()


async def test_parts_that_come_at_once_become_the_file(store):
    upload = await store.create("/f", size=len(DATA), checksums={"adler32": adler(DATA)})
    assert isinstance(upload, CanScatter)
    spans = [(6000, 10_000), (0, 2500), (2500, 2500), (2500, 6000)]
    parts = [upload.part(a, b) for a, b in spans]
    for step in range(0, 4000, 500):
        for part, (a, b) in zip(parts, spans, strict=True):
            await part.write(DATA[a + step : min(a + step + 500, b)])
    assert (await upload.commit()).checksums["adler32"] == adler(DATA)
    assert await content(store, "/f") == DATA


@pytest.mark.parametrize("spans", [[(0, 5000), (5001, 10_000)], [(0, 10_000), (5, 10)], [(0, 9000)]])
async def test_parts_that_do_not_tile_the_file_publish_nothing(store, tmp_path, spans):
    upload = await store.create("/f", size=len(DATA))
    for a, b in spans:
        await upload.part(a, b).write(DATA[a:b])
    with pytest.raises(WrongSize):
        await upload.commit()
    await upload.abort()
    assert os.listdir(tmp_path / ".doma" / "new") == []
    assert [entry.path async for entry in store.list("/")] == []


async def test_a_part_has_bounds(store):
    upload = await store.create("/f", size=10)
    with pytest.raises(WrongSize):
        await upload.part(0, 5).write(b"123456")
    with pytest.raises(WrongSize):
        upload.part(5, 11)
    await upload.abort()
    stated = await store.create("/f", size=10, checksums={"md5": "0" * 32})
    with pytest.raises(Unsupported):
        stated.part(0, 5)
    await stated.abort()
