"""Several processes on one port: to a client they are one server."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code
from tests.conftest import System
from tests.e2e.root.conftest import CONTENT, Wire

PROCESSES = 3


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    base = tmp_path_factory.mktemp("workers")
    (base / "doma.toml").write_text(f"[listen]\nworkers = {PROCESSES}\n")
    system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer", "--role", "storage",
                    "--role", "cache", "--role", "web")  # fmt: skip
    system.up()
    yield system
    assert system.down() == 0, system.log


def everyone(system: System, ask: Callable[[http.client.HTTPSConnection], Any]) -> list[Any]:
    """Ask over so many new connections that the kernel has dealt each process some."""

    def one(_: int) -> Any:
        place = system.run["https"].removeprefix("https://")
        connection = http.client.HTTPSConnection(place, context=system.access.tls(), timeout=60)
        try:
            return ask(connection)
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(24)))


def listeners(system: System) -> set[int]:
    """The processes that listen on the system's port."""
    port = int(system.run["https"].rpartition(":")[2])
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    found = set()
    for pid in (system.pid, *system.workers()):
        try:
            open_files = list(Path(f"/proc/{pid}/fd").iterdir())
        except FileNotFoundError:  # it has just ended
            continue
        for fd in open_files:
            try:
                name = os.readlink(fd)
            except OSError:
                continue
            if (match := re.fullmatch(r"socket:\[(\d+)\]", name)) and match[1] in inodes:
                found.add(pid)
    return found


def call(
    system: System, method: str, path: str, body: bytes | None = None, token: str | None = "", **headers: Any
) -> Callable[[http.client.HTTPSConnection], tuple[int, bytes]]:
    if token is not None:
        headers["Authorization"] = f"Bearer {token or system.token()}"

    def ask(connection: http.client.HTTPSConnection) -> tuple[int, bytes]:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    return ask


async def test_streams_of_root_clients_meet_in_one_process_whichever_accepted_them(three: System) -> None:
    three.put("/site/w/streams", CONTENT)
    host, port = three.run["url"].removeprefix("http://").rsplit(":", 1)
    wires = [await Wire.dial((host, int(port))) for _ in range(12)]
    control = wires[0]
    await control.login()
    handle = await control.open(f"/site/w/streams?authz={three.token()}")
    for wire in wires[1:]:
        await wire.greet(expect=1)
        status, body = await wire.ask(Code.BIND, control.id)
        assert status == 0, body
        control.send(Code.READ, frames.P_READ.pack(handle, 5, 1000), body + bytes(7))
        _, status, got = await asyncio.wait_for(wire.one(), 20)
        assert (status, got) == (0, CONTENT[5:1005])
    for wire in wires:
        await wire.close()


def test_as_many_processes_listen_as_are_asked_for(three: System) -> None:
    assert len(listeners(three)) == PROCESSES


def test_a_file_put_through_one_process_is_read_through_all(three: System) -> None:
    data = os.urandom(100_000)
    three.put("/site/w/a.bin", data)
    assert everyone(three, call(three, "GET", "/site/w/a.bin")) == [(200, data)] * 24
    changed = os.urandom(100_000)
    three.put("/site/w/a.bin", changed)
    assert everyone(three, call(three, "GET", "/site/w/a.bin")) == [(200, changed)] * 24


def test_what_only_the_main_process_has_is_answered_by_all(three: System) -> None:
    data = os.urandom(3_000_000)
    three.put("/site/w/cached.bin", data)
    assert everyone(three, call(three, "GET", "/cache/w/cached.bin")) == [(200, data)] * 24
    got = everyone(three, call(three, "GET", "/health"))
    assert {json.loads(body)["status"] for _, body in got} == {"ok"}
    issuers = everyone(three, call(three, "GET", "/doma/.well-known/openid-configuration", token=None))
    assert len(set(issuers)) == 1


def test_odd_targets_reach_the_main_process_as_they_were_sent(three: System) -> None:
    target = "/cache/w/%C3%A9%20%2B.bin"
    three.put("/site/w/é +.bin", b"odd")
    assert set(everyone(three, call(three, "GET", target))) == {(200, b"odd")}
    refused = everyone(three, call(three, "GET", f"{target}?x=%2F&y=a+b"))
    assert {status for status, _ in refused} == {400}
    assert all("/cache/w/é +.bin: the query parameter 'x'".encode() in body for _, body in refused)
    assert {s for s, _ in everyone(three, call(three, "GET", "/cache/w/%2e%2e/x"))} == {400}


def test_a_copy_to_an_endpoint_of_the_main_process_finds_its_way(three: System) -> None:
    three.put("/site/w/source.bin", b"x")
    got = everyone(three, call(three, "COPY", "/site/w/source.bin", Destination="/cache/w/target.bin"))
    assert {status for status, _ in got} == {405}


