"""Copies that are broken off: a source that dies, a client that is killed; nothing half is ever seen."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.clients.conftest import DEBIAN_PYTHON, Spot, need
from tests.clients.xrootd_server import XRootD

pytestmark = pytest.mark.client

RATE = 4 << 20
"""Bytes a second at which the slow server reads; the copies here would take about eight seconds."""
DATA = os.urandom(8 * RATE)
SLOW = f"xrootd.fslib ++ throttle\nthrottle.throttle data {RATE}\nthrottle.recompute_interval 100\n"
CANCELLED = 15.0
"""A copy whose client is gone ends within 10 s; the rest is for a busy machine."""


@pytest.fixture
def slow(spot: Spot) -> Iterator[XRootD]:
    """A second XRootD that reads no faster than :data:`RATE`, with one file."""
    with XRootD.beside(spot.grid.system.home.path, more=SLOW) as server:
        server.put("a", DATA)
        yield server


def weight(spot: Spot) -> int:
    """Bytes of everything that ours keeps, hidden or not."""
    total = 0
    for path in (spot.grid.system.home / "site").rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def begin(spot: Spot, source: str, program: str) -> "subprocess.Popen[str]":
    """Start the copy of ``source`` to ``b``, and wait until a megabyte has arrived."""
    before = weight(spot)
    if program == "gfal-copy":
        need("gfal-copy", package="gfal2-util-scripts gfal2-plugin-http python3-gfal2 python3-gfal2-util")
        words = ["gfal-copy", "-vv", "-p", "--copy-mode", "pull", source, spot.ours("b")]
    else:
        bearer = spot.grid.bearer()
        words = ["curl", "-sS", "-N", "--cacert", spot.grid.ca, "-X", "COPY", "-H", bearer]
        words += ["-H", f"TransferHeader{bearer}", "-H", f"Source: {source}", spot.ours("b")]
    copy = subprocess.Popen(
        words, env=spot.grid.environment() | {"GFAL_PYTHONBIN": DEBIAN_PYTHON}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        # a suite in the background ignores SIGINT, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while weight(spot) < before + (1 << 20):
        assert copy.poll() is None, copy.communicate()[0][-2000:]
        assert time.monotonic() < deadline, "no bytes arrived in 20 s"
        time.sleep(0.05)
    return copy


def shown(spot: Spot) -> str:
    """A listing of the test's folder."""
    answer = spot.grid.system.ask("PROPFIND", f"/site/{spot.name}", headers={"Depth": "1"})
    return "" if answer.status_code == 404 else answer.text


def ends(server: XRootD, spot: Spot) -> bool:
    """Whether the source has been left alone in time: no connection of ours to it is open any more."""
    deadline = time.monotonic() + CANCELLED
    while time.monotonic() < deadline:
        if not connected(spot.grid.system.pid, server.port):
            return True
        time.sleep(0.2)
    return False


def connected(pid: int, port: int) -> bool:
    """Whether the process holds an established connection to this port of loopback."""
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    for name in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{name}") as table:
            for line in list(table)[1:]:
                fields = line.split()
                if (
                    fields[3] == "01"
                    and fields[9] in inodes
                    and int(fields[2].rpartition(":")[2], 16) == port
                ):
                    return True
    return False


@pytest.mark.parametrize("program", ["gfal-copy", "curl"])
def test_a_source_that_dies_in_the_middle_fails_the_copy_in_words(spot, slow, program):
    copy = begin(spot, slow.url("a"), program)
    slow.kill()
    said, _ = copy.communicate(timeout=120)
    assert "success: created" not in said.lower()
    if program == "curl":
        last = said.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("failure: "), said[-1000:]
        assert "source" in last, last
        assert str(slow.port) in last or "127.0.0.1" in last, last
        assert len(last) < 1000
    else:
        assert copy.returncode != 0
        assert "source" in said.lower(), said[-1000:]
    assert spot.get("b") is None
    assert "/b<" not in shown(spot)


@pytest.mark.parametrize("program", ["gfal-copy", "curl"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_a_client_that_goes_away_cancels_its_copy(spot, slow, program, how):
    copy = begin(spot, slow.url("a"), program)
    os.killpg(copy.pid, how)
    copy.communicate(timeout=60)
    assert ends(slow, spot), "the copy goes on without its client"
    assert spot.get("b") is None
    assert "/b<" not in shown(spot)


def test_the_old_file_stays_when_its_replacement_breaks_off(spot, slow):
    spot.put("b", b"before")
    copy = begin(spot, slow.url("a"), "curl")
    assert spot.get("b") == b"before"
    slow.kill()
    copy.communicate(timeout=120)
    assert spot.get("b") == b"before"


def test_a_server_that_is_killed_in_a_copy_shows_nothing_half_after_its_restart(spot, slow):
    copy = begin(spot, slow.url("a"), "curl")
    system = spot.grid.system
    system.crash()
    copy.communicate(timeout=60)
    system.up()
    assert spot.get("b") is None
    assert "/b<" not in shown(spot)
    again = begin(spot, slow.url("a"), "curl")
    said, _ = again.communicate(timeout=120)
    assert "success" in said.lower(), said[-1000:]
    assert spot.get("b") == DATA
