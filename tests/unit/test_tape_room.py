"""How much of all bodies together the Tape REST API holds."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from doma.auth.model import Identity
from doma.bus.local import Bus
from doma.core.config import Staging
from doma.core.errors import BadRequest, TooManyRequests
from doma.doors import tape
from doma.doors.tape import Tape


class Slow:
    """A request whose body goes on when it is told to."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces, self.go_on = list(pieces), asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/api/v1/archiveinfo", "query_string": b"",
                 "headers": [(b"authorization", b"Bearer x.y.z")], "server": ("se.example", 443),
                 "scheme": "https"}  # fmt: skip
        self.request = Request(scope, self._receive)

    async def _receive(self):
        piece = self._pieces.pop(0)
        if not self._pieces:
            await self.go_on.wait()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}


@pytest.fixture
def door(monkeypatch):
    monkeypatch.setattr(tape, "ROOM", 3000)
    monkeypatch.setattr(tape, "LARGE", 100)

    async def verify(token):
        return Identity("https://issuer.example", "ada", 9e9)

    site = SimpleNamespace(verifier=SimpleNamespace(verify=verify))
    return Tape(site, None, Bus(), Staging())


async def test_large_bodies_beyond_the_room_are_told_to_come_later(door):
    first, second, small = Slow(b" " * 2000, b"no json"), Slow(b" " * 2000, b""), Slow(b"{}")
    waiting = asyncio.create_task(door.archiveinfo(first.request))
    await asyncio.sleep(0)
    second.go_on.set()
    small.go_on.set()
    with pytest.raises(TooManyRequests) as caught:
        await door.archiveinfo(second.request)
    assert caught.value.retry_after
    with pytest.raises(BadRequest):
        await door.archiveinfo(small.request)
    first.go_on.set()
    with pytest.raises(BadRequest, match="no JSON"):
        await waiting
    third = Slow(b" " * 2000, b"no json")
    third.go_on.set()
    with pytest.raises(BadRequest, match="no JSON"):
        await door.archiveinfo(third.request)
