"""Ten thousand connections that keep still: each costs a cache less than 20 kB (O8)."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import System
from tests.e2e.cache.conftest import content, serving
from tests.e2e.root.conftest import Wire

MOST = 20_000
"""Bytes of memory for each."""


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[System]:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 12_000:
        pytest.skip("needs 12,000 open files")
    base = tmp_path
    with serving() as origin:
        (base / "doma.toml").write_text(
            "[listen]\nmax_connections = 15000\nidle_timeout = 600\n"
            f'[endpoints.cache]\nstore = "cache+{origin.url}"\nwritable = false\npublic = true\n'
        )
        system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer",
                        "--role", "storage", "--role", "cache", "--role", "web")  # fmt: skip
        system.up()
        yield system
        assert system.down() == 0, system.log


def resident(system: System) -> int:
    """Bytes of memory of the process that serves."""
    status = Path(f"/proc/{system.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def address(system: System) -> tuple[str, int]:
    host, _, port = system.run["url"].removeprefix("http://").partition(":")
    return host, int(port)


def asked(held: socket.socket) -> None:
    """One warm range over a connection that is kept."""
    held.sendall(b"GET /cache/90000/f HTTP/1.1\r\nHost: x\r\nRange: bytes=5000-5099\r\n\r\n")
    got = b""
    while got.partition(b"\r\n\r\n")[2][:100] != content(5000, 5100):
        more = held.recv(65536)
        assert more, got
        got += more


def test_o8_ten_thousand_idle_http_connections_cost_less_than_20_kb_each(patient: System) -> None:
    with ExitStack() as after:

        def dial(count: int) -> None:
            for _ in range(count):
                asked(after.enter_context(socket.create_connection(address(patient), timeout=30)))

        dial(500)  # what the process needs once
        before = resident(patient)
        dial(9_500)
        assert (resident(patient) - before) / 9_500 < MOST


async def test_o8_idle_root_sessions_cost_less_than_20_kb_each(patient: System) -> None:
    wires: list[Wire] = []

    async def dial(count: int) -> None:
        for _ in range(count):
            wire = await Wire.dial(address(patient))
            await wire.login()
            handle = await wire.open("/cache/90000/f")
            assert await wire.read(handle, 5000, 100) == content(5000, 5100)
            wires.append(wire)

    try:
        await dial(200)
        before = resident(patient)
        await dial(3_000)
        assert (resident(patient) - before) / 3_000 < MOST
    finally:
        await asyncio.gather(*(wire.close() for wire in wires))
