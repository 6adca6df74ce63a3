"""The data plane against nginx: CPU of the whole server process tree for the same work, as ratios.

    python tests/bench/bench_dataplane.py [--quick] [--json FILE] [--only WORDS]

Both servers run on one core, the generator on another, over loopback, with the same 1 GiB file in the page
cache. Ours gets a real ES256 token and five headers with every request; nginx ignores them. Rounds alternate
between the two; each server's figure is the lowest of its rounds, since noise only adds, and a round
during which the machine was busy with other things is repeated. CPU comes from ``schedstat`` (nanoseconds).

As root it runs in a network namespace of its own, with TCP's ``cubic`` or ``reno``: a machine that is set to
``bbr`` paces loopback, which hides what a server costs.

Needs nginx (Debian: ``nginx-light`` or better, with the dav and ssl modules).
"""

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench import dataplane_load as load
from tests.bench import dataplane_servers as servers

GIB = 1 << 30
NOISE = 0.25
"""Share of a round during which something waited for a core, above which the round is repeated."""

TARGETS = {
    "64 KiB": (1.3, 0.9),
    "1 MiB": (1.3, 0.7),
    "GET 1 GiB": (1.3, 0.7),
    "100 x 16 KiB": (0.9, 0.8),
    "PUT 1 GiB": (1.25, 1.4),
}
COUNTS = {"64 KiB": (12_000, 6000), "1 MiB": (3000, 600), "100 x 16 KiB": (1000, 400), "GET 1 GiB": (5, 1)}
"""Requests a round, plain and TLS: half a second of CPU or more."""


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu(pid: int) -> float:
    """Seconds on a core of a process tree, all threads."""
    total = 0
    for one in tree(pid):
        for task in Path(f"/proc/{one}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def pressed() -> float:
    """Seconds since boot during which something waited for a core."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().splitlines()[0].rpartition("total=")[2]) / 1e6
    except OSError:
        return 0.0


def private(pid: int) -> int:
    """RssAnon in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


Work = Callable[[load.Target], float]


class Bench:
    """Both servers, and what was measured."""

    def __init__(self, folder: Path, quick: bool, only: str) -> None:
        self.folder, self.quick, self.only = folder, quick, only
        self.rows: list[dict[str, Any]] = []
        self.peak = 0
        data = folder / "data"
        data.mkdir()
        block = os.urandom(16 << 20)
        with (data / "f").open("wb") as file:
            for _ in range(GIB // len(block)):
                file.write(block)
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        self.ours = spawn.Process(target=servers.serve, args=(str(folder), there), daemon=True)
        self.ours.start()
        port, token, cert, key = here.recv()
        self.nginx, plain, tls = servers.nginx(folder, cert, key)
        os.sched_setaffinity(0, {servers.CLIENT_CORE})
        headers = (
            f"Authorization: Bearer {token}\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n"
            "Accept-Encoding: identity\r\nX-Request-Id: 0123456789abcdef\r\n"
        )
        self.a = load.Target("nginx", plain, tls, "/f", "/put.nginx", headers)
        self.b = load.Target("doma", port, port, "/site/f", "/site/put.doma", headers)
        self.token_bytes = len(token)
        self._adopt(block)
        for target in (self.a, self.b):
            self._wait(target)
        ciphers = [target.cipher() for target in (self.a, self.b)]
        assert ciphers[0] == ciphers[1], ciphers
        self.cipher = ciphers[0]

    def _adopt(self, block: bytes) -> None:
        """Let our store publish the file by an upload over its own door, as every file of it is."""
        self._wait(self.b)
        with self.b.dial(tls=False) as sock:
            sock.sendall(self.b.request(f"Content-Length: {GIB}\r\n", "PUT", "/site/f"))
            for _ in range(GIB // len(block)):
                sock.sendall(block)
            head, _ = load.head_of(sock)
            assert head.startswith(b"HTTP/1.1 20"), head

    def _wait(self, target: load.Target) -> None:
        for _ in range(100):
            try:
                target.dial(tls=False).close()
            except ConnectionRefusedError:
                time.sleep(0.05)
            else:
                return
        raise SystemExit(f"{target.name} does not listen")

    def wanted(self, label: str) -> bool:
        return not self.only or any(word in label for word in self.only.split(","))

    def compare(self, name: str, tls: bool, unit: str, per: float, work: Work) -> None:
        """Run the same work on both, alternating, and note CPU per unit."""
        label = f"{name} {'TLS' if tls else 'plain'}"
        if not self.wanted(label):
            return
        spent: dict[str, list[float]] = {"nginx": [], "doma": []}
        pids = {"nginx": self.nginx.pid, "doma": self.ours.pid or 0}
        rounds, noisy, turn = (3 if self.quick else 7), 0, 0
        while turn <= rounds:
            used, begun, waited = {}, time.monotonic(), pressed()
            for target in (self.a, self.b) if turn % 2 else (self.b, self.a):
                before = cpu(pids[target.name])
                work(target)
                used[target.name] = (cpu(pids[target.name]) - before) / per
            self.peak = max(self.peak, private(pids["doma"]))
            if pressed() - waited > NOISE * (time.monotonic() - begun) and noisy < rounds:
                noisy += 1
                continue
            if turn:  # the first round warms
                for key, value in used.items():
                    spent[key].append(value)
            turn += 1
        nginx, doma = min(spent["nginx"]), min(spent["doma"])
        goal = TARGETS[name][int(tls)]
        each = sorted(b / a for a, b in zip(spent["nginx"], spent["doma"], strict=True))
        row = {
            "name": label, "unit": unit, "nginx": nginx, "doma": doma, "ratio": doma / nginx,
            "lowest": each[0], "highest": each[-1], "noisy": noisy, "target": goal,
            "holds": doma / nginx <= goal,
        }  # fmt: skip
        self.rows.append(row)
        print(
            f"{label:19} nginx {nginx:8.1f}  doma {doma:8.1f} {unit:10} ratio {row['ratio']:5.2f} "
            f"({each[0]:.2f}-{each[-1]:.2f}) target {goal:4.2f} {'ok' if row['holds'] else 'MISSED'}"
            f"{f'  {noisy} noisy rounds repeated' if noisy else ''}",
            flush=True,
        )

    def note(self, name: str, value: float, unit: str, goal: float) -> None:
        holds = value <= goal
        self.rows.append({"name": name, "unit": unit, "doma": value, "target": goal, "holds": holds})
        verdict = "ok" if holds else "MISSED"
        print(f"{name:42} {value:8.2f} {unit:5} target {goal:g}  {verdict}", flush=True)

    def run(self) -> None:
        if self.wanted("idle"):  # before large answers leave room in the heap that would hide the cost
            self.idle()
        for tls in (False, True):
            for name, size, parts in (
                ("64 KiB", 65536, 1),
                ("1 MiB", 1 << 20, 1),
                ("100 x 16 KiB", 16384, 100),
            ):
                count = COUNTS[name][tls] // (2 if self.quick else 1)
                self.compare(name, tls, "us/request", count / 1e6, _ranges(tls, size, parts, count))
            count = COUNTS["GET 1 GiB"][tls]
            self.compare("GET 1 GiB", tls, "ms/GiB", count * 1e-3, partial(_gets, tls=tls, count=count))
            self.compare("PUT 1 GiB", tls, "ms/GiB", 1e-3, partial(load.run_put, tls=tls, size=GIB))
        if self.wanted("tiny"):
            self.cold()
        self.note("private memory (RssAnon), peak", self.peak / (1 << 20), "MiB", 200)

    def cold(self) -> None:
        """Latency of a tiny request while another client reads 1 GiB that is not in memory."""
        os.sync()
        with (self.folder / "data" / "f").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        context = multiprocessing.get_context("fork")
        reader = context.Process(target=load.run_get, args=(self.b,), kwargs={"tls": False})
        reader.start()
        latencies: list[float] = []
        while reader.is_alive():
            latencies += load.run_tiny(self.b, "/json", 0.2)
        reader.join()
        alone = load.run_tiny(self.b, "/json", 3)
        self.note("tiny JSON p99 during a cold 1 GiB read", p99(latencies), "ms", 10)
        self.note("tiny JSON p99 alone, for comparison", p99(alone), "ms", 10)

    def idle(self) -> None:
        pid, count = self.ours.pid or 0, 1000 if self.quick else 8000
        for tls in (False, True):
            before = private(pid)
            socks = load.run_idle(self.b, "/json", count if not tls else count // 8, tls=tls)
            time.sleep(1.5)
            used = (private(pid) - before) / len(socks) / 1024
            label = f"idle connection, {'TLS' if tls else 'plain'} ({len(socks)})"
            self.note(label, used, "KiB", 60 if tls else 5)
            self.peak = max(self.peak, private(pid))
            for sock in socks:
                sock.close()
            time.sleep(1)

    def close(self) -> None:
        self.ours.terminate()
        self.ours.join(10)
        self.nginx.send_signal(signal.SIGTERM)
        self.nginx.wait(10)


def _ranges(tls: bool, size: int, parts: int, count: int) -> Work:
    return partial(load.run_ranges, tls=tls, size=size, parts=parts, connections=8, count=count, whole=GIB)


def _gets(target: load.Target, *, tls: bool, count: int) -> float:
    return sum(load.run_get(target, tls=tls) for _ in range(count))


def p99(latencies: list[float]) -> float:
    """In milliseconds."""
    return 1e3 * load.percentile(latencies, 0.99)


def own_network() -> str:
    """Go on in a new network namespace where that is allowed; what TCP uses."""
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    if os.getuid() == 0 and shutil.which("unshare") and "DOMA_BENCH_NETWORK" not in os.environ:
        os.environ["DOMA_BENCH_NETWORK"] = "own"
        if subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0:
            os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    elif os.environ.get("DOMA_BENCH_NETWORK") == "own":
        with socket.socket() as sock:  # lo begins down: SIOCSIFFLAGS with IFF_UP
            fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))
            # Ethernet's MTU, SIOCSIFMTU: with loopback's own of 64 KiB, nginx's corked tail of a 64 KiB
            # answer waits 40 ms for a delayed ACK, which no real network shows.
            fcntl.ioctl(sock, 0x8922, struct.pack("16si12x", b"lo", 1500))
        for unpaced in ("cubic", "reno"):
            with contextlib.suppress(OSError):  # not every machine lets root choose cubic
                control.write_text(unpaced)
                break
    return control.read_text().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", default="", help="comma-separated words; only rows with one of them")
    parser.add_argument("--dir", default=None, help="where the files go (default: the temporary directory)")
    options = parser.parse_args()
    control = own_network()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="doma-bench-", dir=options.dir))
    folder.chmod(0o755)
    try:
        bench = Bench(folder, options.quick, options.only)
        try:
            about = (
                f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
                f"Python {platform.python_version()}, TCP {control}, {bench.cipher}, "
                f"token {bench.token_bytes} bytes"
            )
            print(about, flush=True)
            bench.run()
        finally:
            bench.close()
        if options.json:
            facts = {"machine": about, "rows": bench.rows}
            options.json.write_text(json.dumps(facts, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
