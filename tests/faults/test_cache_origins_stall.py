"""Two sites: the near one's caches in front of the far one, by every road that can be named."""

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from doma.core.errors import Forbidden
from doma.store.xrootd import XrootdStore
from tests.conftest import System

DATA = os.urandom(2_500_000)


class Stalled:
    """A server that accepts and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self._socket.getsockname()[1]
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._socket.accept()[0])
            except OSError:
                return

    @property
    def held(self) -> int:
        """Connections so far."""
        return len(self._held)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)
        for one in self._held:
            one.close()


@pytest.fixture(scope="module")
def stalled() -> Iterator[Stalled]:
    server = Stalled()
    yield server
    server.close()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    base = tmp_path_factory.mktemp("far")
    (base / "doma.toml").write_text(
        f'[endpoints.site]\nstore = "file://{base}/site"\n'
        f'[endpoints.open]\nstore = "file://{base}/open"\npublic = true\n'
    )
    system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer", "--role", "storage")
    system.up()
    for name in ("site", "open"):
        system.put(f"/{name}/d/f.bin", DATA)
    yield system
    assert system.down() == 0, system.log


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, far: System, stalled: Stalled) -> Iterator[System]:
    base, url = tmp_path_factory.mktemp("near"), far.run["url"]
    place = url.removeprefix("http://")
    (base / "far-token").write_text(far.token() + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]
    (base / "doma.toml").write_text(
        f'[cache]\nallow = ["http://{place}", "root://{place}", "http://127.0.0.1:{stalled.port}"]\n'
        f'[endpoints.cache]\nstore = "cache+{url}/open"\nwritable = false\npublic = true\n'
        f'[endpoints.service]\nstore = "cache+{url}/site"\npublic = true\ntoken_file = "{base}/far-token"\n'
        f'[endpoints.rooted]\nstore = "cache+root://{place}//open"\npublic = true\n'
        f'[endpoints.twice]\nstore = "cache+http://127.0.0.1:{dead}/open"\npublic = true\n'
        f'replicas = ["root://{place}//open", "{url}/open"]\n'
    )
    system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer", "--role", "storage",
                    "--role", "cache", "--role", "web")  # fmt: skip
    system.up()
    yield system
    assert system.down() == 0, system.log


def get(near: System, path: str, **fields: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(near.run["url"].removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in fields.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("endpoint", ["cache", "service", "rooted", "twice"])
def test_a_fixed_origin_of_any_kind_is_read_once(near: System, endpoint: str) -> None:
    assert get(near, f"/{endpoint}/d/f.bin")[::2] == (200, DATA)
    status, headers, body = get(near, f"/{endpoint}/d/f.bin", Range="bytes=1000000-1000099")
    assert (status, headers["X-Cache"], body) == (206, "HIT", DATA[1_000_000:1_000_100])


def test_the_caches_own_token_goes_to_its_own_origin_and_to_no_other(near: System, far: System) -> None:
    place = far.run["url"].removeprefix("http://")
    assert get(near, f"/service/http:/{place}/site/d/f.bin")[0] == 401
    assert get(near, f"/service/http:/{place}/open/d/f.bin")[0] == 200


@pytest.mark.parametrize("scheme", ["http", "root"])
def test_a_client_names_the_origin_with_or_without_the_endpoint(
    near: System, far: System, scheme: str
) -> None:
    where = f"{scheme}://{far.run['url'].removeprefix('http://')}//open/d/f.bin"
    assert get(near, f"/{where}")[::2] == (200, DATA)
    assert get(near, f"/cache/{where}")[1]["X-Cache"] == "HIT"
    assert get(near, f"/{where}?authz=nonsense")[0] in {200, 400, 401}


async def test_a_root_client_names_the_origin_as_it_does_at_an_xcache(near: System, far: System) -> None:
    place, origin = (system.run["url"].removeprefix("http://") for system in (near, far))
    store = XrootdStore(f"root://{place}//")
    try:
        for path in (f"/root:/{origin}/open/d/f.bin", f"/cache/http:/{origin}/open/d/f.bin"):
            reader = await store.open(path)
            assert bytes(await reader.read(1_000_000, 1_500_000)) == DATA[1_000_000:1_500_000]
            await reader.close()
        with pytest.raises(Forbidden):
            await store.open("/root:/127.0.0.1:1/f")
    finally:
        await store.close()


@pytest.mark.parametrize(
    "path", ["/http://169.254.169.254/latest", "/root://localhost:1//f", "/cache/https:/www.example.org/f"]
)
def test_any_other_origin_is_refused_with_the_key_that_would_allow_it(near: System, path: str) -> None:
    status, _, text = get(near, path)
    assert status == 403
    assert b"cache.allow" in text


def test_o5_a_client_is_told_that_its_time_is_over_before_it_gives_up(near: System, stalled: Stalled) -> None:
    # the origin would have had 30 s for its first byte, more than this connection waits
    status, _, text = get(near, f"/http://127.0.0.1:{stalled.port}/late", X_Pelican_Timeout="2s")
    assert status == 504
    assert b"/late" in text


def test_o2_files_of_others_come_while_an_origin_stalls(near: System, far: System, stalled: Stalled) -> None:
    def wait(number: int) -> int:
        path = f"/http://127.0.0.1:{stalled.port}/f{number}"
        return get(near, path, X_Pelican_Timeout="4s")[0]

    far.put("/open/d/other.bin", DATA)
    before = stalled.held
    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(wait, number) for number in range(40)]
        while stalled.held < before + 10:
            time.sleep(0.01)
        assert get(near, "/cache/d/other.bin")[::2] == (200, DATA)
        assert {task.result() for task in waiting} <= {504, 503}


def test_metrics_tell_of_each_origin_of_the_configuration_and_of_all_others_together(
    near: System, far: System
) -> None:
    place = far.run["url"].removeprefix("http://")
    far.put("/open/d/metric.bin", DATA)
    for path in (
        "/cache/d/metric.bin",
        f"/cache/root:/{place}/open/d/metric.bin",
        f"/cache/http:/{place}/open/d/metric.bin",
    ):
        assert get(near, path)[0] == 200
    lines = near.ask("GET", "/metrics").text.splitlines()
    for name in ("requests_total", "latency_seconds_total"):
        told = {line.split("} ")[0]: float(line.split("} ")[1]) for line in lines
                if line.startswith(f'doma_cache_origin_{name}{{endpoint="cache"')}  # fmt: skip
        assert {key.partition('origin="')[2].rstrip('"') for key in told} == {
            f"http://{place}/open",
            "forwarded",
        }
        assert all(value > 0 for value in told.values())
