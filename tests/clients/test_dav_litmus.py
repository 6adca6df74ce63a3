"""litmus, the WebDAV test suite of the neon library, against a running system.

litmus can only log in by name and password: a forwarder in between gives its requests a token. All its tests
pass. Where the grid wants something else than RFC 4918 (PUT makes parents, rule W6) litmus does not look.

Source: RFC 4918; http://www.webdav.org/neon/litmus/.
"""

import os
import re
import socket
import subprocess
import threading
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

SUITES, HTDOCS = "/usr/libexec/litmus", "/usr/share/litmus/htdocs"

pytestmark = [
    pytest.mark.client,
    pytest.mark.skipif(
        not os.path.isdir(SUITES), reason="litmus is not installed; the Debian package is: litmus"
    ),
]

SAID = {
    "basic": {"server does not claim Class 2 compliance"},
    "copymove": set(),
    "props": set(),
    "http": set(),
    "locks": {
        "server does not claim Class 2 compliance",
        "locking tests skipped,\nserver does not claim Class 2 compliance",
    },
}
"""Suite to what it may complain about: locks are optional (RFC 4918 §18.2), no grid client asks for them."""


class Forwarder:
    """A port that passes connections on to a server and adds a token to each request."""

    def __init__(self, server, token):
        self._server, self._line = server, f"Authorization: Bearer {token}\r\n".encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for work in (self._requests, self._answers):
                    self._threads.append(threading.Thread(target=work, args=(client, server), daemon=True))
                    self._threads[-1].start()

    def _requests(self, client, server):
        with client.makefile("rb") as incoming, suppress(OSError):
            while line := incoming.readline():
                head = [line, self._line]
                while (line := incoming.readline()) not in {b"\r\n", b""}:
                    head.append(line)
                server.sendall(b"".join(head) + b"\r\n")
                length = re.search(rb"(?im)^content-length: *(\d+)", b"".join(head))
                left = int(length[1]) if length else 0
                while left and (data := incoming.read1(min(left, 1 << 16))):
                    server.sendall(data)
                    left -= len(data)
            server.shutdown(socket.SHUT_WR)

    def _answers(self, client, server):
        with client, server, suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def front(shared):
    place = urlsplit(shared.run["url"])
    with Forwarder((place.hostname, place.port), shared.token()) as forwarder:
        yield f"http://127.0.0.1:{forwarder.port}/site/"


@pytest.mark.parametrize("suite", SAID)
def test_what_rfc_4918_asks_for_is_done(suite, front, tmp_path):
    done = subprocess.run(
        [f"{SUITES}/{suite}", "-d", HTDOCS, front],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ", 0 failed. 100.0%" in done.stdout, done.stdout
    complaints = re.findall(r"(?:WARNING: |SKIPPED \()([^)]*?)(?:\)|\n  )", done.stdout)
    assert set(complaints) == SAID[suite], done.stdout
    assert done.returncode == 0
