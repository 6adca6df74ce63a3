"""Calls the handlers of the root door as its connection does, without one."""

import time

import pytest

from doma.auth.model import Capability, Identity, Verb
from doma.auth.verifier import Verifier
from doma.core.errors import (
    DomaError,
)
from doma.core.events import Event
from doma.doors import root_names, root_query, root_write
from doma.doors.endpoint import Endpoint, Site
from doma.doors.root_call import Call, Session
from doma.net.xroot_errors import code_of
from doma.net.xroot_frames import (
    P_OPEN,
    P_WRITE,
    Code,
    Open,
)

ISSUER = "https://issuer.example"
HANDLERS = {
    **root_names.HANDLERS,
    **root_query.HANDLERS,
    **root_write.HANDLERS,
    Code.OPEN: root_write.open,
}


def who(*rights: tuple[Verb, str]) -> Identity:
    return Identity(
        ISSUER, "ada", time.time() + 600, capabilities=tuple(Capability(verb, path) for verb, path in rights)
    )


class Client:
    """Calls the handlers as the connection does."""

    def __init__(self, **endpoints: Endpoint) -> None:
        self.events: list[Event] = []
        self.site = Site(Verifier([], []), endpoints, emit=self.events.append)
        self.session = Session(bytes(16), 1, "::1", ("127.0.0.1", 1094), tls=False, authenticated=True)
        self.session.identity = who((Verb.READ, "/"), (Verb.MODIFY, "/"), (Verb.CREATE, "/"))

    async def ask(self, code: int, data: bytes = b"", body: bytes = bytes(16)) -> bytes:
        answer = await HANDLERS[code](Call(self.site, self.session, 7, code, body, data))
        return answer if isinstance(answer, bytes) else b"".join([part async for part in answer])

    async def open(self, path: str, options: Open = Open.NEW | Open.UPDATE) -> bytes:
        return (await self.ask(Code.OPEN, path.encode(), P_OPEN.pack(0o644, options, 0)))[:4]

    async def write(self, handle: bytes, offset: int, data: bytes) -> None:
        assert await self.ask(Code.WRITE, data, P_WRITE.pack(handle, offset, 0)) == b""

    async def close(self, handle: bytes) -> None:
        await self.session.files.pop(handle).close()

    async def put(self, path: str, data: bytes) -> None:
        handle = await self.open(path)
        await self.write(handle, 0, data)
        await self.close(handle)

    async def get(self, path: str) -> bytes:
        endpoint, inner = self.site.find(path)
        reader = await endpoint.store.open(inner)
        return bytes(await reader.read(0, reader.stat.size))

    def told(self) -> list[tuple[str, str]]:
        return [(event.kind, event.subject) for event in self.events]


async def refused(awaitable, kind: type[DomaError], code: int) -> DomaError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert code_of(caught.value) == code
    return caught.value
