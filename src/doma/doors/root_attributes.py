"""Extended attributes by root://: get, set, list and delete a client's own notes on a file or directory.

They are kept as WebDAV's dead properties are, so they follow a rename, show up in PROPFIND, and go with the
file. One name is the door's own: :data:`RECORD` tells the version and checksums of a file to a store of ours
that stands in front (:mod:`doma.store.xrootd_record`); to set it asks for these checksums to be known.

Source: xrootd's ``XProtocol.hh`` (``kXR_fattr``) and ``XrdXrootdXeqFAttr.cc``.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from struct import Struct

from doma.auth.model import Verb
from doma.core.checksum import COMPUTABLE, parse_checksum, same
from doma.core.errors import BadRequest, ChecksumMismatch, LimitExceeded, Unsupported
from doma.doors.root_acts import acting, must_be_writable
from doma.doors.root_call import Call, Target
from doma.doors.root_stat import line_of
from doma.net.xroot_errors import EXISTS, NO_ATTRIBUTE
from doma.net.xroot_frames import P_FATTR, Attribute
from doma.net.xroot_text import stat_line
from doma.store.protocol import CanAnnotate, Stat
from doma.store.xrootd_file import version_of
from doma.store.xrootd_record import NAME as RECORD

MOST, LONGEST_NAME, LONGEST_VALUE = 16, 248, 64 << 10
"""Attributes of one request, bytes of a name and of a value."""
_NEW, _WITH_DATA = 0x01, 0x10
_NAMESPACE = "{http://xrootd.org/fattr}"
_PLAIN = re.compile(r"[A-Za-gi-z][A-Za-z0-9._-]{0,200}")
_HEX = re.compile(r"h_((?:[0-9a-f]{2})+)")
_VALUE = re.compile(r"<[^<>]*>((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)</[^<>]*>")
_CODE = Struct(">H")
_SIZE = Struct(">i")


async def fattr(call: Call) -> bytes:
    """Answer one request about up to :data:`MOST` attributes of a path or an open file."""
    handle, act, count, options = P_FATTR.unpack(call.body)
    path, mark, rest = bytes(call.data).partition(b"\0")
    if act not in set(Attribute) or count > MOST or (path and not mark):
        raise BadRequest(f"fattr: {count} attributes, act {act}; at most {MOST} are taken, acts are 0 to 3")
    target = await (call.target(path) if path else call.about(handle))
    changes = act in {Attribute.SET, Attribute.DELETE}
    if changes:
        await must_be_writable(target, "setting attributes")
    found = await acting(call, target, "fattr").found(Verb.MODIFY if changes else Verb.STAT)
    if act == Attribute.LIST:
        return _listed(await _kept(target), with_data=bool(options & _WITH_DATA))
    names, rest = _names(rest, count)
    if act == Attribute.GET:
        return await _got(target, found, names)
    values = _values(rest, count) if act == Attribute.SET else [None] * count
    return await _changed(
        call, target, found, dict(zip(names, values, strict=True)), new=bool(options & _NEW)
    )


async def _got(target: Target, found: Stat, names: list[str]) -> bytes:
    kept = await _kept(target) if set(names) != {RECORD} else {}
    if RECORD in names and not found.is_dir:
        kept = {**kept, RECORD: await _record(target, found)}
    codes = {name: 0 if name in kept else NO_ATTRIBUTE for name in names}
    return _outcome(codes) + b"".join(
        _SIZE.pack(len(value)) + value for value in (kept.get(name, b"") for name in names)
    )


async def _changed(
    call: Call, target: Target, found: Stat, changes: Mapping[str, bytes | None], *, new: bool
) -> bytes:
    """Set or remove attributes, all or none of them."""
    own = {name: value for name, value in changes.items() if name != RECORD}
    codes = dict.fromkeys(changes, 0)
    if own or new:
        kept = await _kept(target)
        codes |= {name: NO_ATTRIBUTE for name, value in own.items() if value is None and name not in kept}
        codes |= {name: EXISTS for name, value in own.items() if new and value is not None and name in kept}
    if (wanted := changes.get(RECORD)) is not None:
        await _learn(target, found, wanted)
    if own and not any(codes.values()):
        store = target.endpoint.store
        if not isinstance(store, CanAnnotate):
            raise Unsupported(f"{target.shown}: attributes are not kept here")
        notes = {_property(name): _element(name, value) for name, value in own.items()}
        await store.annotate(target.path, notes)
        dav = acting(call, target, "fattr")
        dav.tell("properties.changed", target.endpoint, target.path, names=sorted(notes))
    return _outcome(codes)


async def _record(target: Target, found: Stat) -> bytes:
    """The door's own attribute: which version has which checksums."""
    version = version_of(stat_line(await line_of(target, found)))
    return json.dumps({"of": version, "sums": dict(found.checksums)}, separators=(",", ":")).encode()


