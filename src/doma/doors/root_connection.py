"""One connection of the root:// door: requests in, answers out, and what a client may make us hold.

Requests are cut out of the receive buffer. A hot read is answered there and then, everything else by a task
of its own, so that a slow one delays no other. What a connection holds is bounded: :data:`CALLS` requests,
two large writes, and a window of bytes that were read and not sent yet.

Source: §1, §2, §11 of the project's root:// contract.
"""

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from doma.core.errors import DomaError, ServiceUnavailable, Unsupported
from doma.doors import root_read
from doma.doors.root_call import Call, Session, said, send
from doma.doors.root_window import Window
from doma.doors.root_writing import Writing
from doma.net.exchange import Address
from doma.net.hub import Hub
from doma.net.listener import HANDSHAKE, TLS_SHUTDOWN
from doma.net.xroot_errors import BAD_REQUEST, FILE_NOT_OPEN, TOO_LONG, refusal
from doma.net.xroot_frames import ANSWER, GREETING, HELLO, REQUEST, VERSION, Code, Status
from doma.store.protocol import Buffer

if TYPE_CHECKING:
    from doma.doors.root import RootDoor

log = logging.getLogger(__name__)

CALLS = 64
"""Requests of one connection that are worked on at once."""
LARGE = 64 << 10
"""Data from this many bytes on are received into a buffer of their own."""
MOST = 1 << 20
"""Bytes of data behind a request …"""
MOST_WRITTEN = 17 << 20
"""… and behind a write to a file that is open for it."""
BEFORE_LOGIN = 64 << 10
WINDOW, UNSENT = 4 << 20, 1 << 20
"""Bytes read for one connection and not yet with its transport; with it, before nothing more is given."""
FEW = 3
"""Buffers that are written over TLS without being joined: each is a record of its own there."""
IDLE = 3600.0
"""Seconds after which a silent session is closed; clients keep theirs for 20 minutes."""

_SETTING_UP = frozenset({Code.PROTOCOL, Code.LOGIN, Code.AUTH, Code.BIND})
_WRITES = frozenset({Code.WRITE, Code.PGWRITE})
_BY_HANDLE = frozenset({Code.CLOSE, Code.READ, Code.SYNC, Code.READV, Code.PGREAD, *_WRITES})
_STRAYING = frozenset({Code.WRITEV, Code.CHKPOINT})
"""Requests whose data their own length does not tell of; those of a write may come on another stream."""
_WATCHED = _WRITES | _STRAYING
_WELCOME = HELLO.pack(0, 8, VERSION, 1, 0)[:16]


