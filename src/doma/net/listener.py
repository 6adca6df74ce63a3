"""One port for everything: the first byte of a connection says what it speaks.

0x16 begins a TLS handshake, 0x00 a root:// one; all else is HTTP. The byte is only peeked at, so each
protocol sees its stream from the start. A client that says nothing costs no task and delays nobody.

Source: dataplane.md §3.1, §3.2, §3.10-§3.12, traps T2, T3, T14, T15, T22 of the project's contracts.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from doma.core.config import Listen
from doma.core.errors import ConfigError, PortInUse
from doma.core.ranges import http_date
from doma.net.bridge import App
from doma.net.exchange import Address, Answer, Fast, text_answer
from doma.net.http1 import HttpProtocol
from doma.net.hub import Hub

log = logging.getLogger(__name__)

Root = Callable[[socket.socket, Address, Hub], None]
"""Takes over a root:// connection, of which nothing was read yet, and makes it one of the hub's."""

BACKLOG = 4096
ACCEPTS = 256
"""Connections taken at one wake-up."""
HANDSHAKE = 10.0
TLS_SHUTDOWN = 2.0

_TLS, _ROOT = 0x16, 0x00


class Listener:
    """The server's socket and all its connections, on the running loop (uvloop).

    Args:
        app: The ASGI 3 application; its lifespan is not run here.
        fast: The quick side of a door, asked first.
        listen: Address, policy and limits.
        tls: Context for HTTPS on the same port; None: TLS connections are closed.
        root: Takes root:// connections; None: they are closed.
        reuse_port: Let other workers bind the same port (``SO_REUSEPORT``).
    """

    def __init__(
        self,
        app: App,
        *,
        fast: Fast | None,
        listen: Listen,
        tls: ssl.SSLContext | None,
        root: Root | None = None,
        reuse_port: bool = False,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._root = root
        self._reuse_port = reuse_port
        self._hub = Hub(
            app, fast, head=listen.head_timeout, idle=listen.idle_timeout, body=listen.body_timeout
        )
        self._socket: socket.socket | None = None
        self._peeking: dict[socket.socket, tuple[Address, float]] = {}
        self._adopting = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._spare: int | None = None

    @property
    def connections(self) -> int:
        """Open connections, also those that have said nothing yet."""
        return len(self._hub.connections) + len(self._peeking) + self._adopting

    async def start(self) -> tuple[str, int]:
        """Bind and accept; the address that was bound.

        Raises:
            PortInUse: somebody else listens there.
            ConfigError: the address makes no sense here, or the loop is not uvloop.
        """
        self._loop = asyncio.get_running_loop()
        if not type(self._loop).__module__.startswith("uvloop"):
            raise ConfigError(
                "the listener needs the event loop of uvloop >= 0.23; start it with uvloop.run()"
            )
        self._socket = self._bind()
        self._spare = os.open(os.devnull, os.O_RDONLY)
        host, port = self._socket.getsockname()[:2]
        self._server: Address = (str(host), int(port))
        self._sweep()
        self._loop.add_reader(self._socket, self._accept)
        return self._server

    async def stop(self) -> None:
        """Refuse new connections, let running answers end for ``listen.drain`` seconds, then cut."""
        if self._socket is None:
            return
        hub = self._hub
        self._accept()  # what is in the queue would be reset by closing the socket (T22)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        hub.draining = True
        end = self._loop.time() + self._listen.drain
        while (hub.connections or self._peeking or self._adopting) and self._loop.time() < end:
            for connection in list(hub.connections):
                if connection.quiet():
                    connection.close_softly()
            if not hub.connections and not self._adopting:
                break  # those that say nothing are not waited for
            await asyncio.sleep(0.02)
        for connection in list(hub.connections):
            connection.cut()
        for sock in list(self._peeking):
            self._unpeek(sock).close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        tasks = set(hub.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports tell their protocols

    # Accepting.

    def _bind(self) -> socket.socket:
        host, _, port = self._listen.address.rpartition(":")
        place = self._listen.address
        try:
            found = socket.getaddrinfo(
                host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, ValueError) as e:
            raise ConfigError(f"listen.address {place!r}: {e}; write HOST:PORT") from e
        sock = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(found[4])
            sock.listen(BACKLOG)
        except OSError as e:
            sock.close()
            if e.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"{place}: another program listens there; stop it or choose another port with --listen",
                    address=place,
                ) from e
            raise ConfigError(f"listen.address {place!r}: {e.strerror}; choose another") from e
        return sock

    def _accept(self) -> None:
        if self._socket is None:
            return
        for _ in range(ACCEPTS):
            try:
                sock, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as e:
                if e.errno in {errno.EMFILE, errno.ENFILE}:
                    self._refuse_one()
                else:
                    log.warning("accepting a connection failed: %s", e)
                return
            if self.connections >= self._listen.max_connections:
                sock.close()
                continue
            sock.setblocking(False)
            self._look(sock, _address(peer))

    def adopt_root(self, sock: socket.socket) -> None:
        """Serve a root:// connection that another process has accepted; nothing of it was read yet."""
        sock.setblocking(False)
        try:
            peer = _address(sock.getpeername())
        except OSError:  # gone already
            peer = None
        if (
            peer is None
            or self._root is None
            or self._socket is None
            or self.connections >= self._listen.max_connections
        ):
            sock.close()
        else:
            self._root(sock, peer, self._hub)

    def _refuse_one(self) -> None:
        """Without descriptors, use the spare one to take a connection and close it, else the loop spins."""
        if self._spare is None or self._socket is None:
            return
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._socket.accept()[0].close()
        log.warning("no file descriptors are left; connections are refused; raise LimitNOFILE")
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self._spare = None

    # The first byte.

    def _look(self, sock: socket.socket, peer: Address) -> None:
        """Decide by the first byte, or wait for it with a deadline."""
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            if sock not in self._peeking:
                self._peeking[sock] = (peer, self._loop.time() + self._listen.head_timeout)
                self._loop.add_reader(sock, self._look, sock, peer)
            return
        except OSError:
            first = b""
        if sock in self._peeking:
            self._unpeek(sock)
        if not first:
            sock.close()
        elif first[0] == _TLS:
            self._adopt(sock, peer, self._tls) if self._tls is not None else sock.close()
        elif first[0] == _ROOT:
            self._root(sock, peer, self._hub) if self._root is not None else sock.close()
        elif may_be_plain(self._listen.plain_http, peer[0]):
            self._adopt(sock, peer, None)
        else:
            self._refuse_plain(sock)

    def _unpeek(self, sock: socket.socket) -> socket.socket:
        del self._peeking[sock]
        self._loop.remove_reader(sock)
        return sock

    def _refuse_plain(self, sock: socket.socket) -> None:
        answer = text_answer(
            403, "forbidden", "plain HTTP is not accepted from here; use https:// on the same port"
        )
        _say(sock, answer, self._hub.tail_close)

    def _adopt(self, sock: socket.socket, peer: Address, tls: ssl.SSLContext | None) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._adopting += 1
        self._hub.spawn(self._loop, self._connect(sock, peer, tls))

    async def _connect(self, sock: socket.socket, peer: Address, tls: ssl.SSLContext | None) -> None:
        def protocol() -> HttpProtocol:
            return HttpProtocol(self._hub, self._loop, peer, self._server, tls=tls is not None)

        limits: dict[str, Any] = {}
        if tls is not None:
            limits = {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE, "ssl_shutdown_timeout": TLS_SHUTDOWN}
        try:
            await self._loop.connect_accepted_socket(protocol, sock, **limits)
        except (OSError, ssl.SSLError, asyncio.CancelledError) as e:
            log.debug("connection from %s ended in the handshake: %s", peer[0], e)
            sock.close()
        finally:
            self._adopting -= 1

    # Time.

    def _sweep(self) -> None:
        now = self._loop.time()
        self._hub.tick(http_date(time.time()))
        for sock in [s for s, (_, end) in self._peeking.items() if end < now]:
            self._unpeek(sock).close()
        for connection in list(self._hub.connections):
            connection.sweep(now)
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)
        self._sweeper = self._loop.call_later(1.0, self._sweep)


def _address(peer: Any) -> Address:
    return (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) and len(peer) >= 2 else ("", 0)


def may_be_plain(policy: str, host: str) -> bool:
    """Whether a client may speak HTTP without TLS: ``always``, ``never``, or from this machine alone.

    >>> may_be_plain("loopback", "127.0.0.1"), may_be_plain("loopback", "192.0.2.1")
    (True, False)
    """
    return is_loopback(host) if policy == "loopback" else policy == "always"


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone.

    >>> is_loopback("::ffff:127.0.0.1"), is_loopback("192.0.2.1")
    (True, False)
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _say(sock: socket.socket, answer: Answer, tail: bytes) -> None:
    """Send a short answer on a raw socket, read away what came, and close."""
    with contextlib.suppress(OSError):
        sock.send(answer.head + tail + b"".join(bytes(p) for p in answer.parts))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(64 << 10)
    sock.close()