def test_a_signed_request_is_answered_by_all(three: System) -> None:
    import boto3
    from botocore.config import Config

    key = three.ask("POST", "/api/v1/s3/keys", json={"endpoint": "site"}).json()
    three.put("/site/w/signed.bin", b"signed")
    for _ in range(12):
        s3 = boto3.client(
            "s3", endpoint_url=three.run["https"], region_name="us-east-1", verify=three.run["ca_file"],
            aws_access_key_id=key["access_key"], aws_secret_access_key=key["secret_key"],
            config=Config(retries={"total_max_attempts": 1}),
        )  # fmt: skip
        assert s3.get_object(Bucket="site", Key="w/signed.bin")["Body"].read() == b"signed"
        s3.close()


def test_a_refused_upload_is_refused_by_all_before_its_body(three: System) -> None:
    got = everyone(three, call(three, "PUT", "/cache/w/no.bin", b"z" * 1000, Expect="100-continue"))
    assert {status for status, _ in got} == {405}


def test_the_numbers_of_all_processes_are_told_together(three: System) -> None:
    def counted() -> float:
        text = three.ask("GET", "/metrics", three.admin()).text
        found = re.findall(
            r'doma_requests_total\{.*endpoint="site",method="PROPFIND",status="207"\} (\S+)', text
        )
        return sum(map(float, found))

    before = counted()
    got = everyone(three, call(three, "PROPFIND", "/site/", Depth="0"))
    assert {status for status, _ in got} == {207}
    deadline = time.monotonic() + 20
    while (now := counted()) != before + 24 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert now == before + 24


def test_events_of_every_process_are_told_at_once_in_one_stream(three: System) -> None:
    token = three.admin()
    place = three.run["https"].removeprefix("https://")
    stream = http.client.HTTPSConnection(place, context=three.access.tls(), timeout=30)
    stream.request("GET", "/events?kind=file.landed", headers={"Authorization": f"Bearer {token}"})
    answer = stream.getresponse()
    assert answer.status == 200
    number = iter(range(24))
    everyone(three, lambda c: call(three, "PUT", f"/site/w/e{next(number)}", b"e")(c))
    seen: set[bytes] = set()
    while len(seen) < 24:
        seen |= set(re.findall(rb"/site/w/e\d+", answer.readline()))
    stream.close()


def test_the_private_door_of_the_main_process_is_closed_to_all_but_its_workers(three: System) -> None:
    own = {
        int(line.split()[1].rpartition(":")[2], 16)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].startswith("0100007F")
    }
    refused = 0
    for port in own - {int(three.run["https"].rpartition(":")[2])}:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/", headers={"x-doma-worker": "guess", "x-doma-where": "{}"})
            answer = connection.getresponse()
            refused += answer.status == 403 and not answer.read()
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    assert refused >= 1


def test_nobody_but_a_worker_tells_numbers(three: System) -> None:
    """What a worker passes on came from anybody, also what is addressed like its own report."""
    told = {"number": "forged", "events": True, "numbers": {}, "viewed": {}}
    headers = {"x-doma-worker": "guess", "x-doma-where": ""}
    for path in ("/.worker/report", "//.worker/report"):
        got = everyone(three, call(three, "POST", path, json.dumps(told).encode(), None, **headers))
        assert {status for status, _ in got} == {404}


def test_a_killed_worker_comes_back_and_the_others_go_on(three: System) -> None:
    before = listeners(three)
    victim = (before - {three.pid}).pop()
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 60
    answered = 0
    while (len(now := listeners(three)) < PROCESSES or victim in now) and time.monotonic() < deadline:
        # A connection that the kernel had given to the victim dies with it.
        with contextlib.suppress(httpx.TransportError):
            answered += three.ask("GET", "/health").status_code == 200
        time.sleep(0.1)
    assert answered
    assert len(now) == PROCESSES
    assert victim not in now
    three.put("/site/w/after", b"after")
    assert everyone(three, call(three, "GET", "/site/w/after")) == [(200, b"after")] * 24


def test_c15_workers_serve_the_hits_of_the_cache_themselves_and_tell_of_them(three: System) -> None:
    def hits() -> int:
        return int(three.ask("GET", "/api/v1/cache/stats", three.admin()).json()["bytes"]["hit"])

    data, token = os.urandom(200_000), three.token()
    three.put("/site/w/hot.bin", data)
    get = call(three, "GET", "/cache/w/hot.bin", token=token)
    for _ in range(3):  # all workers come to know the token and the pages
        assert everyone(three, get) == [(200, data)] * 24
    before = hits()
    os.kill(three.pid, signal.SIGSTOP)
    try:
        served = everyone(three, lambda connection: _in_time(connection, get))
    finally:
        os.kill(three.pid, signal.SIGCONT)
    assert set(served) == {(200, data), None}  # the kernel gives some connections to the stopped process
    deadline = time.monotonic() + 20
    while (now := hits() - before) < len(data) * (24 - served.count(None)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert now >= len(data) * (24 - served.count(None))


def _in_time(connection: http.client.HTTPSConnection, ask: Callable[..., tuple[int, bytes]]) -> Any:
    connection.timeout = 1
    try:
        return ask(connection)
    except OSError:
        return None