class RootConnection(asyncio.BufferedProtocol):
    """One connection, control or bound."""

    def __init__(self, door: "RootDoor", hub: Hub, peer: Address) -> None:
        self.door, self.hub, self.peer = door, hub, peer
        self.loop = asyncio.get_running_loop()
        self.session: Session | None = None
        """Once logged in or bound."""
        self.path_id = 0
        """0: the control connection."""
        self.tls = self.blocked = self.closing = False
        self.failures = 0
        """Rounds of authentication that failed."""
        self.window = Window(WINDOW)
        self.turn = asyncio.Lock()
        """Long reads take turns: their parts then leave, and reach a store, in order."""
        self.transport: asyncio.Transport
        self._writable = asyncio.Event()
        self._writable.set()
        self._calls: dict[asyncio.Task[None], int] = {}
        self._holds = self._large = 0
        self._greeted = self._eof = self._deaf = self._stalled = False
        self._rest = b""
        self._into: memoryview | None = None
        self._got = 0
        self._head: tuple[int, int, bytes] = (0, 0, b"")
        self._active = True
        self._stamp, self._waiting = self.loop.time(), 0

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(UNSENT, UNSENT // 4)
        self.hub.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._into is not None:
            return self._into[self._got :]
        # All connections share the buffer: what this one has left over goes in front.
        rest = self._rest
        self.hub.buffer[: len(rest)] = rest
        return self.hub.buffer[len(rest) :]

    def buffer_updated(self, nbytes: int) -> None:
        self._active = True
        if self._into is None:
            stop, self._rest = len(self._rest) + nbytes, b""
            self._parse(stop)
            return
        self._got += nbytes
        if self._got == len(self._into):
            data, self._into = self._into, None
            self._enter(*self._head, data)

    def eof_received(self) -> bool:
        self._eof = True
        return not self.tls and bool(self._calls)

    def pause_writing(self) -> None:
        self.blocked = True
        self._writable.clear()

    def resume_writing(self) -> None:
        self.blocked = False
        self._active = True
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.hub.connections.discard(self)
        self._writable.set()
        self._into, self._rest = None, b""
        for task, code in self._calls.items():
            if code in root_read.ANSWERS:
                task.cancel()  # what is being written or published is let end
        if self.session is not None:
            if self.path_id:
                self.session.streams.pop(self.path_id, None)
            else:
                self.door.leave(self, list(self._calls))

    # Requests.

    def _parse(self, stop: int) -> None:
        """Take whole requests from the front of the shared buffer; keep the rest."""
        buffer, at = self.hub.buffer, 0
        if self._deaf:
            return
        if not self._greeted:
            if stop < HELLO.size:
                self._rest = bytes(buffer[:stop])
                return
            if HELLO.unpack_from(buffer) != GREETING:
                self.cut()
                return
            self._greeted, at = True, HELLO.size
            self.transport.write(_WELCOME)
        unpack, session = REQUEST.unpack_from, self.session
        at_once = root_read.AT_ONCE
        while stop - at >= REQUEST.size and not self._holds and not self.closing and not self._deaf:
            stream, code, body, length = unpack(buffer, at)
            end = at + REQUEST.size + length
            if end > stop or not 0 <= length < LARGE or code in _WATCHED:
                if not self._bears(stream, code, body, length):
                    break
                if end > stop:
                    if length >= LARGE:
                        self._receive(stream, code, body, length, buffer[at + REQUEST.size : stop])
                        at = stop
                    break
            data = buffer[at + REQUEST.size : end]
            at = end
            hot = at_once.get(code)
            if hot is not None and session is not None and hot(self, session, stream, body, data):
                continue
            self._enter(stream, code, body, bytes(data))
            session = self.session
        self._rest = bytes(buffer[at:stop])

    def _bears(self, stream: int, code: int, body: bytes, length: int) -> bool:
        """Whether a request's data may come now; if not, it waits, or the connection was ended."""
        if self.session is None or not self.session.authenticated:
            most = BEFORE_LOGIN
        elif code in _WRITES and isinstance(self.session.files.get(body[:4]), Writing):
            most = MOST_WRITTEN
        else:
            most = MOST
        if not 0 <= length <= most:
            self.end(stream, refusal(TOO_LONG, f"request {code}: {length} bytes of data are too many"))
        elif self.session is not None and (code in _STRAYING or (code in _WRITES and body[12])):
            self.end(stream, Unsupported(f"request {code}: is not offered here with data elsewhere"))
        elif length >= LARGE and self._large > 1:
            self._stalled = True  # until a write that is here has been taken
            self.hold()
        else:
            return True
        return False

    def _receive(self, stream: int, code: int, body: bytes, length: int, begun: memoryview) -> None:
        """Take the rest of a request's data straight into a buffer of its own."""
        self._head = stream, code, body
        # Not filled with zeros: what is announced and does not come takes no memory.
        self._into, self._got = np.empty(length, np.uint8).data, len(begun)
        self._into[: len(begun)] = begun

    def _enter(self, stream: int, code: int, body: bytes, data: Buffer) -> None:
        """A request that is not answered at once."""
        session = self.session
        if code in _SETTING_UP:
            self.hold()
            self._spawn(self._set_up(stream, code, body, bytes(data)), code)
        elif session is None:
            self.end(stream, refusal(BAD_REQUEST, f"request {code}: log in first"))
        elif not session.authenticated and code != Code.PING:
            if code in _BY_HANDLE:
                self.refuse(stream, refusal(FILE_NOT_OPEN, "handle: log in first"))
            else:
                self.end(stream, refusal(BAD_REQUEST, f"request {code}: authenticate first"))
        elif code != Code.SIGVER:
            large = len(data) >= LARGE
            self._large += large
            if len(self._calls) >= CALLS:
                self.hold()
            call = Call(self.door.site, session, stream, code, body, data)
            self._spawn(self._answer(call, large), code)

    def _spawn(self, work: Coroutine[Any, Any, None], code: int) -> None:
        task = self.hub.spawn(self.loop, work)
        self._calls[task] = code
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._active = True
        if len(self._calls) > CALLS:
            self.release()
        del self._calls[task]
        if self._eof and not self._calls and not self.closing:
            self.transport.close()

    def hold(self) -> None:
        """Take no further request until :meth:`release`, which belongs to each call of it."""
        self._holds += 1
        if self._holds == 1 and not self.closing:
            self.transport.pause_reading()

    def release(self) -> None:
        """Go on, unless somebody else holds as well."""
        self._holds -= 1
        if not self._holds:
            self._go_on()

    def _go_on(self) -> None:
        if self.closing:
            return
        if self._rest and self._into is None:
            size = len(self._rest)
            self.hub.buffer[:size] = self._rest
            self._rest = b""
            self._parse(size)
        if not self._holds and not self.closing:
            self.transport.resume_reading()

    # Answers.

    async def _set_up(self, stream: int, code: int, body: bytes, data: bytes) -> None:
        try:
            await self.door.set_up(self, stream, code, body, data)
        except DomaError as e:
            self.refuse(stream, e)
        except (OSError, ssl.SSLError, TimeoutError) as e:
            log.debug("root connection from %s ended in the handshake: %s", self.peer[0], e)
            self.cut()
        finally:
            self.release()

    async def _answer(self, call: Call, large: bool) -> None:
        began, error = perf_counter(), None
        try:
            reading = root_read.ANSWERS.get(call.code)
            if reading is not None:
                await reading(self, call)
            else:
                await send(self, call, await self.door.handler(call.code)(call))
        except DomaError as e:
            error = e
        except Exception:  # the outermost line of a request: say it, and keep the connection
            log.exception("request %d of root:// failed", call.code)
            error = ServiceUnavailable("request: failed here; the log of the server says why")
        finally:
            if large:
                call.data = b""
                self._large -= 1
                if self._stalled:
                    self._stalled = False
                    self.release()
        if error is not None:
            self.refuse(call.stream, error, call)
        if error is not None or call.code not in root_read.ANSWERS:
            self.door.told(call, error, perf_counter() - began)

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Hand buffers, which stay unchanged, to the transport; after the last answer nothing."""
        if self.closing or self._deaf:
            return
        if self.tls and len(buffers) > FEW:
            buffers = [b"".join(buffers)]
        self.transport.writelines(buffers)

    async def room(self) -> None:
        """Wait until the transport takes more."""
        while self.blocked and not self.closing:
            await self._writable.wait()

    def answer(self, stream: int, body: bytes = b"") -> None:
        """A whole answer."""
        self.write([ANSWER.pack(stream, Status.OK, len(body)) + body])

    def refuse(self, stream: int, error: DomaError, call: Call | None = None) -> None:
        """Answer an error: what is wrong with what, and the remedy."""
        status, body = said(error, call.targets if call is not None else ())
        self.write([ANSWER.pack(stream, status, len(body)) + body])

    def end(self, stream: int, error: DomaError) -> None:
        """Answer an error after which nothing that comes can be understood, and close."""
        self.refuse(stream, error)
        if self.closing or self._deaf:
            return
        self._deaf = True
        self._rest, self._into = b"", None
        if self.tls or self._eof or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.write_eof()  # what the client still sends is read away, else it sees a reset
        if self._holds:
            self.transport.resume_reading()

    async def to_tls(self, context: ssl.SSLContext) -> None:
        """Everything from here on is TLS; reading is held meanwhile.

        Raises:
            ConnectionResetError: nobody is there, or more came in the clear, who knows from whom.
        """
        if self._rest:
            raise ConnectionResetError("requests before the handshake")
        transport = await self.loop.start_tls(
            self.transport, self, context, server_side=True, ssl_handshake_timeout=HANDSHAKE,
            ssl_shutdown_timeout=TLS_SHUTDOWN,
        )  # fmt: skip
        if transport is None:
            raise ConnectionResetError("the client went away")
        self.transport = transport
        transport.set_write_buffer_limits(UNSENT, UNSENT // 4)
        transport.pause_reading()
        self.tls = True

    # What the listener asks.

    def sweep(self, now: float) -> None:
        """Close what stands still; called about once a second."""
        if self._active:
            self._active, self._stamp = False, now
            return
        still, limits = now - self._stamp, self.hub
        unsent = self.transport.get_write_buffer_size()
        if self._deaf:
            if still > TLS_SHUTDOWN:
                self.cut()
        elif unsent:
            if unsent != self._waiting:
                self._waiting, self._stamp = unsent, now
            elif still > limits.body_timeout:
                self.cut()
        elif self._calls:
            return
        elif self.session is None or not self.session.authenticated:
            if still > limits.head_timeout:
                self.cut()
        elif (self._rest or self._into is not None) and still > limits.body_timeout:
            self.cut()
        elif still > IDLE and not self.path_id:
            self.transport.close()

    def quiet(self) -> bool:
        return not self._calls and not self.transport.get_write_buffer_size()

    def close_softly(self) -> None:
        """Close after what was written."""
        if not self.closing:
            self.transport.close()

    def cut(self) -> None:
        self.closing = True
        self.transport.abort()