async def _learn(target: Target, found: Stat, record: bytes) -> None:
    """Compute what a record claims of a file and is not known. Raises ChecksumMismatch: it is not so."""
    try:
        sums = json.loads(record)["sums"]
        claimed = {name: parse_checksum(name, sums[name]) for name in COMPUTABLE if name in sums}
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as e:
        raise BadRequest(
            f"{target.shown}: {RECORD!r} is a record of checksums; leave it to the server"
        ) from e
    for name, value in claimed.items() if not found.is_dir else ():
        here = found.checksums.get(name) or await target.endpoint.store.checksum(target.path, name)
        if not same(name, here, value):
            raise ChecksumMismatch(f"{target.shown}: {name} is {here}, not {value}; write the file again")


async def _kept(target: Target) -> dict[str, bytes]:
    """The attributes that clients have set, by name."""
    store = target.endpoint.store
    if not isinstance(store, CanAnnotate):
        return {}
    notes = await store.annotations(target.path)
    return {
        name: b64decode(value[1])
        for key, text in notes.items()
        if (name := _name(key)) and (value := _VALUE.fullmatch(text))
    }


def _property(name: str) -> str:
    """The dead property that stands for an attribute; XML does not take every name."""
    plain = _PLAIN.fullmatch(name) is not None
    return _NAMESPACE + (name if plain else "h_" + name.encode().hex())


def _name(key: str) -> str | None:
    """The attribute that a dead property stands for; None: it is none, whoever set it."""
    if not key.startswith(_NAMESPACE):
        return None
    local = key.removeprefix(_NAMESPACE)
    coded = _HEX.fullmatch(local)
    try:
        name = bytes.fromhex(coded[1]).decode() if coded else local
    except UnicodeDecodeError:
        return None
    return None if "\0" in name else name


def _element(name: str, value: bytes | None) -> str | None:
    if value is None:
        return None
    local = _property(name).removeprefix(_NAMESPACE)
    return f'<x:{local} xmlns:x="{_NAMESPACE[1:-1]}">{b64encode(value).decode()}</x:{local}>'


def _names(data: bytes, count: int) -> tuple[list[str], bytes]:
    """The names of a request, each behind two bytes, and what follows them."""
    names = []
    for _ in range(count):
        name, mark, rest = data[_CODE.size :].partition(b"\0")
        if not mark or not name or len(name) > LONGEST_NAME:
            raise BadRequest(f"fattr: send {count} names of 1 to {LONGEST_NAME} bytes")
        try:
            names.append(name.decode())
        except UnicodeDecodeError as e:
            raise BadRequest("fattr: a name is not UTF-8") from e
        data = rest
    if not count or len(set(names)) < count:
        raise BadRequest("fattr: name each attribute once, and at least one")
    return names, data


def _values(data: bytes, count: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    for _ in range(count):
        size = _SIZE.unpack_from(data)[0] if len(data) >= _SIZE.size else -1
        if not 0 <= size <= len(data) - _SIZE.size:
            raise BadRequest("fattr: a value is not whole")
        if size > LONGEST_VALUE:
            raise LimitExceeded(f"fattr: a value of {size} bytes; at most {LONGEST_VALUE} are kept")
        values.append(data[_SIZE.size : _SIZE.size + size])
        data = data[_SIZE.size + size :]
    return values


def _outcome(codes: Mapping[str, int]) -> bytes:
    failed = sum(1 for code in codes.values() if code)
    each = b"".join(_CODE.pack(code) + name.encode() + b"\0" for name, code in codes.items())
    return bytes((failed, len(codes))) + each


def _listed(kept: Mapping[str, bytes], *, with_data: bool) -> bytes:
    if not with_data:
        return b"".join(name.encode() + b"\0" for name in kept)
    return b"".join(name.encode() + b"\0" + _SIZE.pack(len(value)) + value for name, value in kept.items())
