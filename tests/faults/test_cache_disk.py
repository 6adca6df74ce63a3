"""A cache disk that fails (C9, C10, O13): clients are served, the disk gets a rest, the log says so once."""

import errno
import os
import random

import pytest

from doma.cache.disk import ALARM, REST
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
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


async def test_a_disk_that_cannot_be_read_costs_no_client_a_byte(cache, monkeypatch):
    assert await read(cache, 0, SIZE) == DATA
    monkeypatch.setattr(os, "preadv", ill)
    for start in range(0, SIZE, 1_000_000):
        assert await read(cache, start, start + 1_000_000) == DATA[start : start + 1_000_000]
