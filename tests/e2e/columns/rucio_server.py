"""A small server that speaks Rucio's REST as far as looking up replicas goes, and misbehaves where told.

Source: rucio ``web/rest/flaskapi/v1/{auth,dids,replicas}.py`` and ``core/replica.py`` (``list_replicas``).
"""

import http.server
import json
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import unquote


def replica(name: str, pfns: dict[str, dict[str, Any]], size: int = 100) -> dict[str, Any]:
    """One line of ``/replicas/list``."""
    rses: dict[str, list[str]] = {}
    for pfn, facts in pfns.items():
        rses.setdefault(facts.get("rse", "SITE_DISK"), []).append(pfn)
    return {
        "scope": "user.ada", "name": name, "bytes": size, "adler32": "0a1b2c3d", "md5": None, "guid": None,
        "rses": rses, "states": dict.fromkeys(rses, "AVAILABLE"),
        "pfns": {p: {"rse": "SITE_DISK", "rse_id": "f00", "type": "DISK", "volatile": False, "domain": "wan",
                     "priority": 1, "client_extract": False, **facts} for p, facts in pfns.items()},
    }  # fmt: skip


class RucioServer:
    """DIDs are written to ``dids``; ``raw`` is sent instead of replicas if it is set."""

    def __init__(self) -> None:
        self.dids: dict[str, list[dict[str, Any]]] = {}
        self.raw: bytes | None = None
        self.status = 200
        self.elsewhere = ""
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.get(self)

            def do_POST(self) -> None:
                server.post(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def get(self, h: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(("GET", h.path))
        if self.elsewhere:
            return self._send(h, 302, b"", {"Location": self.elsewhere})
        if h.path == "/auth/userpass":
            if h.headers["Accept"] != "*/*":  # its answer has no body, and Rucio is strict about what that is
                return self._fail(h, 406, "UnsupportedRequestedContentType", "Use application/octet-stream")
            if (h.headers["X-Rucio-Username"], h.headers["X-Rucio-Password"]) != ("ada", "hush"):
                return self._fail(h, 401, "CannotAuthenticate", "wrong password")
            token = f"ada-unknown-{len(self.tokens)}"
            self.tokens.add(token)
            return self._send(h, 200, b"", {"X-Rucio-Auth-Token": token})
        if not self._knows(h):
            return None
        scope, _, name = unquote(h.path.removeprefix("/dids/")).partition("/")
        if f"{scope}:{name}" not in self.dids:
            return self._fail(h, 404, "DataIdentifierNotFound", f"Data identifier '{scope}:{name}' not found")
        told = {"scope": scope, "name": name, "type": "DATASET", "account": "ada", "open": True}
        return self._send(h, self.status, json.dumps(told).encode())

    def post(self, h: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(("POST", h.path))
        body = json.loads(h.rfile.read(int(h.headers["Content-Length"])))
        self.bodies.append(body)
        if not self._knows(h):
            return
        data = self.raw
        if data is None:
            found = [r for d in body["dids"] for r in self.dids[f"{d['scope']}:{d['name']}"]]
            data = "".join(json.dumps(r) + "\n" for r in found).encode()
        self._send(h, 200, data, {"Content-Type": "application/x-json-stream"})

    def _knows(self, h: http.server.BaseHTTPRequestHandler) -> bool:
        if h.headers.get("X-Rucio-Auth-Token") in self.tokens:
            return True
        self._fail(h, 401, "CannotAuthenticate", "Cannot authenticate with given credentials")
        return False

    def _fail(self, h: http.server.BaseHTTPRequestHandler, status: int, kind: str, text: str) -> None:
        body = json.dumps({"ExceptionClass": kind, "ExceptionMessage": text}).encode()
        self._send(h, status, body, {"ExceptionClass": kind, "ExceptionMessage": text})

    @staticmethod
    def _send(
        h: http.server.BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        h.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for key, value in fields.items():
            h.send_header(key, value)
        h.end_headers()
        with suppress(OSError):  # who is told too much hangs up
            h.wfile.write(body)
