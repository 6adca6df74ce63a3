"""Our root:// client beside XRootD's own, over a real ``xrootd`` on this machine: ratios of one run.

``python tests/bench/bench_xrootd.py [--gib 1] [--reads 20000]`` prints CPU seconds (user + system) of the
client for each GiB read in order, and 64 KiB random reads per second with 8 in flight (ours only: xrdcp has
no such mode). Needs Debian's xrootd-server and xrootd-client.
"""

import argparse
import asyncio
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from doma.net.tls import ensure
from doma.store.xrootd import XrootdStore

PIECE = 1 << 20


@contextmanager
def served(gib: float):
    """A server over one file: its port and CA."""
    with tempfile.TemporaryDirectory(prefix="doma-bench-") as name:
        base = Path(name)
        files = ensure(base / "tls", ["localhost"])
        (base / "tls" / "trusted").mkdir()
        shutil.copy(files.ca, base / "tls" / "trusted" / "ca.pem")
        subprocess.run(["openssl", "rehash", str(base / "tls" / "trusted")], check=True)
        (base / "data").mkdir()
        (base / "admin").mkdir()
        block = os.urandom(16 << 20)
        with (base / "data" / "f").open("wb") as file:
            for _ in range(int(gib * 64)):
                file.write(block)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = base / "x.cfg"
        config.write_text(
            f"xrd.port {port}\nall.export /\noss.localroot {base}/data\nall.adminpath {base}/admin\n"
            f"all.pidpath {base}/admin\nxrd.tls {files.certificate} {files.key}\n"
            f"xrd.tlsca certfile {files.ca}\nxrd.network nodnr\n"
        )
        command = ["xrootd", "-c", str(config), "-l", str(base / "log")]
        if os.geteuid() == 0:
            command += ["-R", "daemon"]
            for path in (base, *base.rglob("*")):
                shutil.chown(path, "daemon")
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=base)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None, (base / "log").read_text()
                time.sleep(0.05)
            yield port, files.ca
        finally:
            server.kill()
            server.wait()


def cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def theirs(url: str, ca: Path) -> tuple[float, float]:
    """CPU and wall seconds of ``xrdcp`` to nowhere."""
    env = {**os.environ, "X509_CERT_DIR": str(ca.parent / "trusted")}
    before, began = cpu(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["xrdcp", "-f", "-s", url, "/dev/null"], check=True, env=env)
    return cpu(resource.RUSAGE_CHILDREN) - before, time.perf_counter() - began


async def in_order(url: str, ca: Path, ahead: int) -> tuple[float, float]:
    """CPU and wall seconds of our client, with some reads ahead of the consumer."""
    store = XrootdStore(url, ca_file=ca)
    reader = await store.open("/f")
    size = reader.stat.size
    before, began = cpu(resource.RUSAGE_SELF), time.perf_counter()
    flying: list[asyncio.Task[Any]] = []
    for start in range(0, size, PIECE):
        if len(flying) >= ahead:
            await flying.pop(0)
        flying.append(asyncio.create_task(reader.read(start, min(size, start + PIECE))))
    for task in flying:
        await task
    done = cpu(resource.RUSAGE_SELF) - before, time.perf_counter() - began
    await reader.close()
    await store.close()
    return done


async def at_random(url: str, ca: Path, reads: int) -> tuple[float, float]:
    """Reads per second, and CPU microseconds of each."""
    store = XrootdStore(url, ca_file=ca)
    reader = await store.open("/f")
    pages = reader.stat.size // 4096 - 16
    rng = random.Random(1)

    async def one() -> None:
        for _ in range(reads // 8):
            start = rng.randrange(pages) * 4096
            await reader.read(start, start + (64 << 10))

    before, began = cpu(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(8)))
    took, used = time.perf_counter() - began, cpu(resource.RUSAGE_SELF) - before
    await reader.close()
    await store.close()
    return reads / took, used / reads * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--reads", type=int, default=20_000)
    asked = parser.parse_args()
    if not shutil.which("xrootd") or not shutil.which("xrdcp"):
        sys.exit("install the Debian packages xrootd-server and xrootd-client")
    with served(asked.gib) as (port, ca):
        for scheme in ("root", "roots"):
            url = f"{scheme}://localhost:{port}//"
            theirs(url + "f", ca)
            their_cpu, their_wall = theirs(url + "f", ca)
            our_cpu, our_wall = uvloop.run(in_order(url, ca, 4))
            rate, each = uvloop.run(at_random(url, ca, asked.reads))
            print(
                f"{scheme:5} in order, CPU s/GiB: ours {our_cpu / asked.gib:.2f},"
                f" xrdcp {their_cpu / asked.gib:.2f}, ratio {our_cpu / their_cpu:.2f};"
                f" wall ratio {our_wall / their_wall:.2f}"
            )
            print(f"{scheme:5} 64 KiB at random, 8 in flight: {rate:.0f}/s, {each:.0f} us CPU each")


if __name__ == "__main__":
    main()
