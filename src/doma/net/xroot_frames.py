"""Frames of the root:// protocol: what stands between two headers, for either end of the wire. No I/O.

A request is 24 bytes and its data, an answer 8 bytes and its body; all integers are big-endian. Each request
body is a :class:`struct.Struct`, so a client packs what a server unpacks. Lengths come from strangers: they
are checked before anything is allocated, and a bad one is one clear error.

Source: xrootd's ``XProtocol.hh``, protocol 5.2.0; §1-§9 of the project's root:// contract.
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from doma.core.errors import BadRequest, OriginFailed

VERSION = 0x520
HELLO = Struct(">5i")
GREETING = (0, 0, 0, 4, 2012)
"""What a client says first, packed with :data:`HELLO`."""
REQUEST = Struct(">HH16si")
ANSWER = Struct(">HHi")
NOTHING = bytes(16)
"""The body of a request that has no parameters."""

MOST_DATA = 16 << 20
"""Bytes behind one request header at most."""


class Code(IntEnum):
    """Requests."""

    AUTH = 3000
    QUERY = 3001
    CHMOD = 3002
    CLOSE = 3003
    DIRLIST = 3004
    GPFILE = 3005
    PROTOCOL = 3006
    LOGIN = 3007
    MKDIR = 3008
    MV = 3009
    OPEN = 3010
    PING = 3011
    CHKPOINT = 3012
    READ = 3013
    RM = 3014
    RMDIR = 3015
    SYNC = 3016
    STAT = 3017
    SET = 3018
    WRITE = 3019
    FATTR = 3020
    PREPARE = 3021
    STATX = 3022
    ENDSESS = 3023
    BIND = 3024
    READV = 3025
    PGWRITE = 3026
    LOCATE = 3027
    TRUNCATE = 3028
    SIGVER = 3029
    PGREAD = 3030
    WRITEV = 3031
    CLONE = 3032


class Status(IntEnum):
    """Of an answer."""

    OK = 0
    OKSOFAR = 4000
    ATTN = 4001
    AUTHMORE = 4002
    ERROR = 4003
    REDIRECT = 4004
    WAIT = 4005
    WAITRESP = 4006
    STATUS = 4007
    """Followed by integrity-checked pages: :mod:`doma.net.xroot_pages`."""


class Ask(IntFlag):
    """Flags of a protocol request."""

    ABLE_TLS = 0x02
    WANT_TLS = 0x04


EXPECT_LOGIN = 3


class Server(IntFlag):
    """Flags of the answer to it."""

    DATA = 0x00000001
    MANAGER = 0x00000002
    CACHE = 0x00000080
    PROXY = 0x00000200
    PAGES = 0x00200000
    TLS_DATA = 0x01000000
    TLS_LOGIN = 0x04000000
    TLS_SESSION = 0x08000000
    GOTO_TLS = 0x40000000
    HAVE_TLS = 0x80000000


class Open(IntFlag):
    """Options of an open request."""

    DELETE = 0x0002
    NEW = 0x0008
    READ = 0x0010
    UPDATE = 0x0020
    REFRESH = 0x0080
    MKPATH = 0x0100
    APPEND = 0x0200
    RETSTAT = 0x0400
    WRITE_ONLY = 0x8000


class Query(IntEnum):
    """Kinds of query."""

    CHECKSUM = 3
    SPACE = 5
    CONFIG = 7


class Attribute(IntEnum):
    """What an fattr request does."""

    DELETE = 0
    GET = 1
    LIST = 2
    SET = 3


WITH_STAT = 2
"""Option of a dirlist request."""
MAKE_PATH = 1
"""Option of a mkdir request: parents too."""
RETRY = 1
"""Flag of pgread (look at the media again) and of pgwrite (this page is a correction)."""
ABILITY = 0x01 | 0x08
"""Of a client: takes whole URLs in redirects, has IPv4 and IPv6."""
CAPABLE = 0x80 | 5
"""Of a client: takes asynchronous answers, fifth generation (TLS)."""

# Bodies of requests, 16 bytes each; which fields they have is said behind them.
P_PROTOCOL = Struct(">iBB10x")  # version, Ask flags, expect
PROTOCOL_ANSWER = Struct(">iI")  # version, Server flags
P_LOGIN = Struct(">i8sBBBx")  # pid, user name, ability2, ability, capability
P_AUTH = Struct(">12x4s")  # kind of credential
P_OPEN = Struct(">HHH10x")  # mode, Open options, more options
P_HANDLE = Struct(">4s12x")  # close, sync: handle
P_READ = Struct(">4sqi")  # read, pgread: handle, offset, length
P_WRITE = Struct(">4sqB3x")  # handle, offset, path id
P_PGWRITE = Struct(">4sqBB2x")  # handle, offset, path id, flags
P_READV = Struct(">15xB")  # path id
P_STAT = Struct(">B11x4s")  # options, handle
P_DIRLIST = Struct(">15xB")  # options
P_MKDIR = Struct(">B13xH")  # options, mode
P_MV = Struct(">14xh")  # length of the first path
P_TRUNCATE = Struct(">4sq4x")  # handle, size
P_QUERY = Struct(">H2x4s8x")  # kind, handle
P_FATTR = Struct(">4sBBB9x")  # handle, what, number of attributes, options
SEGMENT = Struct(">4siq")  # of a readv: handle, length, offset

_INT = Struct(">i")
_ASYNC = Struct(">i4x")


class RequestHead(NamedTuple):
    """The first 24 bytes of a request."""

    stream: int
    """Chosen by the client, 16 bits; every part of the answer carries it."""
    code: int
    body: bytes
    """Parameters, 16 bytes."""
    length: int
    """Bytes of data that follow."""


class AnswerHead(NamedTuple):
    """The first 8 bytes of an answer."""

    stream: int
    status: int
    length: int
    """Bytes of body that follow."""


def request(stream: int, code: int, body: bytes = NOTHING, data: bytes = b"") -> bytes:
    """A whole request."""
    return REQUEST.pack(stream, code, body, len(data)) + data


def request_head(data: bytes | memoryview, at: int = 0, most: int = MOST_DATA) -> RequestHead:
    """Read 24 bytes of a client.

    Args:
        data: Holds them.
        at: Where they begin.
        most: Bytes of data that may follow.

    Raises:
        BadRequest: the length is negative or beyond ``most``; what follows cannot be understood.

    >>> request_head(request(7, Code.STAT, P_STAT.pack(0, bytes(4)), b"/f"))[::3]
    (7, 2)
    """
    head = RequestHead(*REQUEST.unpack_from(data, at))
    if not 0 <= head.length <= most:
        raise BadRequest(f"request {head.code}: {head.length} bytes of data; at most {most} are taken")
    return head


def answer(stream: int, status: int, body: bytes = b"") -> bytes:
    """A whole answer, or a part of one."""
    return ANSWER.pack(stream, status, len(body)) + body


def answer_head(data: bytes | memoryview, at: int = 0) -> AnswerHead:
    """Read 8 bytes of a server.

    Raises:
        OriginFailed: the length is negative or the status unknown; what follows cannot be understood.
    """
    head = AnswerHead(*ANSWER.unpack_from(data, at))
    if head.length < 0:
        raise OriginFailed(f"an answer of {head.length} bytes")
    if head.status != Status.OK and not Status.OKSOFAR <= head.status <= Status.STATUS:
        raise OriginFailed(f"an answer with the unknown status {head.status}")
    return head


def number_and_text(body: bytes) -> tuple[int, str]:
    """The body of an error (code), a wait (seconds) and a redirect (port): a number, then text up to a NUL.

    Raises:
        OriginFailed: it is shorter than the number.

    >>> number_and_text(with_text(3011, "no such file"))
    (3011, 'no such file')
    """
    if len(body) < _INT.size:
        raise OriginFailed(f"an answer of {len(body)} bytes where a number was due")
    return _INT.unpack_from(body)[0], body[_INT.size :].partition(b"\0")[0].decode("utf-8", "replace")


def with_text(number: int, text: str) -> bytes:
    """What :func:`number_and_text` reads."""
    return _INT.pack(number) + text.encode() + b"\0"


DEFERRED = 5008
"""Action of an ``attn`` that brings the answer announced by ``waitresp``."""


def deferred(body: bytes) -> tuple[AnswerHead, bytes] | None:
    """The answer inside an ``attn``; None: it is some other news, which may be ignored.

    Raises:
        OriginFailed: the answer inside is not whole.
    """
    if len(body) < _INT.size or _INT.unpack_from(body)[0] != DEFERRED:
        return None
    start = _ASYNC.size + ANSWER.size
    if len(body) < start:
        raise OriginFailed("a deferred answer without its head")
    head = answer_head(body, _ASYNC.size)
    if head.length != len(body) - start:
        raise OriginFailed(f"a deferred answer of {len(body) - start} bytes that announces {head.length}")
    return head, body[start:]


def defer(whole: bytes) -> bytes:
    """The body of an ``attn`` that brings a whole answer."""
    return _ASYNC.pack(DEFERRED) + whole


def segments(data: bytes, most: int = 1024) -> list[tuple[bytes, int, int]]:
    """What a readv asks for: handle, length, offset of each.

    Raises:
        BadRequest: the vector is empty, too long or no multiple of 16 bytes, or a number is negative.
    """
    if not data or len(data) % SEGMENT.size or len(data) > most * SEGMENT.size:
        raise BadRequest(f"readv: a vector of {len(data)} bytes; send 1 to {most} elements of 16 bytes")
    found = list(SEGMENT.iter_unpack(data))
    if any(length < 0 or offset < 0 for _, length, offset in found):
        raise BadRequest("readv: a length or an offset is negative")
    return found


def attribute_request(path: bytes, name: str, value: bytes | None = None) -> bytes:
    """The data of an fattr request about one attribute of a path; with a value it sets it."""
    data = path + b"\0" + bytes(2) + name.encode() + b"\0"
    return data if value is None else data + _INT.pack(len(value)) + value


def attribute_answer(body: bytes, name: str) -> tuple[int, bytes]:
    """What an fattr request about one attribute brought: error code (0: none) and value.

    Raises:
        OriginFailed: it is about something else or not whole.
    """
    start = 4 + len(name.encode()) + 1
    if len(body) < start or body[1] != 1 or body[4:start] != name.encode() + b"\0":
        raise OriginFailed("an answer about other attributes than were asked for")
    code = int.from_bytes(body[2:4], "big")
    if code or len(body) == start:
        return code, b""
    length = _INT.unpack_from(body, start)[0] if len(body) >= start + _INT.size else -1
    if length != len(body) - start - _INT.size:
        raise OriginFailed("an attribute whose value is not whole")
    return 0, body[start + _INT.size :]
