"""A small world of its own, run as a program: names that move, servers, and a whole system that is lured.

It runs in a network namespace where only loopback exists and the name server is ours. The name of an origin
gives 127.0.0.2, which is allowed, and at every second question 127.0.0.1, which is not: who judges one answer
and connects to another ends at a port that only counts. What happened goes to the output as JSON.
"""

import asyncio
import json
import os
import socket
import ssl
import struct
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from doma.net import tls
from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code
from tests.conftest import System
from tests.contract.store.test_xrootd_faults import DATA, Fake, point

OUTER, INNER = "127.0.0.2", "127.0.0.1"
KINDS = ("http", "https", "root", "roots")
NAMES = [
    f"{word}-{kind}.test" for kind in KINDS for word in ("moving", "leaving", "source", "target", "next")
]
asked: Counter[str] = Counter()
reached: list[str] = []


def names() -> None:
    """A name server: A records alone; ``fine`` is always outside, ``inner`` always inside."""
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.bind((INNER, 53))
    while True:
        packet, who = line.recvfrom(512)
        at, labels = 12, []
        while packet[at]:
            labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
            at += 1 + packet[at]
        name, question = ".".join(labels), packet[12 : at + 5]
        answer = b""
        if question[-4:-2] == b"\0\1":
            asked[name] += 1
            outside = name.startswith("fine") or (not name.startswith("inner") and asked[name] % 2)
            address = socket.inet_aton(OUTER if outside else INNER)
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + address
        head = packet[:2] + struct.pack(">HHHHH", 0x8180, 1, bool(answer), 0, 0)
        line.sendto(head + question + answer, who)


class Web(BaseHTTPRequestHandler):
    """One file; ``/to/<host>/f`` leads there; a host that is ``leaving`` closes after each answer."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.say(201, b"")

    def do_GET(self) -> None:
        _, *way = self.path.split("/")
        if way[0] == "to":
            scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            place = f"{scheme}://{way[1]}:{self.connection.getsockname()[1]}/f"
            self.say(307, b"", Location=place)
        elif span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            a, b = int(first), min(int(last or len(DATA)) + 1, len(DATA))
            self.say(206, DATA[a:b], **{"Content-Range": f"bytes {a}-{b - 1}/{len(DATA)}"})
        else:
            self.say(200, DATA)

    def say(self, status: int, body: bytes, **more: str) -> None:
        self.send_response(status)
        if self.headers["Host"].startswith("leaving"):
            more["Connection"] = "close"
        for name, value in {"Content-Length": str(len(body)), "ETag": '"v1"', **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def outer_web(context: ssl.SSLContext | None) -> int:
    server = ThreadingHTTPServer((OUTER, 0), Web)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)


def outer_root(context: ssl.SSLContext | None) -> int:
    """A root:// server with one file under every name; ``/to/<host>/f`` is at another host."""
    fake, ready = Fake(), threading.Event()
    fake.tls = context

    def lead(head: frames.RequestHead, data: bytes) -> bytes | None:
        words = data.decode().partition("?")[0].strip("/").split("/")
        leads = words[0] == "to" and b"tried" not in data
        return point(head, fake.port, f"{words[1]}?tried=1") if leads else None

    async def serve() -> None:
        server = await asyncio.start_server(fake.serve, OUTER, 0)
        fake.port = server.sockets[0].getsockname()[1]
        ready.set()
        await server.serve_forever()

    fake.instead = {Code.OPEN: lead, Code.STAT: lead}
    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    assert ready.wait(10)
    return int(fake.port)


def inner(kind: str, port: int) -> None:
    """What must not be reached."""
    line = socket.create_server((INNER, port))
    while True:
        line.accept()[0].close()
        reached.append(kind)


def lure(system: System, ports: dict[str, int]) -> dict[str, list[object]]:
    """Status and whether the bytes came, for each way to make the system connect."""
    found: dict[str, list[object]] = {}

    def read(what: str, kind: str, host: str, path: str = "f") -> None:
        answer = system.ask("GET", f"/cache/{kind}:/{host}-{kind}.test:{ports[kind]}/{path}")
        good = answer.content == DATA or "cache.allow" in answer.text or "not allowed here" in answer.text
        found[f"{what} {kind}"] = [answer.status_code, good]

    def copy(what: str, kind: str, host: str, **headers: str) -> None:
        side, path = ("Destination", "/f") if what.startswith("push") else ("Source", f"/{kind}-{what}")
        url = f"{kind}://{host}-{kind}.test:{ports[kind]}{headers.pop('way', '/f')}"
        answer = system.ask(
            "COPY",
            "/site" + path.replace(" ", "-"),
            headers={side: url, "RequireChecksumVerification": "false"},
        )
        last = (answer.text.splitlines() or [""])[-1]
        found[f"{what} {kind}"] = [answer.status_code, last.startswith("success") or "tpc.allow" in last]

    system.put("/site/f", DATA)
    for kind in KINDS:
        read("cache", kind, "moving")
        read("cache inner", kind, "inner")
        read("cache redirect", kind, "fine", f"to/next-{kind}.test/f")
        read("cache redirect inner", kind, "fine", f"to/inner-{kind}.test/g")
        read("cache leaving", kind, "leaving")
    for kind in ("http", "https"):
        copy("pull", kind, "source")
        copy("pull inner", kind, "inner")
        copy("pull redirect", kind, "fine", way=f"/to/source-{kind}.test/f")
        copy("pull redirect inner", kind, "fine", way=f"/to/inner-{kind}.test/f")
        copy("push", kind, "target")
        copy("push inner", kind, "inner")
    return found


def main() -> None:
    base = Path(sys.argv[1])
    threading.Thread(target=names, daemon=True).start()
    hosts = [*NAMES, *(f"{word}-{kind}.test" for kind in KINDS for word in ("fine", "inner"))]
    files = tls.ensure(base / "tls", hosts)
    contexts = {kind: tls.server_context(files.certificate, files.key) for kind in ("https", "roots")}
    ports = {kind: (outer_root if "root" in kind else outer_web)(contexts.get(kind)) for kind in KINDS}
    for kind, port in ports.items():
        threading.Thread(target=inner, args=(kind, port), daemon=True).start()
    allow = json.dumps([f"{kind}://*.test:*" for kind in KINDS])
    (base / "doma.toml").write_text(
        f"[cache]\nallow = {allow}\n"
        f'[tpc]\nallow = ["{OUTER}"]\nplain_http = true\nca_file = "{files.ca}"\n'
        f'[endpoints.site]\nstore = "file://{base}/site"\n'
        f'[endpoints.cache]\nstore = "cache+http://{OUTER}:{ports["http"]}"\nwritable = false\n'
    )
    os.environ["SSL_CERT_FILE"] = str(files.ca)
    system = System(base / "home", "--config", base / "doma.toml")
    system.up()
    try:
        found = lure(system, ports)
    finally:
        code = system.down()
    print(json.dumps({"found": found, "reached": reached, "asked": asked, "code": code, "log": system.log}))


if __name__ == "__main__":
    main()
