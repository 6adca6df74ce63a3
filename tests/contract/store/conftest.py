"""Stores are tried on the event loop that the servers run on; a real XRootD server where there is one."""

import math
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import uvloop

from doma.net.tls import ensure
from doma.store import pace
from tests.tied import Tied


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """What is done at once on a quick disk is done so on a busy machine, too, which is no slow disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "SLOW", math.inf)
        patch.setattr(pace, "QUICK", math.inf)
        yield


@dataclass
class XrootdServer:
    """Debian's ``xrootd``: plain and TLS on one port, over a folder."""

    folder: Path
    port: int
    ca: Path
    process: Tied
    config: Path
    numbers: "count[int]"

    def place(self) -> tuple[Path, str]:
        """An empty folder of its own: on the disk, and as the path behind ``root://host:port/``."""
        name = f"p{next(self.numbers)}"
        path = self.folder / name
        path.mkdir()
        path.chmod(0o777)
        return path, f"/{name}"

    def start(self) -> None:
        """Start it, again after :meth:`kill`; returns when it listens."""
        command = ["xrootd", "-c", str(self.config), "-l", str(self.config.with_suffix(".log"))]
        if os.geteuid() == 0:  # It refuses to run as root.
            command += ["-R", "daemon"]
        null = subprocess.DEVNULL
        self.process = Tied(command, stdout=null, stderr=null, cwd=self.config.parent)
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.config.with_suffix(".log").read_text()
            time.sleep(0.025)
        pytest.fail("xrootd does not listen")

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()


def _xrootd() -> Iterator[XrootdServer]:
    if shutil.which("xrootd") is None:
        pytest.skip("xrootd is not installed; the Debian package xrootd-server has it")
    with tempfile.TemporaryDirectory(prefix="doma-xrootd-", ignore_cleanup_errors=True) as name, \
        socket.socket() as free:  # fmt: skip
        base = Path(name)
        try:
            os.setxattr(base, "user.doma", b"1")
        except OSError as e:
            pytest.skip(f"{base}: no extended attributes are kept there ({e}); set TMPDIR to a disk")
        files = ensure(base / "tls", ["localhost"])
        (base / "data").mkdir()
        (base / "admin").mkdir()
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        config = base / "xrootd.cfg"
        config.write_text(
            f"xrd.port {port}\nall.export /\noss.localroot {base}/data\nall.adminpath {base}/admin\n"
            f"all.pidpath {base}/admin\nxrootd.chksum adler32\nxrd.tls {files.certificate} {files.key}\n"
            f"xrd.tlsca certfile {files.ca}\nxrd.network nodnr\n"
        )
        if os.geteuid() == 0:
            for path in (base, *base.rglob("*")):
                shutil.chown(path, "daemon")
        free.close()
        server = XrootdServer(base / "data", port, files.ca, None, config, count())  # type: ignore[arg-type]
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def xrootd_server() -> Iterator[XrootdServer]:
    """One server for all tests that leave it running."""
    yield from _xrootd()


@pytest.fixture
def own_xrootd_server() -> Iterator[XrootdServer]:
    """A server that this test may kill."""
    yield from _xrootd()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of moto's S3 server, with the bucket ``doma-test`` in it."""
    import logging

    import httpx

    server_of = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    assert httpx.put(f"http://{host}:{port}/doma-test").status_code == 200
    yield f"http://{host}:{port}"
    server.stop()
