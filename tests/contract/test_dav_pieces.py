"""What a long answer over HTTP holds of the file that it sends: one piece, never the ones before."""

import asyncio
import weakref

from doma.auth.gate import Gate
from doma.doors.endpoint import Endpoint
from doma.doors.files import serve
from doma.store.memory import MemoryStore
from doma.store.protocol import PIECE
from tests.contract.counted_origin import put


class Piece(bytearray):
    """Bytes of which one can see whether somebody still has them."""


class Watched(MemoryStore):
    """The read behind piece number ``last`` waits for the end of the test."""

    def __init__(self, last):
        super().__init__()
        self.pieces, self.last, self.waits = [], last, asyncio.Event()

    async def open(self, path):
        return _Reader(self, await super().open(path))


class _Reader:
    def __init__(self, store, inner):
        self._store, self._inner, self.stat = store, inner, inner.stat

    async def read(self, start, stop):
        store = self._store
        if len(store.pieces) == store.last:
            store.waits.set()
            await asyncio.Event().wait()
        piece = Piece(await self._inner.read(start, stop))
        store.pieces.append(weakref.ref(piece))
        return piece

    async def close(self):
        await self._inner.close()


async def test_an_answer_that_waits_for_its_next_piece_holds_none_of_those_it_sent():
    for last in (1, 2):
        store = Watched(last)
        await put(store, "/f", bytes(4 * PIECE))
        sent = []

        async def send(message, sent=sent):
            sent.append(len(message.get("body", b"")))

        answer = asyncio.create_task(serve(Endpoint("site", store, Gate({}), False), "/f", "GET", {}, send))
        await store.waits.wait()
        assert sent == [0, *[PIECE] * last]
        assert not any(piece() for piece in store.pieces)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
