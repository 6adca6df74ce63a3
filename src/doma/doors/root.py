"""The root:// door: what the listener hands its root:// connections to.

Reading is in :mod:`doma.doors.root_read`, names and writing in the modules beside it; here is the table of
requests, the sessions, and what is told to whom.

Source: the project's root:// contract.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from time import perf_counter

from doma.core.errors import DomaError, Unsupported
from doma.doors import root_file, root_names, root_query, root_session, root_write
from doma.doors.endpoint import Site
from doma.doors.root_call import Call, Handler, Session
from doma.doors.root_connection import RootConnection
from doma.doors.root_file import ReadFile
from doma.monitor.opens import Observer
from doma.net.exchange import Address
from doma.net.hub import Hub
from doma.net.xroot_errors import BAD_REQUEST, refusal
from doma.net.xroot_frames import Code, Server

log = logging.getLogger(__name__)

TELL = 1.0
"""Seconds after which reads are told at the latest."""


class RootDoor:
    """Serves the endpoints of a site over root://.

    Args:
        site: The endpoints.
        tls: Context for roots:// and for clients that must not send tokens in the clear.
        plain: Who may speak without TLS (``listen.plain_http``).
        count: Told of requests, with the door's label first.
        observer: Is told of open files.
    """

    def __init__(
        self,
        site: Site,
        *,
        tls: ssl.SSLContext | None,
        plain: str,
        count: Callable[..., None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.site, self.tls, self.plain = site, tls, plain
        self.observer = observer
        self.sessions: dict[bytes, Session] = {}
        self.flags = Server.DATA | Server.PAGES
        if site.endpoints and all(hasattr(e.store, "holdings") for e in site.endpoints.values()):
            self.flags |= Server.CACHE | Server.PROXY
        self._count = count
        self._touched: set[ReadFile] = set()
        self._handlers: dict[int, Handler] = {
            **root_names.HANDLERS,
            **root_query.HANDLERS,
            **root_write.HANDLERS,
            Code.OPEN: root_file.open_file,
            Code.CLOSE: root_file.close_file,
            Code.PING: _ping,
            Code.ENDSESS: self._end_session,
        }

    def take(self, sock: socket.socket, peer: Address, hub: Hub) -> None:
        """Serve a connection of which nothing was read yet (:data:`doma.net.listener.Root`)."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hub.spawn(asyncio.get_running_loop(), self._connect(sock, peer, hub))

    async def _connect(self, sock: socket.socket, peer: Address, hub: Hub) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: RootConnection(self, hub, peer), sock
            )
        except OSError as e:
            log.debug("root connection from %s: %s", peer[0], e)
            sock.close()

    # What its connections ask.

    async def set_up(
        self, connection: RootConnection, stream: int, code: int, body: bytes, data: bytes
    ) -> None:
        """Answer protocol, login, auth and bind. Raises DomaError."""
        await root_session.set_up(connection, stream, code, body, data)

    def handler(self, code: int) -> Handler:
        """What answers a request. Raises DomaError for what is not offered."""
        found = self._handlers.get(code)
        if found is None:
            if code in _NOT_OFFERED:
                raise Unsupported(f"request {code}: is not offered here")
            raise refusal(BAD_REQUEST, f"request {code}: is not known")
        return found

    def leave(self, connection: RootConnection, calls: Sequence["asyncio.Task[None]"]) -> None:
        """A control connection has ended; ``calls`` are its requests under way."""
        session = connection.session
        assert session is not None
        self.sessions.pop(session.id, None)
        for path_id, stream in list(session.streams.items()):
            if path_id:
                stream.cut()
        connection.hub.spawn(connection.loop, self._left(session, calls))

    async def _left(self, session: Session, calls: Sequence["asyncio.Task[None]"]) -> None:
        await asyncio.gather(*calls, return_exceptions=True)
        while session.files:
            _, file = session.files.popitem()
            await file.drop()
        if self.observer is not None:
            self.observer.left(session.number)

    # What is told.

    def touch(self, file: ReadFile, began: float) -> None:
        """Bytes of a file were sent: told within :data:`TELL` seconds, with others of their kind."""
        file.seconds += perf_counter() - began
        if file not in self._touched:
            if not self._touched:
                asyncio.get_running_loop().call_later(TELL, self.tell)
            self._touched.add(file)
            file.first()

    def tell(self) -> None:
        """Hand on what was read."""
        files, self._touched = self._touched, set()
        for file in files:
            opened, target = file.opened, file.target
            number = opened.reads.count + opened.readvs.count
            size = opened.reads.total + opened.readvs.total
            times, sent = number - file.told[0], size - file.told[1]
            seconds, file.seconds, file.told = file.seconds, 0.0, (number, size)
            if self._count is not None:
                self._count("root", target.endpoint.name, "GET", 200, seconds, 0, sent, times)
            if self.site.usage is not None:
                self.site.usage.read(target.endpoint.name, target.identity, sent, times)

    def told(self, call: Call, error: DomaError | None, seconds: float) -> None:
        """Count a request that was no read, or failed."""
        if self._count is not None:
            name = call.targets[-1].endpoint.name if call.targets else ""
            status = 200 if error is None else error.http
            self._count("root", name, _METHODS.get(call.code, "other"), status, seconds, len(call.data), 0, 1)

    async def _end_session(self, call: Call) -> bytes:
        root_session.end_session(call.session, self.sessions, call.body)
        return b""


async def _ping(call: Call) -> bytes:
    return b""


_NOT_OFFERED = frozenset({Code.GPFILE, Code.CHKPOINT, Code.WRITEV, Code.CLONE, Code.FATTR})
_METHODS: dict[int, str] = {
    Code.OPEN: "HEAD",
    Code.STAT: "HEAD",
    Code.READ: "GET",
    Code.READV: "GET",
    Code.PGREAD: "GET",
    Code.DIRLIST: "PROPFIND",
    Code.WRITE: "PUT",
    Code.PGWRITE: "PUT",
    Code.RM: "DELETE",
    Code.RMDIR: "DELETE",
    Code.MKDIR: "MKCOL",
    Code.MV: "MOVE",
}
"""What a request would be over HTTP: labels of metrics are few and the same for all doors."""
