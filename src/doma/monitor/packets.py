"""Monitoring packets in XRootD's form: what its own collectors read. Pure.

All integers are big-endian. A packet is a header of 8 bytes and a body; which counter gives its sequence
number depends on the code (:data:`MAPS` share one). Texts from clients never bring a separator of ours.

Source: xrootd's ``XrdXrootdMonData.hh``; packets of a 5.5.3 proxy cache; §1-§5 of the monitoring contract.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from struct import Struct

from doma.core.events import Event
from doma.monitor.opens import Client, Opened, Sizes

HEADER = Struct(">BBHi")
MAPS = "=udTi"
"""Codes that share one sequence counter."""
MOST_FILES = 65_472
"""Bytes of an f-packet at most."""
MOST_EVENTS = 32 << 10
"""Bytes of a g-packet at most."""
MOST_TEXT = 1_024
CACHE, COPIES = ord("C"), ord("P")
"""Providers of g-packets: what was read through a cache, and third-party copies."""

_HEAD = Struct(">BBHI")
_TIME = Struct(">BBHHHiiq")
_OPEN = Struct(">BBHIqI")
_CLOSE = Struct(">BBHIqqq")
_OPS = Struct(">iiihhqiiiiii")
_SQUARES = Struct(">dddd")
_EVENTS = Struct(">iiQ")
_CLOSED, _OPENED, _TOD, _MOVED, _LEFT = range(5)
_MASK = (1 << 48) - 1
_LARGEST = (1 << 63) - 1
"""Bytes of a file, as far as a record can say: an origin may claim more."""


def packet(code: str, sequence: int, start: int, body: bytes) -> bytes:
    """A whole packet.

    Args:
        code: One of ``= u d T i f g``.
        sequence: Of its counter; taken modulo 256.
        start: Unix seconds at which this server started: with its address, its name to collectors.
        body: What follows the header.
    """
    return HEADER.pack(ord(code), sequence & 0xFF, HEADER.size + len(body), start) + body


def mapping(number: int, who: str, text: str = "") -> bytes:
    """The body of a map packet: a number, whom it is about, and what it stands for."""
    return number.to_bytes(4, "big") + (f"{who}\n{text}" if text else who).encode()


def who(client: Client, sid: int) -> str:
    """A client as collectors know it: ``xroot/alice.4711:<sid>@host``.

    >>> who(Client("xroot", "::1", 7, name="a b&c", pid=3), 5)
    'xroot/a b_c.3:5@[::1]'
    """
    host = plain(client.host)
    host = f"[{host}]" if ":" in host else host
    return f"{plain(client.protocol)}/{plain(client.name) or 'nobody'}.{client.pid}:{sid & _MASK}@{host}"


def identification(site: str, port: int, instance: str, version: str) -> str:
    """The text of the ``=`` packet."""
    return f"&site={plain(site)}&port={port}&inst={plain(instance)}&pgm=doma&ver=v{plain(version)}"


def login(client: Client) -> str:
    """The text of the ``u`` packet of a client: who, by which token, with which program."""
    told = ""
    if client.subject or client.issuer:
        told = (
            f"&p=ztn&n={plain(client.subject)}&h={plain(client.host)}&o={plain(client.vo)}"
            f"&r=&g={plain(' '.join(client.groups))}&m={plain(client.subject)}"
        )
    told += f"&R={plain(client.release)}&x={plain(client.app)}&y={plain(client.info)}"
    return told + f"&I={6 if client.ipv6 else 4}"


def token(client: Client, user: int) -> str:
    """The text of the ``T`` packet of a client that brought a token; ``user`` is the number of its login."""
    return (
        f"&Uc={user}&s={plain(client.subject)}&n={plain(client.name)}&o={plain(client.issuer)}"
        f"&r=&g={plain(' '.join(client.groups))}"
    )


def plain(text: str) -> str:
    """A text without what separates fields, cut to 1,024 characters."""
    return "".join(c if c.isprintable() and c != "&" else "_" for c in text[:MOST_TEXT])


def files(since: int, until: int, sid: int, records: Sequence[bytes], moved: int) -> bytes:
    """The body of an f-packet: the time it covers, and its records.

    Args:
        since: Unix seconds.
        until: Likewise.
        sid: This server's number, of which 48 bits count.
        records: From :func:`opened`, :func:`closed`, :func:`so_far` and :func:`left`.
        moved: How many of them are from :func:`so_far`.
    """
    head = _TIME.pack(_TOD, 1, _TIME.size, moved, len(records), since, until, sid & _MASK)
    return head + b"".join(records)


def opened(number: int, user: int, file: Opened) -> bytes:
    """The record of an open, with its path padded by one to eight zeros."""
    name = file.lfn.encode()[: MOST_TEXT * 4]
    size = (_OPEN.size + len(name) + 8) & ~7
    flags = 1 | (2 if file.writing else 0)
    return _OPEN.pack(_OPENED, flags, size, number, min(file.size, _LARGEST), user) + name.ljust(
        size - _OPEN.size, b"\0"
    )


def closed(number: int, file: Opened, *, forced: bool) -> bytes:
    """The record of a close, with counts, least and largest sizes, and sums of squares."""
    reads, readvs, segments, writes = file.reads, file.readvs, file.segments, file.writes
    size = _CLOSE.size + _OPS.size + _SQUARES.size
    head = _CLOSE.pack(
        _CLOSED, 6 | int(forced), size, number, reads.total, readvs.total, writes.total
    )  # fmt: skip
    ops = _OPS.pack(
        _int(reads.count), _int(readvs.count), _int(writes.count),
        min(_least(segments), 0x7FFF), min(segments.most, 0x7FFF), segments.total,
        _least(reads), _int(reads.most), _least(readvs), _int(readvs.most), _least(writes), _int(writes.most),
    )  # fmt: skip
    return head + ops + _SQUARES.pack(reads.squares, readvs.squares, segments.squares, writes.squares)


def so_far(number: int, file: Opened) -> bytes:
    """The record of what went through an open file so far."""
    return _CLOSE.pack(_MOVED, 0, _CLOSE.size, number, file.reads.total, file.readvs.total, file.writes.total)


def left(user: int) -> bytes:
    """The record of the end of a login."""
    return _HEAD.pack(_LEFT, 0, _HEAD.size, user)


def events(provider: int, since: int, until: int, sid: int, objects: Sequence[bytes]) -> bytes:
    """The body of a g-packet: JSON objects of one provider, separated by newlines."""
    return _EVENTS.pack(since, until, provider << 56 | sid & _MASK) + b"\n".join(objects) + b"\0"


def cache_event(file: Opened, until: float, details: Mapping[str, object]) -> bytes:
    """What a proxy cache says of a file that was closed: XCache's keys in its order, then ours.

    Args:
        file: Of a caching endpoint.
        until: Unix seconds of the close.
        details: Our own keys.
    """
    seen = file.cached
    if seen is None:
        raise ValueError(f"{file.path}: was not read through a cache")
    pages = -(-file.size // PAGE)
    told = {
        "event": "file_close", "lfn": file.lfn, "size": file.size, "blk_size": PAGE, "n_blks": pages,
        "n_blks_done": min(pages, seen.held), "access_cnt": seen.accesses, "attach_t": int(file.since),
        "detach_t": int(until), "remotes": seen.remotes, "b_hit": seen.hit, "b_miss": seen.miss,
        "b_bypass": seen.bypass, "b_todisk": seen.stored, "b_prefetch": seen.prefetch,
        "n_cks_errs": seen.bad_pages,
    }  # fmt: skip
    return json.dumps({**told, **details}, separators=(",", ":")).encode()


def copy_event(event: Event, until: float) -> bytes:
    """What XRootD says of a third-party copy that ended.

    Args:
        event: ``copy.finished`` or ``copy.failed``.
        until: Unix seconds of its end.
    """
    data = event.data
    began = until - float(data.get("seconds", 0))
    done = {
        "Beg": _instant(began), "End": _instant(until), "RC": int(event.kind != "copy.finished"),
        "Strm": 1, "Type": data.get("mode", "pull"), "IPv": 6 if "[" in str(data.get("source")) else 4,
    }  # fmt: skip
    told = {
        "TPC": "http", "Client": plain(event.owner.rpartition("#")[2]), "Xeq": done,
        "Src": data.get("source", ""), "Dst": data.get("destination", ""), "Size": data.get("bytes", 0),
    }  # fmt: skip
    return json.dumps(told, separators=(",", ":")).encode()


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _least(sizes: Sizes) -> int:
    return _int(int(sizes.least)) if sizes.count else 0


def _int(value: int) -> int:
    return min(value, 0x7FFFFFFF)


PAGE = 4096
"""Bytes of a block, as the cache keeps them."""
