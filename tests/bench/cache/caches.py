"""Three caches over one origin for the benchmark: ours, XRootD's (XCache) and nginx with slices.

The origin is a plain XRootD that serves the same folder over http and root://. Each cache reads it through a
relay of its own (``relay.py``). All three run as a site would run them, one instance, plain http (and root://
where they have it). Ours checks a token with every request and the sums of pages when it reads them; neither
XCache as set up here nor nginx asks for one, and neither keeps sums (``pfc.cschk`` is off by default).
"""

import os
import pwd
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from doma.app.child import Child
from doma.app.home import Home
from doma.app.identity import issuer_of
from tests.bench.cache.relay import Relay, relay
from tests.bench.dataplane_servers import free_ports
from tests.clients.xrootd_server import PACKAGES
from tests.tied import Tied

KINDS = ("xcache", "nginx", "doma")
PLUGINS = ("libXrdHttp-5.so", "libXrdPss-5.so", "libXrdPfc-5.so")

COMMON = """
all.role server
all.export /
all.adminpath {base}/admin
all.pidpath {base}/admin
oss.localroot {base}/files
xrd.port {port}
xrd.protocol http:{port} libXrdHttp.so
xrd.network nodnr norpipa
"""
XCACHE = """
ofs.osslib libXrdPss.so
pss.cachelib libXrdPfc.so
pss.origin 127.0.0.1:{origin}
pss.setopt DebugLevel 0
pfc.ram 2g
pfc.blocksize 128k
pfc.prefetch {prefetch}
pfc.diskusage 0.90 0.95
"""
NGINX = """
{user} worker_processes auto; daemon off; pid {base}/nginx.pid; error_log {base}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 300;
  default_type application/octet-stream; types {{ }}
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f;
  uwsgi_temp_path {base}/u; scgi_temp_path {base}/s;
  proxy_cache_path {base}/kept levels=1:2 keys_zone=kept:64m max_size=30g inactive=1d use_temp_path=off;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port}; large_client_header_buffers 4 64k;
    location / {{
      slice 1m; proxy_cache kept; proxy_cache_key $uri$slice_range; proxy_cache_lock on;
      proxy_cache_valid 200 206 1d; proxy_http_version 1.1; proxy_pass http://origin;
      proxy_set_header Range $slice_range; proxy_set_header Connection "";
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Cache:
    """One running cache.

    Args:
        kind: One of KINDS.
        http: Port that speaks http.
        root: Port that speaks root://; 0: none does.
        prefix: Before the origin's paths.
        pid: Its first process.
        token: What it wants to see.
        origin: Counts what it fetches.
        kept: Folder of what it keeps.
    """

    kind: str
    http: int
    root: int
    prefix: str
    pid: int
    token: str
    origin: Relay
    kept: Path

    def url(self, path: str, scheme: str = "http") -> str:
        """Address of a file of the origin (``/f``) at this cache."""
        if scheme == "root":
            return f"root://127.0.0.1:{self.root}/{self.prefix}{path}"
        return f"http://127.0.0.1:{self.http}{self.prefix}{path}"


@dataclass(frozen=True)
class Caches:
    """All that runs, and the folder that the origin serves."""

    files: Path
    origin: int
    every: tuple[Cache, ...]

    def of(self, kind: str) -> Cache | None:
        return next((cache for cache in self.every if cache.kind == kind), None)


def missing() -> str:
    """What is not installed; empty: nothing."""
    folders = [Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu")]
    if not shutil.which("xrootd") or not all(any((f / name).exists() for f in folders) for name in PLUGINS):
        return PACKAGES
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(binary).exists():
        return "nginx-light"
    said = subprocess.run([binary, "-V"], capture_output=True, text=True, check=False).stderr
    return "" if "http_slice_module" in said else "nginx with its slice module"


@contextmanager
def caches(
    folder: Path, kinds: Sequence[str], *, scheme: str = "http", prefetch: int = 0
) -> Iterator[Caches]:
    """Start the origin and these caches; everything lies below ``folder``, which others can enter.

    Args:
        folder: For their files.
        kinds: Of KINDS.
        scheme: How ours talks to the origin, ``http`` or ``root``.
        prefetch: ``pfc.prefetch`` of XCache.
    """
    with ExitStack() as stack:
        (port,) = free_ports(1)
        place = folder / "origin"
        stack.enter_context(_xrootd(place, port, COMMON))
        made: list[Cache] = []
        for kind in kinds:
            counted = stack.enter_context(relay(port))
            base = folder / kind
            if kind == "doma":
                made.append(stack.enter_context(_doma(base, counted, scheme)))
                continue
            (at,) = free_ports(1)
            if kind == "xcache":
                text = COMMON + XCACHE.replace("{prefetch}", str(prefetch))
                pid = stack.enter_context(_xrootd(base, at, text, counted.port))
                made.append(Cache(kind, at, at, "", pid, "", counted, base / "files"))
            else:
                pid = stack.enter_context(_nginx(base, at, counted.port))
                made.append(Cache(kind, at, 0, "", pid, "", counted, base / "kept"))
        yield Caches(place / "files", port, tuple(made))


@contextmanager
def _xrootd(base: Path, port: int, text: str, origin: int = 0) -> Iterator[int]:
    for name in ("files", "admin"):
        (base / name).mkdir(parents=True)
    (base / "x.cfg").write_text(text.format(base=base, port=port, origin=origin))
    user = []
    if os.getuid() == 0:  # it refuses to be root
        entry = pwd.getpwnam("daemon")
        user = ["-R", entry.pw_name]
        for path in (base, *base.iterdir()):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    command = ["xrootd", "-c", str(base / "x.cfg"), "-l", str(base / "log"), *user]
    with _process(command, base, port) as pid:
        yield pid


@contextmanager
def _nginx(base: Path, port: int, origin: int) -> Iterator[int]:
    base.mkdir()
    user = "user root;" if os.getuid() == 0 else ""
    (base / "nginx.conf").write_text(NGINX.format(user=user, base=base, port=port, origin=origin))
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    with _process([binary, "-c", str(base / "nginx.conf"), "-p", str(base)], base, port) as pid:
        yield pid


@contextmanager
def _process(command: list[str], base: Path, port: int) -> Iterator[int]:
    """A server that listens on a port."""
    null = subprocess.DEVNULL
    process = Tied(command, cwd=base, stdin=null, stdout=null, stderr=null)
    try:
        for _ in range(400):
            assert process.poll() is None, f"{command[0]} ended at once; see {base}"
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _doma(base: Path, origin: Relay, scheme: str) -> Iterator[Cache]:
    """Ours: ``/cache`` is the origin, ``/stalled`` one that takes connections and never answers."""
    base.mkdir()
    home = Home(base / "home")
    tail = "/" if scheme == "root" else ""
    with relay(0) as hung:
        settings = base / "doma.toml"
        settings.write_text(
            f'[endpoints.cache]\nstore = "cache+{scheme}://127.0.0.1:{origin.port}{tail}"\nwritable = false\n'
            f'[endpoints.stalled]\nstore = "cache+http://127.0.0.1:{hung.port}"\nwritable = false\n'
        )
        roles = [word for role in ("issuer", "storage", "cache") for word in ("--role", role)]
        child = Child(home, ["--config", str(settings), *roles])
        try:
            run = child.start()
            port = int(str(run["https"]).rpartition(":")[2])
            token = issuer_of(home).issue(
                subject="bench", scopes="storage.read:/ storage.modify:/", lifetime=86400, alg="ES256",
                audience=("https://wlcg.cern.ch/jwt/v1/any",),
            )  # fmt: skip
            root = port if _speaks_root(port) else 0
            yield Cache("doma", port, root, "/cache", child.pid, token, origin, base / "home" / "cache")
        finally:
            child.stop()


def _speaks_root(port: int) -> bool:
    """Whether a hello of root:// is answered there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(struct.pack(">5i", 0, 0, 0, 4, 2012))
        return len(sock.recv(16)) > 0
    return False
