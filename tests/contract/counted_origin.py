"""An origin in memory whose reads are counted, held up, cut or failed at will; small words of tests."""

import asyncio
import random

from doma.core.errors import StorageUnavailable
from doma.store.memory import MemoryStore

MIB = 1 << 20


class Origin(MemoryStore):
    """Each read waits at ``gate``, which is open, and takes a turn of the loop."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.requests = []
        """Ranges in the order in which they got here."""
        self.sent = self.opened = self.running = self.most = self.cancelled = 0
        self.cut = self.failures = 0
        """Bytes that lack at the end of each answer; reads that will fail."""

    async def open(self, path):
        self.opened += 1
        return _Line(self, await super().open(path))


class _Line:
    def __init__(self, origin, inner):
        self._origin, self._inner, self.stat = origin, inner, inner.stat
        self.known, self.hashed = inner.known, inner.hashed

    async def read(self, start, stop):
        origin = self._origin
        origin.requests.append((start, stop))
        origin.running += 1
        origin.most = max(origin.most, origin.running)
        try:
            await origin.gate.wait()
            await asyncio.sleep(0)
            if origin.failures:
                origin.failures -= 1
                raise StorageUnavailable("origin: connection reset")
            data = await self._inner.read(start, stop)
        except asyncio.CancelledError:
            origin.cancelled += 1
            raise
        finally:
            origin.running -= 1
        origin.sent += len(data)
        return data[: len(data) - origin.cut]

    async def close(self):
        await self._inner.close()


async def put(store, path, data):
    upload = await store.create(path, size=len(data))
    await upload.write(data)
    await upload.commit()


async def read_all(store, path, step=MIB):
    reader = await store.open(path)
    try:
        size = reader.stat.size
        return b"".join([bytes(await reader.read(a, min(a + step, size))) for a in range(0, size, step)])
    finally:
        await reader.close()


async def until(condition):
    """Let the loop run until something has happened; the test's own timeout ends what never does."""
    while not condition():
        await asyncio.sleep(0.001)


def blob(size, seed=0):
    return random.Random(seed).randbytes(size)
