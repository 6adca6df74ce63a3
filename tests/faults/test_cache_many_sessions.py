"""200 sessions that open 100 small files each (O6): none fails, no file that exists is said to be missing."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress

import pytest

from doma.core.errors import DomaError
from doma.store.xrootd import XrootdStore
from tests.conftest import System

SESSIONS, FILES, PARTS = 200, 100, 10


def content(n: int) -> bytes:
    return f"file {n} ".encode() * (50 + n)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A cache, cold, in front of another system."""
    base = tmp_path_factory.mktemp("many")
    (base / "site").mkdir()
    for n in range(FILES):
        (base / "site" / f"f{n}").write_bytes(content(n))
    (base / "far.toml").write_text(
        f'[endpoints.o]\nstore = "file://{base}/site"\nwritable = false\npublic = true\n'
    )
    far = System(base / "far", "--config", base / "far.toml", "--role", "storage", "--role", "issuer")
    url = far.up()["url"]
    (base / "near.toml").write_text(
        f'[endpoints.near]\nstore = "cache+{url}/o"\npublic = true\n'
        f'[endpoints.rooted]\nstore = "cache+root://{url.removeprefix("http://")}//o"\npublic = true\n'
    )
    near = System(base / "near", "--config", base / "near.toml", "--role", "issuer", "--role", "storage",
                  "--role", "cache", "--role", "web")  # fmt: skip
    near.up()
    yield near
    assert near.down() == 0
    far.down()


async def http_session(host: str, port: int, numbers: list[int], outcomes: Counter[str]) -> None:
    """One connection that reads files."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for n in numbers:
            writer.write(f"GET /near/f{n} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")
            )
            body = await reader.readexactly(length)
            status = head.split()[1]
            outcomes[status if status != "200" or body == content(n) else "wrong"] += 1
    except (OSError, EOFError):
        outcomes["lost"] += 1
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def root_session(host: str, port: int, numbers: list[int], outcomes: Counter[str]) -> None:
    store = XrootdStore(f"root://{host}:{port}//rooted")
    try:
        for n in numbers:
            try:
                reader = await store.open(f"/f{n}")
                data = bytes(await reader.read(0, reader.stat.size))
                await reader.close()
                outcomes["200" if data == content(n) else "wrong"] += 1
            except DomaError as e:
                outcomes[f"{e.http} {e.message[:80]}"] += 1
    finally:
        await store.close()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("door", [http_session, root_session])
async def test_o6_two_hundred_sessions_read_a_hundred_files_each_and_none_fails(
    near: System, door: Callable[..., Coroutine[None, None, None]], part: int
) -> None:
    host, _, port = near.run["url"].removeprefix("http://").partition(":")
    outcomes: Counter[str] = Counter()
    async with asyncio.TaskGroup() as tasks:
        for session in range(SESSIONS):
            numbers = [(session + i) % FILES for i in range(part, FILES, PARTS)]
            tasks.create_task(door(host, int(port), numbers, outcomes))
    assert outcomes == {"200": SESSIONS * len(range(part, FILES, PARTS))}
