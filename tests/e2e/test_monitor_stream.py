"""Monitoring of a whole system: what its clients did is told over UDP, in the log and as events."""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE = 300_000


class Collector:
    """Takes packets and reads them by the tables of the monitoring contract."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(20)
        self.place = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.packets: list[bytes] = []
        self.maps: dict[bytes, dict[int, bytes]] = {b"=": {}, b"u": {}, b"T": {}}
        self.opens: dict[int, tuple[int, int, str]] = {}
        self.closes: dict[int, tuple[int, int, int]] = {}
        self.events: list[dict[str, Any]] = []

    def one(self) -> None:
        """Take the next packet."""
        data = self.socket.recv(65536)
        self.packets.append(data)
        code, _, length, _ = struct.unpack(">cBHi", data[:8])
        assert length == len(data)
        if code in self.maps:
            self.maps[code][int.from_bytes(data[8:12], "big")] = data[12:]
        elif code == b"g":
            assert data.endswith(b"\0")
            self.events += [json.loads(line) for line in data[24:-1].split(b"\n")]
        else:
            self._records(data[8:])

    def _records(self, body: bytes) -> None:
        assert body[0] == 2, "the first record is the time"
        moved, number = struct.unpack(">HH", body[4:8])
        body = body[24:]
        for _ in range(number):
            kind, _, size, file = struct.unpack(">BBHI", body[:8])
            if kind == 1:
                length, user = struct.unpack(">qI", body[8:20])
                self.opens[file] = (user, length, body[20:size].rstrip(b"\0").decode())
            elif kind == 0:
                self.closes[file] = struct.unpack(">qqq", body[8:32])
            body = body[size:]
        assert not body
        assert moved <= number


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.socket.close()


def test_reads_over_http_are_told_as_one_open_file(start: Any, collector: Collector, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[monitor]\ndest = ["{collector.place}"]\nsite = "T2_TEST"\nflush = 0.2\nidle = 0.2\n')
    system = start("home", "--config", config)
    system.put("/site/store/a.bin", bytes(SIZE))
    agent = {"User-Agent": "probe/7.1"}
    for at in (0, 100_000):
        answer = system.ask("GET", "/cache/store/a.bin", headers={"Range": f"bytes={at}-{at + 999}", **agent})
        assert answer.status_code == 206
    answer = system.ask("GET", "/cache/store/a.bin", headers={"Range": "bytes=0-9,100-199", **agent})
    assert answer.status_code == 206
    while not any(event["lfn"] == "/store/a.bin" for event in collector.events):
        collector.one()
    while not any(
        collector.opens.get(file, (0, 0, ""))[2] == "/store/a.bin" and read[:2] == (2000, 110)
        for file, read in collector.closes.items()
    ):
        collector.one()
    (site,) = collector.maps[b"="].values()
    assert b"&site=T2_TEST&" in site
    (event,) = (event for event in collector.events if event["appname"] == "probe")
    assert event["b_hit"] + event["b_miss"] == 2110
    assert (event["reads"], event["readvs"], event["segments"]) == (2, 1, 2)
    assert (event["user"], event["size"], event["outcome"]) == ("ada", SIZE, "partial")
    user = next(u for u, _, path in collector.opens.values() if path == "/store/a.bin")
    assert user in collector.maps[b"u"]
    assert any(f"&Uc={user}&s=ada".encode() in text for text in collector.maps[b"T"].values())
    everything = b"".join(collector.packets) + system.log.encode()
    assert system.token()[:40].encode() not in everything
    # counters: one for maps, one for files, one for a provider of events
    for codes, first in ((b"=uT", 0), (b"f", 0), (b"g", 1)):
        numbers = [data[1] for data in collector.packets if data[0] in codes]
        assert numbers == list(range(first, first + len(numbers)))


def test_a_collector_that_is_nowhere_stops_the_start(command: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[monitor]\ndest = ["nowhere"]\n')
    said = command("up", "--home", tmp_path / "home", "--config", config)
    assert said.code != 0
    assert "monitor.dest" in said.err
