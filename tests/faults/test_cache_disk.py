"""A cache disk that fails (C9, C10, O13): clients are served, the disk gets a rest, the log says so once."""

import asyncio
import errno
import os
import random
import threading

import pytest

from doma.cache.disk import ALARM, REST
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import StorageUnavailable
from doma.store.memory import MemoryStore

SIZE = 3_000_000
DATA = random.Random(3).randbytes(SIZE)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(tmp_path, clock):
    origin = MemoryStore()
    upload = await origin.create("/f")
    await upload.write(DATA)
    await upload.commit()
    cache = CacheStore(
        tmp_path / "cache", Origins(origin), Cache(lifetime=1e9, file_lifetime=1e9), clock=clock
    )
    yield cache
    await cache.close()


async def read(cache: CacheStore, start: int, stop: int) -> bytes:
    reader = await cache.open("/f")
    try:
        return bytes(await reader.read(start, stop))
    finally:
        await reader.close()


def alarms(caplog) -> int:
    return sum(record.name == "doma.cache.disk" for record in caplog.records)


def ill(*_: object) -> int:
    raise OSError(errno.EIO, "Input/output error")


async def test_a_disk_that_refuses_writes_is_left_alone_for_a_while_and_then_tried_again(
    cache, clock, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", ill)
        assert await read(cache, 0, SIZE) == DATA
        first = cache.stats().counts["disk_errors"]
        assert first > 0
        for _ in range(5):
            assert await read(cache, 0, SIZE) == DATA
        assert cache.stats().counts["disk_errors"] == first, "the disk was asked again while it rests"
        assert alarms(caplog) == 1
    assert cache.stats().bytes["stored"] == 0
    clock.now += REST + 1
    assert await read(cache, 0, SIZE) == DATA
    assert cache.stats().bytes["stored"] >= SIZE
    sent = cache.stats().bytes["origin"]
    assert await read(cache, 0, SIZE) == DATA
    assert cache.stats().bytes["origin"] == sent


async def test_the_alarm_comes_once_a_minute(cache, clock, monkeypatch, caplog):
    monkeypatch.setattr(os, "pwrite", ill)
    for _ in range(8):  # every 16 s
        for _ in range(2):
            assert await read(cache, 0, 100_000) == DATA[:100_000]
        clock.now += REST + 1
    assert 2 <= alarms(caplog) <= 8 * (REST + 1) / ALARM + 1


async def test_c10_a_disk_that_cannot_be_read_is_marked_and_costs_no_client_a_byte(
    cache, clock, monkeypatch, caplog
):
    assert await read(cache, 0, SIZE) == DATA
    stored = cache.stats().bytes["stored"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", ill)
        for start in range(0, SIZE, 1_000_000):
            assert await read(cache, start, start + 1_000_000) == DATA[start : start + 1_000_000]
        assert cache.stats().counts["disk_errors"] > 0
        assert cache.stats().resting
        assert cache.stats().metrics()["doma_cache_disk_resting"] == 1
        assert alarms(caplog) == 1
    assert cache.stats().bytes["stored"] == stored, "something was written to a disk that is marked"
    clock.now += REST + 1
    assert not cache.stats().resting
    assert await read(cache, 0, SIZE) == DATA
    assert cache.stats().bytes["stored"] > stored


@pytest.mark.parametrize("origin_there", [True, False], ids=["origin-there", "origin-away"])
async def test_o13_a_disk_that_takes_longer_than_the_origin_is_passed_by(cache, monkeypatch, origin_there):
    assert await read(cache, 0, SIZE) == DATA
    monkeypatch.setattr("doma.cache.pages._TRUST", 0)  # nothing counts as checked
    answered, handles, real = threading.Event(), len(os.listdir("/proc/self/fd")), os.preadv

    def slow(fd, buffers, offset, flags=0):
        if flags:
            raise BlockingIOError
        answered.wait(30)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    if not origin_there:
        monkeypatch.setattr(MemoryStore, "open", away)
        asyncio.get_running_loop().call_later(1.0, answered.set)
        await cache.connections.close()
    assert await read(cache, 0, 100_000) == DATA[:100_000]
    counts = cache.stats().counts
    assert counts["disk_late"] == 1
    assert counts["disk_seconds"] > 0
    assert (cache.stats().bytes["bypass"] == 100_000) is origin_there
    answered.set()
    assert len(os.listdir("/proc/self/fd")) <= handles + 1


async def away(store: MemoryStore, path: str) -> None:
    raise StorageUnavailable(f"{path}: the origin is away; try later")
