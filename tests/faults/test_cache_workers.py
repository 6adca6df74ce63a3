"""Three processes before one cache folder, by both doors: one copy from the origin, never a mix (C15)."""

import asyncio
import os
import random
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from http.client import HTTPConnection, HTTPException, IncompleteRead
from threading import Event, Thread

import pytest

from doma.net.xroot_frames import P_HANDLE, Code
from tests.conftest import System
from tests.e2e.cache.conftest import Origin, Thing, Visitor, content, serving
from tests.e2e.root.conftest import Wire
from tests.e2e.test_system_workers import listeners

MIB = 1 << 20
PROCESSES = 3
DOORS = ["http", "root"]


class Several:
    """A system of three processes with a cache for everybody, as visitors want to see it."""

    def __init__(self, system: System, origin: Origin) -> None:
        self.system, self.origin = system, origin
        self.trust = ssl.create_default_context()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.system.run["url"].removeprefix("http://").partition(":")
        return host, int(port)

    async def dial(self) -> Wire:
        wire: Wire = await Wire.dial(self.address)
        await wire.login()
        return wire


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    base = tmp_path_factory.mktemp("several")
    with serving() as origin:
        (base / "doma.toml").write_text(
            f"[listen]\nworkers = {PROCESSES}\n"
            f'[endpoints.cache]\nstore = "cache+{origin.url}"\nwritable = false\npublic = true\n'
        )
        system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer",
                        "--role", "storage", "--role", "cache", "--role", "web")  # fmt: skip
        system.up()
        assert len(listeners(system)) == PROCESSES
        yield Several(system, origin)
        assert system.down() == 0, system.log


async def everybody(several: Several, path: str, size: int, clients: int = 12) -> list[object]:
    """What many new connections by each door get at once; the kernel deals each process some.

    Errors are printed with their texts, and what the servers had to say.
    """
    async with AsyncExitStack() as after:
        visitors = [Visitor(several, door) for door in DOORS * clients]
        for visitor in visitors:
            after.push_async_callback(visitor.close)
        found = list(await asyncio.gather(*(visitor.read(path, 0, size) for visitor in visitors)))
        for visitor, got in zip(visitors, found, strict=True):
            if isinstance(got, int):
                print(visitor.how, got, visitor.told)
        if any(isinstance(got, int) for got in found):
            print(several.system.log[-10_000:])
        return found


@pytest.mark.parametrize("state", ["cold", "half"])
async def test_c15_clients_of_all_processes_cost_the_origin_one_copy(several: Several, state: str) -> None:
    size = 5 * MIB + 77
    path = f"/{size}/herd-{state}"
    if state == "half":
        assert set(await everybody(several, path, MIB)) == {content(0, MIB)}
    for _ in range(3):  # from the origin, from the disk, by the processes themselves
        assert set(await everybody(several, path, size)) == {content(0, size)}
    assert several.origin.sent[path] == size


@pytest.mark.parametrize("state", ["warm", "half"])
async def test_f8_f9_a_file_replaced_while_all_processes_read_it_is_never_mixed(
    several: Several, state: str
) -> None:
    size = 24 * MIB  # more than sockets and read-ahead hold
    path = f"/replaced/{state}"
    thing = several.origin.things[path] = Thing(size)
    for _ in range(2):
        await everybody(several, path, size if state == "warm" else 2 * MIB)
    answers, handles = [], []
    for _ in range(12):
        connection = HTTPConnection(*several.address, timeout=60)
        connection.request("GET", f"/cache{path}")
        answer = connection.getresponse()
        assert answer.read(MIB) == content(0, MIB)
        answers.append((connection, answer))
        visitor = Visitor(several, "root")
        handles.append((visitor, await visitor.open(path)))
    thing.version = 1
    with closing(HTTPConnection(*several.address, timeout=60)) as fresh:
        fresh.request("GET", f"/cache{path}", headers={"Cache-Control": "no-cache", "Range": "bytes=0-9"})
        assert fresh.getresponse().read() == content(0, 10, 1)
    for connection, answer in answers:
        try:
            rest = answer.read()
            assert len(rest) == size - MIB
        except IncompleteRead as e:
            assert state == "half"
            rest = e.partial
        assert rest == content(MIB, MIB + len(rest))
        connection.close()
    for visitor, handle in handles:
        for start in range(0, size, 8 * MIB):
            got = await visitor.take(handle, start, start + MIB)
            assert got == content(start, start + MIB) or (isinstance(got, int) and state == "half")
        await visitor._wire.ask(Code.CLOSE, P_HANDLE.pack(handle))
        await visitor.close()
    assert set(await everybody(several, path, size)) == {content(0, size, 1)}


class Load:
    """Readers by both doors that begin again when a process dies under them."""

    def __init__(self, several: Several, path: str, size: int) -> None:
        self._several, self._path, self._size = several, path, size
        self.over, self.wrong, self.right = Event(), list[str](), dict.fromkeys(DOORS, 0)
        self.broken = 0
        """Answers that ended with the process that gave them."""
        self._threads = [Thread(target=asyncio.run, args=(self._read(door, n),)) for n in range(2)
                         for door in DOORS]  # fmt: skip
        for thread in self._threads:
            thread.start()

    async def _read(self, door: str, seed: int) -> None:
        rng = random.Random(seed)
        while not self.over.is_set():
            visitor = Visitor(self._several, door)
            try:
                for _ in range(20):
                    start = rng.randrange(self._size)
                    stop = min(self._size, start + rng.randrange(1, 600_000))
                    got = await visitor.read(self._path, start, stop)
                    if got == 0:
                        self.broken += 1
                        break
                    if got != content(start, stop):
                        self.wrong.append(
                            f"{door} {start}-{stop}: {got if isinstance(got, int) else 'bytes'}"
                        )
                    self.right[door] += 1
            except (OSError, EOFError, HTTPException):
                continue
            finally:
                await visitor.close()

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_c15_a_killed_worker_costs_nobody_a_byte_and_what_it_served_is_served_on(several: Several) -> None:
    size = 16 * MIB + 5
    path = f"/{size}/killed"
    load = Load(several, path, size)
    for _ in range(5):
        victim = (listeners(several.system) - {several.system.pid}).pop()
        before = dict(load.right)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(listeners(several.system)) < PROCESSES or any(
            load.right[door] < before[door] + 5 for door in DOORS
        ):
            assert time.monotonic() < deadline, (before, load.right)
            time.sleep(0.02)
    load.end()
    assert load.wrong == []
    assert load.broken <= 5 * 2, "two readers over HTTP, each cut once by each of five deaths"
    assert set(asyncio.run(everybody(several, path, size))) == {content(0, size)}
    assert several.origin.sent[path] == size


def test_c15_after_the_death_of_all_processes_the_next_ones_serve_what_was_here(several: Several) -> None:
    size = 3 * MIB + 9
    path = f"/{size}/outlives"
    assert set(asyncio.run(everybody(several, path, size))) == {content(0, size)}
    several.system.crash()
    several.system.up()
    several.origin.up = False
    try:
        assert set(asyncio.run(everybody(several, path, size))) == {content(0, size)}
    finally:
        several.origin.up = True
    assert several.origin.sent[path] == size
