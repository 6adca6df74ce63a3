"""Monitoring holds a bounded number of names, and says what it can of what no record can say."""

import asyncio
import socket
from dataclasses import replace
from struct import unpack_from
from typing import Any

import pytest

from doma.core.config import Monitor
from doma.core.errors import ConfigError
from doma.monitor import packets
from doma.monitor.opens import Client, Opened
from doma.monitor.stream import NAMES, Stream


def test_a_session_under_ever_new_names_is_known_under_the_last_ones() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        stream = Stream(Monitor(dest=(f"127.0.0.1:{collector.getsockname()[1]}",)), port=1, sid=2)
        asyncio.run(stream.start())
        client = Client("xroot", "::1", 7, name="eve")
        for number in range(NAMES * 3):
            file = Opened(replace(client, app=f"a{number}"), "/cache/f", 1, writing=False, since=0)
            stream.opened(file)
            stream.closed(file)
        assert len(stream._users) == len(stream._logins[7]) == NAMES
        stream.opened(Opened(Client("xroot", "::1", 8), "/cache/f", 1, writing=False, since=0))
        stream.left(7)
        stream.left(7)
        assert [user.session for user in stream._users] == list(stream._logins) == [8]
        stream.close()


def test_a_size_that_no_record_can_say_is_the_largest() -> None:
    file = Opened(Client("xroot", "::1", 1), "/cache/f", 10**20, writing=False, since=0)
    assert unpack_from(">q", packets.opened(1, 2, file), 8) == ((1 << 63) - 1,)


async def test_a_collector_whose_name_has_no_address_yet_is_found_when_it_has(monkeypatch, caplog) -> None:
    known = socket.getaddrinfo
    names: dict[str, str] = {}

    def getaddrinfo(host: str, *rest: Any, **more: Any) -> Any:
        if host == "collector.test" and host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(names.get(host, host), *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(10)
        dest = f"collector.test:{collector.getsockname()[1]}"
        stream = Stream(Monitor(dest=(dest,), flush=0.01), port=1, sid=2)
        await stream.start()
        assert "collector.test has no address" in caplog.text
        running = asyncio.create_task(stream.run())
        names["collector.test"] = "127.0.0.1"
        assert (await asyncio.to_thread(collector.recv, 2000))[:1] == b"="
        running.cancel()
        stream.close()


@pytest.mark.parametrize(
    "place", ["nowhere", ":9993", "host:", "host:port", "host:0", "host:65536", "host:²"]
)
async def test_what_is_no_address_stops_the_start(place: str) -> None:
    with pytest.raises(ConfigError, match=r"monitor\.dest: .* write host:port"):
        await Stream(Monitor(dest=(place,)), port=1, sid=2).start()
