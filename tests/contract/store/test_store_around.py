"""Wrappers, files for threads, addresses."""

import asyncio
import io
import os
from pathlib import Path
from random import Random

import pytest

from doma.core.errors import BadRequest, ConfigError, NotFound, StorageUnavailable
from doma.store.file import FileStore
from doma.store.filelike import StoreFile, open_file
from doma.store.http import HttpStore
from doma.store.locate import open_store
from doma.store.memory import MemoryStore
from doma.store.s3 import S3Store
from doma.store.wrap import Counted, Fault, Faulty, Retry

SAMPLE = Path(__file__).parents[3] / "src/doma/facility/data"


async def filled(**files):
    store = MemoryStore()
    for name, data in files.items():
        upload = await store.create(f"/{name}")
        await upload.write(data)
        await upload.commit()
    return store


async def get(store, path):
    reader = await store.open(path)
    return bytes(await reader.read(0, reader.stat.size))


async def test_counting_counts_calls_and_bytes():
    store = Counted(await filled(f=b"12345"))
    assert await get(store, "/f") == b"12345"
    upload = await store.create("/g")
    await upload.write(b"123")
    await upload.commit()
    assert (store.bytes_read, store.bytes_written) == (5, 3)
    assert store.calls == {"open": 1, "read": 1, "create": 1, "write": 1, "commit": 1}
    assert [s.path async for s in store.list("/")] == ["/f", "/g"]


async def test_a_fault_strikes_at_its_call_and_no_other():
    store = Faulty(await filled(f=b"12345"), Fault("read", at=2, error=StorageUnavailable("/f: down")))
    assert await get(store, "/f") == b"12345"
    with pytest.raises(StorageUnavailable):
        await get(store, "/f")
    assert await get(store, "/f") == b"12345"
    assert await get(Faulty(await filled(f=b"12345"), Fault("read", flip=True)), "/f") != b"12345"


async def test_a_retry_repeats_what_may_be_repeated():
    down = StorageUnavailable("/f: down")
    broken = Faulty(await filled(f=b"1"), Fault("stat", times=2, error=down), Fault("delete", error=down))
    store = Retry(broken, wait=0.001, rng=Random(1))
    assert (await store.stat("/f")).size == 1
    with pytest.raises(NotFound):
        await store.stat("/gone")
    with pytest.raises(StorageUnavailable):
        await store.delete("/f")
    assert (await store.stat("/f")).size == 1
    endless = Retry(Faulty(await filled(f=b"1"), Fault("open", times=99, error=down)), wait=0.001)
    with pytest.raises(StorageUnavailable):
        await endless.open("/f")


async def test_a_store_file_behaves_as_a_file_on_disk(tmp_path):
    data = os.urandom(600_000)
    (tmp_path / "f").write_bytes(data)
    counted = Counted(await filled(f=data))
    ours = await open_file(counted, "/f")

    def walk():
        rng = Random(7)
        with (tmp_path / "f").open("rb", buffering=0) as theirs:
            for _ in range(300):
                if rng.random() < 0.4:
                    place = rng.choice([(rng.randrange(700_000), 0), (-rng.randrange(600_000), 2)])
                    assert ours.seek(*place) == theirs.seek(*place)
                size = rng.choice([0, 1, 10, 5000, 70_000])
                assert ours.read(size) == theirs.read(size)
                assert ours.tell() == theirs.tell()
            assert ours.seek(0) == 0
            assert ours.read() == data
        with pytest.raises(ValueError, match="beginning"):
            ours.seek(-1)
        buffered = io.BufferedReader(ours)
        buffered.seek(100)
        assert buffered.read(50) == data[100:150]
        ours.close()
        with pytest.raises(ValueError, match="closed"):
            ours.read(1)

    await asyncio.to_thread(walk)


async def test_reading_on_is_fetched_ahead():
    counted = Counted(await filled(f=bytes(1 << 20)))
    file = await open_file(counted, "/f")

    def walk():
        while file.read(1000):
            pass

    await asyncio.to_thread(walk)
    assert counted.calls["read"] < 10
    file.close()


async def test_a_store_file_on_the_event_loop_is_refused_instead_of_hanging():
    file = await open_file(await filled(f=b"1"), "/f")
    with pytest.raises(BadRequest, match="thread"):
        file.read(1)
    file.close()


async def test_uproot_and_arrow_read_through_a_store():
    store = FileStore(SAMPLE, read_only=True)

    def read(file: StoreFile):
        import uproot

        with uproot.open(file) as root:
            return root["Events"].num_entries

    file = await open_file(store, "/cms_doublemuparked_100k.root")
    assert await asyncio.to_thread(read, file) == 100_000
    file.close()

    def head(file: StoreFile):
        import pyarrow as pa

        arrow = pa.PythonFile(file, mode="r")
        assert arrow.size() == file.size
        return arrow.read(4)

    other = await open_file(store, "/nano_dy.root")
    assert await asyncio.to_thread(head, other) == b"root"
    other.close()
    await store.close()


async def test_an_address_finds_its_engine(tmp_path):
    found = [
        open_store("memory:"),
        open_store(f"file://{tmp_path}/a%20b"),
        open_store("http://127.0.0.1:1/x"),
        open_store("davs://se.example.org/x"),
    ]
    found.append(open_store("s3://bucket/prefix?endpoint=http://127.0.0.1:1"))
    assert [type(store) for store in found] == [MemoryStore, FileStore, HttpStore, HttpStore, S3Store]
    assert (tmp_path / "a b").is_dir()
    for store in found:
        await store.close()
    wrong = ("s3://", "s3://b?key=x", "file://otherhost/x", "file:relative", "nonsense", "https://[bad", "")
    for url in wrong:
        with pytest.raises(ConfigError):
            open_store(url)
