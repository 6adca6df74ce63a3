"""``kill -9`` of a whole cache, twenty times under load: by both doors no byte is ever wrong afterwards."""

import asyncio
import http.client
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from doma.core.errors import DomaError
from doma.store.xrootd import XrootdStore
from tests.conftest import System

ROUNDS, KILLS = 10, 2
PIECE = 1 << 20
SIZES = [0, 1, 4095, 4096, 70_001, 1_000_003, 2_500_000, 2_097_152, 1_700_000, 3_000_001, 900_000, 2_200_002]
"""Of the objects; together more than the cache may hold."""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rng = random.Random(23)
    return {f"d{n % 3}/f{n}": rng.randbytes(size) for n, size in enumerate(SIZES)}


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Iterator[System]:
    """The cache in front of another system; its folder goes through all rounds."""
    base = tmp_path_factory.mktemp("often")
    for name, data in files.items():
        path = base / "origin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (base / "far.toml").write_text(
        f'[endpoints.o]\nstore = "file://{base}/origin"\nwritable = false\npublic = true\n'
    )
    far = System(base / "far", "--config", base / "far.toml", "--role", "storage", "--role", "issuer")
    (base / "near.toml").write_text(
        "[cache]\nsize = 12000000\nlow = 0.5\nlifetime = 1\n"
        f'[endpoints.near]\nstore = "cache+{far.up()["url"]}/o"\npublic = true\n'
    )
    near = System(base / "near", "--config", base / "near.toml", "--role", "issuer", "--role", "storage",
                  "--role", "cache", "--role", "web")  # fmt: skip
    near.up()
    yield near
    near.down()
    far.down()


class Load:
    """Readers by both doors, prestage and purge; each checks what it gets, until the system is gone."""

    def __init__(self, system: System, files: dict[str, bytes], seed: int) -> None:
        self.wrong: list[str] = []
        self.right = {"http": 0, "root": 0, "commands": 0}
        self._place = system.run["url"].removeprefix("http://")
        self._files, self._seed = files, seed
        self._tokens = {"admin": system.admin(), "ada": system.token()}
        self._gone = threading.Event()
        work = [self._http, self._http, self._root, self._root, self._prestage, self._purge]
        self._threads = [threading.Thread(target=one, args=(random.Random(f"{seed}-{n}"),), daemon=True)
                         for n, one in enumerate(work)]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """The system is gone: so are its clients, soon."""
        self._gone.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def is_heard(self) -> bool:
        """Whether each kind of client has got something."""
        return all(self.right.values())

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._place, timeout=20)

    def _span(self, rng: random.Random) -> tuple[str, int, int]:
        name = rng.choice([name for name, data in self._files.items() if data])
        start = rng.randrange(len(self._files[name]))
        return name, start, min(len(self._files[name]), start + rng.randrange(1, 600_000))

    def _judge(self, door: str, name: str, start: int, got: bytes) -> None:
        if got != self._files[name][start : start + len(got)]:
            self.wrong.append(f"{door} {name} at {start}, {len(got)} bytes, seed {self._seed}")
        self.right[door] += 1

    def _http(self, rng: random.Random) -> None:
        while not self._gone.is_set():
            with suppress(OSError, http.client.HTTPException), closing(self._connection()) as connection:
                while not self._gone.is_set():
                    name, start, stop = self._span(rng)
                    connection.request("GET", f"/near/{name}", headers={"Range": f"bytes={start}-{stop - 1}"})
                    answer = connection.getresponse()
                    got = answer.read()
                    if answer.status == 206:
                        self._judge("http", name, start, got)
                    elif answer.status not in {429, 503}:
                        self.wrong.append(f"http {name}: {answer.status} {got[:200]!r}")

    def _root(self, rng: random.Random) -> None:
        async def run() -> None:
            store = XrootdStore(f"root://{self._place}//near")
            while not self._gone.is_set():
                with suppress(DomaError):
                    name, start, stop = self._span(rng)
                    reader = await store.open("/" + name)
                    for _ in range(4):
                        self._judge("root", name, start, bytes(await reader.read(start, stop)))
                    await reader.close()
            await asyncio.wait_for(store.close(), 10)

        asyncio.run(run())

    def _command(self, method: str, target: str, token: str) -> None:
        with suppress(OSError, http.client.HTTPException), closing(self._connection()) as connection:
            connection.request(method, target, headers={"Authorization": f"Bearer {self._tokens[token]}"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                self.right["commands"] += 1
            else:
                self.wrong.append(f"{target}: {answer.status}")
        self._gone.wait(0.02)

    def _prestage(self, rng: random.Random) -> None:
        while not self._gone.is_set():
            name = rng.choice(list(self._files))
            self._command("GET", f"/pelican/api/v1.0/prestage?path=/near/{name}", "ada")

    def _purge(self, rng: random.Random) -> None:
        while not self._gone.is_set():
            self._command("POST", "/api/v1/cache/purge", "admin")


def settled(question: Callable[[], bool]) -> bool:
    """Whether something comes true within 30 s."""
    deadline = time.monotonic() + 30
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def compare(system: System, files: dict[str, bytes]) -> None:
    """Every byte of every object by both doors."""
    place = system.run["url"].removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=60)
    for name, data in files.items():
        connection.request("GET", f"/near/{name}")
        answer = connection.getresponse()
        got = answer.read()
        assert (answer.status, got == data) == (200, True), (name, answer.status, got[:300])
    connection.close()

    async def rooted() -> None:
        store = XrootdStore(f"root://{place}//near")
        for name, data in files.items():
            reader = await store.open("/" + name)
            pieces = [
                bytes(await reader.read(a, min(a + PIECE, len(data)))) for a in range(0, len(data), PIECE)
            ]
            assert b"".join(pieces) == data, name
            await reader.close()
        await store.close()

    asyncio.run(rooted())


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_cache_killed_twenty_times_under_load_is_right_to_the_last_byte(
    near: System, files: dict[str, bytes], round_: int
) -> None:
    rng = random.Random(round_)
    for kill in range(KILLS):
        load = Load(near, files, round_ * KILLS + kill)
        assert settled(load.is_heard)
        time.sleep(0.8 * rng.random())
        near.crash()
        load.end()
        assert load.wrong == []
        near.up()
        compare(near, files)
        assert settled(lambda: _agrees(near)), (near.ask("GET", "/api/v1/cache/stats").json(), _on_disk(near))


def _on_disk(near: System) -> int:
    """Bytes of the cache's folder as ``du`` counts them."""
    (folder,) = (near.home / "cache").iterdir()
    return sum(os.lstat(path).st_blocks * 512 for path in [folder, *folder.rglob("*")])


def _agrees(near: System) -> bool:
    used: int = near.ask("GET", "/api/v1/cache/stats").json()["used"]
    return used > 0 and abs(used - _on_disk(near)) <= 0.01 * used
