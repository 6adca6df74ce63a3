"""The data plane against nginx: CPU of the whole server process tree for the same work, as ratios.

    python tests/bench/bench_dataplane.py [--quick] [--json FILE] [--only WORDS]

Both servers run on one core, the generator on another, over loopback, with the same 1 GiB file. Ours gets a
real ES256 token and five headers with every request; nginx ignores them. Rounds alternate between the two;
the ratio is the median over the rounds. CPU comes from ``schedstat`` (nanoseconds on a core).

Needs nginx (Debian: ``nginx-light`` or better, with the dav and ssl modules).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import statistics
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

GIB = 1 << 30
ISSUER, AUDIENCE = "https://issuer.example/doma", "https://localhost"
SERVER_CORE, CLIENT_CORE = 0, 1

TARGETS = {
    "64 KiB": (1.3, 0.9),
    "1 MiB": (1.3, 0.7),
    "GET 1 GiB": (1.3, 0.7),
    "100 x 16 KiB": (0.9, 0.8),
    "PUT 1 GiB": (1.25, 1.4),
}

NGINX = """
{user} worker_processes 1; daemon off; pid {run}/nginx.pid; error_log {run}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 300;
  client_max_body_size 0; client_body_buffer_size 1m; default_type application/octet-stream; types {{ }}
  client_body_temp_path {run}/body; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f;
  uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root {root};
    ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
    large_client_header_buffers 4 64k;
    location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
  }}
}}
"""


def serve(folder: str, ready: Any) -> None:
    """Our server in this process: a file store, the WebDAV routes it needs, one JSON route."""
    os.sched_setaffinity(0, {SERVER_CORE})
    import uvloop

    from doma.auth.gate import Gate
    from doma.auth.keys import KeySet
    from doma.auth.verifier import Verifier
    from doma.core.config import Issuer, Listen
    from doma.doors import files
    from doma.doors.endpoint import Endpoint, Site
    from doma.doors.fast import FastDoor
    from doma.net import tls
    from doma.net.listener import Listener
    from doma.store.file import FileStore

    async def main() -> None:
        keys = KeySet.load_or_make(Path(folder) / "keys")
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "bench", "aud": AUDIENCE, "exp": now + 86400, "iat": now, "nbf": now - 60,
            "jti": "bench", "wlcg.ver": "1.0", "wlcg.groups": [f"/doma/group-{i:03d}" for i in range(30)],
            "scope": "storage.read:/ storage.modify:/",
        }  # fmt: skip
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: keys.jwks()})
        store = FileStore(Path(folder) / "data", fsync=False)
        site = Site(verifier, {"site": Endpoint("site", store, Gate({ISSUER: ["/"]}))})
        of_file = files.app(site)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/json":
                await of_file(scope, receive, send)
                return
            head = [(b"content-type", b"application/json"), (b"content-length", b"15")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b'{"state": "up"}'})

        certificate = tls.ensure(Path(folder) / "tls")
        listener = Listener(
            app,
            fast=FastDoor(site),
            listen=Listen(max_connections=20_000, idle_timeout=600),
            tls=tls.server_context(certificate.certificate, certificate.key),
        )
        _, port = await listener.start()
        ready.send((port, keys.sign(claims, "ES256"), str(certificate.certificate), str(certificate.key)))
        await asyncio.Event().wait()

    uvloop.run(main())


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


def private(pid: int) -> int:
    """RssAnon in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


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
        self.ours = spawn.Process(target=serve, args=(str(folder), there), daemon=True)
        self.ours.start()
        port, token, cert, key = here.recv()
        plain, tls = free_ports(2)
        user = "user root;" if os.getuid() == 0 else ""  # its workers write where we do
        (folder / "nginx.conf").write_text(
            NGINX.format(user=user, run=folder, plain=plain, tls=tls, root=data, cert=cert, key=key)
        )
        self.nginx = subprocess.Popen(
            [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)],
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
            stderr=subprocess.DEVNULL,
        )
        os.sched_setaffinity(0, {CLIENT_CORE})
        headers = (
            f"Authorization: Bearer {token}\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n"
            "Accept-Encoding: identity\r\nX-Request-Id: 0123456789abcdef\r\n"
        )
        self.a = load.Target("nginx", plain, tls, "/f", "/put.nginx", headers)
        self.b = load.Target("doma", port, port, "/site/f", "/site/put.doma", headers)
        self.token_bytes = len(token)
        self._adopt()
        for target in (self.a, self.b):
            self._wait(target)

    def _adopt(self) -> None:
        """Let our store publish the file by an upload over its own door, as every file of it is."""
        source = (self.folder / "data" / "f").read_bytes()[: 16 << 20]
        self._wait(self.b)
        with self.b.dial(tls=False) as sock:
            sock.sendall(self.b.request(f"Content-Length: {GIB}\r\n", "PUT", "/site/f"))
            for _ in range(GIB // len(source)):
                sock.sendall(source)
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

    def compare(self, name: str, tls: bool, unit: str, per: float, work: Work) -> None:
        """Run the same work on both, alternating, and note CPU per unit."""
        label = f"{name} {'TLS' if tls else 'plain'}"
        if self.only and not any(word in label for word in self.only.split(",")):
            return
        spent: dict[str, list[float]] = {"nginx": [], "doma": []}
        pids = {"nginx": self.nginx.pid, "doma": self.ours.pid or 0}
        for turn in range((3 if self.quick else 7) + 1):
            for target in (self.a, self.b) if turn % 2 else (self.b, self.a):
                before = cpu(pids[target.name])
                work(target)
                used = (cpu(pids[target.name]) - before) / per
                if turn:  # the first round warms
                    spent[target.name].append(used)
            self.peak = max(self.peak, private(pids["doma"]))
        ratio = statistics.median(b / a for a, b in zip(spent["nginx"], spent["doma"], strict=True))
        goal = TARGETS[name][int(tls)]
        row = {
            "name": label, "unit": unit, "nginx": statistics.median(spent["nginx"]),
            "doma": statistics.median(spent["doma"]), "ratio": ratio, "target": goal, "holds": ratio <= goal,
        }  # fmt: skip
        self.rows.append(row)
        print(
            f"{label:22} nginx {row['nginx']:9.2f}  doma {row['doma']:9.2f} {unit:10} "
            f"ratio {ratio:5.2f}  target {goal:4.2f}  {'ok' if row['holds'] else 'MISSED'}",
            flush=True,
        )

    def note(self, name: str, value: float, unit: str, goal: float) -> None:
        holds = value <= goal
        self.rows.append({"name": name, "unit": unit, "doma": value, "target": goal, "holds": holds})
        verdict = "ok" if holds else "MISSED"
        print(f"{name:42} {value:8.2f} {unit:5} target {goal:g}  {verdict}", flush=True)

    def run(self) -> None:
        scale = 1 if self.quick else 4
        for tls in (False, True):
            for name, size, parts, count in (
                ("64 KiB", 65536, 1, 2000 * scale),
                ("1 MiB", 1 << 20, 1, 250 * scale),
                ("100 x 16 KiB", 16384, 100, 100 * scale),
            ):
                self.compare(name, tls, "us/request", count / 1e6, _ranges(tls, size, parts, count))
            self.compare("GET 1 GiB", tls, "ms/GiB", 1e-3, partial(load.run_get, tls=tls))
            self.compare("PUT 1 GiB", tls, "ms/GiB", 1e-3, partial(load.run_put, tls=tls, size=GIB))
        if not self.only or "tiny" in self.only:
            self.cold()
        if not self.only or "idle" in self.only:
            self.idle()
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


def p99(latencies: list[float]) -> float:
    """In milliseconds."""
    return 1e3 * sorted(latencies)[int(len(latencies) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", default="", help="comma-separated words; only rows with one of them")
    parser.add_argument("--dir", default=None, help="where the files go (default: the temporary directory)")
    options = parser.parse_args()
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="doma-bench-", dir=options.dir))
    folder.chmod(0o755)
    try:
        bench = Bench(folder, options.quick, options.only)
        try:
            about = f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            print(f"{about}, Python {platform.python_version()}, token {bench.token_bytes} bytes", flush=True)
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
