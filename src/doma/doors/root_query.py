"""Questions by root:// about files and about the server, and what clients set: query, set.

Source: §9 of the project's root:// contract; §7 of the cache contract.
"""

import time
from collections.abc import Awaitable, Callable
from html import escape

from doma import __version__
from doma.auth.model import Verb
from doma.cache.routes import OPERATOR
from doma.cache.store import CacheStore
from doma.core.checksum import COMPUTABLE, canonical
from doma.core.errors import BadRequest, Forbidden, LimitExceeded, NotFound, Unsupported
from doma.doors.root_acts import acting, at_top
from doma.doors.root_attributes import fattr
from doma.doors.root_call import Call, Handler, Target
from doma.doors.root_names import address, space_of
from doma.doors.root_prepare import prepare, status
from doma.net.xroot_errors import IS_DIRECTORY, refusal
from doma.net.xroot_frames import P_QUERY, Code
from doma.store.protocol import Space

MOST_KEYS = 4096
"""Bytes of the keys of one question."""
SUMS = ("adler32", "crc32c", "md5", "sha-256")
"""Checksums that are offered, in the order of preference."""
_FACTS = {
    "readv_iov_max": "1024",
    "readv_ior_max": "2097136",
    "chksum": ",".join(f"{i}:{name}" for i, name in enumerate(SUMS)),
    "bind_max": "15",
    "tpcdlg": "tpcdlg",
    "version": f"v{__version__}",
    "doma": __version__,
    "cms": "none|",
    "fattr": "248 65536",
}
"""What :func:`_config` answers for every site; an unknown key is its own answer."""
_NO_SUCH_SUM = 3012


async def query(call: Call) -> bytes:
    """The answer to one kind of question."""
    kind, _ = P_QUERY.unpack(call.body)
    if kind in _NOT_OFFERED:
        raise Unsupported(f"query {kind}: is not offered here")
    if kind not in _KINDS:
        raise BadRequest(f"query {kind}: there is no such kind")
    return await _KINDS[kind](call)


async def change(call: Call) -> bytes:
    """``set``: what the client calls itself, whether it wants to be monitored, what a cache is to give up."""
    words = bytes(call.data).partition(b"\0")[0].split(maxsplit=2)
    match words:
        case [b"appid", *rest]:
            said = b" ".join(rest).decode("utf-8", "replace")
            call.session.app = "".join(c for c in said if c.isprintable())[:80]
            return b""
        case [b"monitor", b"info", *_]:
            return bytes(4)
        case [b"monitor", *_]:
            return b""
        case [b"cache", act, path] if act in _CACHE:
            await _CACHE[act](call, await call.target(path))
            return b""
    raise BadRequest("set: known are appid, monitor, and cache evict, fevict or cached with a path")


async def _checksum(call: Call) -> bytes:
    _, handle = P_QUERY.unpack(call.body)
    target = await (call.target() if bytes(call.data).strip(b"\0") else call.about(handle))
    name = target.cgi.get("cks.type", "adler32").lower()
    algorithm = canonical(name)
    if algorithm not in COMPUTABLE:
        raise refusal(_NO_SUCH_SUM, f"{name[:20]} checksum not supported.")
    found = await acting(call, target, "checksum").found(Verb.STAT)
    if found.is_dir:
        raise refusal(IS_DIRECTORY, f"{target.shown}: this is a directory; files have checksums")
    known = found.checksums.get(algorithm)
    value = known or await target.endpoint.store.checksum(target.path, algorithm)
    return _text(f"{name} {value}")


async def _config(call: Call) -> bytes:
    keys = bytes(call.data).partition(b"\0")[0].decode("utf-8", "replace")
    if len(keys) > MOST_KEYS:
        raise LimitExceeded(f"query config: keys of {len(keys)} bytes; at most {MOST_KEYS} are taken")
    caches = any(isinstance(e.store, CacheStore) for e in call.site.endpoints.values())
    own = {"role": "proxy" if caches else "server", "sitename": call.site.name}
    if call.session.tls:
        own["tls_port"] = str(call.session.local[1])
    return "".join(f"{own.get(key) or _FACTS.get(key, key)}\n" for key in keys.split()).encode()


async def _space(call: Call) -> bytes:
    top, who = await at_top(call)
    if top:
        here = [e for e in call.site.endpoints.values() if e.gate.may(who, Verb.STAT, "/", is_dir=True)]
        known = [space for e in here if (space := await space_of(e.store, "/")) is not None]
    else:
        target = await call.target()
        await acting(call, target, "space").found(Verb.STAT)
        space = await space_of(target.endpoint.store, target.path)
        known = [] if space is None else [space]
    # Endpoints may share a disk: what is free of it is free once.
    whole = Space(sum(s.used for s in known), max((max(0, s.available) for s in known), default=0))
    used, free = whole.used, whole.available
    return _text(
        f"oss.cgroup=all&oss.space={used + free}&oss.free={free}&oss.maxf={free}&oss.used={used}&oss.quota=-1"
    )


async def _attributes(call: Call) -> bytes:
    target = await call.target()
    found = await acting(call, target, "xattr").found(Verb.STAT)
    kind, changed = "d" if found.is_dir else "f", int(found.modified)
    access = "w" if target.endpoint.writable else "r"
    return _text(
        f"oss.cgroup=all&oss.type={kind}&oss.used={found.size}&oss.mt={changed}&oss.ct={changed}"
        f"&oss.at={changed}&oss.u=*&oss.g=*&oss.fs={access}&ofs.ap={access}l"
    )


async def _statistics(call: Call) -> bytes:
    src, name = address(*call.session.local), escape(call.site.name)
    return _text(
        f'<statistics tod="{int(time.time())}" ver="v{__version__}" src="{src}" pgm="doma" ins="anon"'
        f' site="{name}"></statistics>'
    )


async def _nothing(call: Call) -> bytes:
    return b""


_KINDS: dict[int, Callable[[Call], Awaitable[bytes]]] = {
    1: _statistics,
    2: status,
    3: _checksum,
    4: _attributes,
    5: _space,
    6: _nothing,
    7: _config,
}
_NOT_OFFERED = frozenset({8, 9, 10, 16, 32, 64})


def _cache_of(target: Target) -> CacheStore:
    store = target.endpoint.store
    if not isinstance(store, CacheStore):
        raise BadRequest(f"{target.shown}: {target.endpoint.name!r} is no cache")
    return store


async def _evict(call: Call, target: Target) -> None:
    """Right as over HTTP: what costs others their warm bytes needs more than to read."""
    who, store = target.identity, _cache_of(target)
    if who is None or OPERATOR not in who.scopes:
        target.endpoint.gate.decide(who, Verb.MODIFY, target.path)
    await _given_up(store.evict(target.path), target)


async def _evict_now(call: Call, target: Target) -> None:
    who, store = target.identity, _cache_of(target)
    if who is None or OPERATOR not in who.scopes:
        raise Forbidden(f"{target.shown}: fevict needs a token with the scope {OPERATOR}", scope=OPERATOR)
    await _given_up(store.evict(target.path, force=True), target)


async def _given_up(evicting: Awaitable[object], target: Target) -> None:
    try:
        await evicting
    except NotFound as e:
        raise NotFound(f"{target.shown}: file does not exist in this cache") from e


async def _is_cached(call: Call, target: Target) -> None:
    target.endpoint.gate.decide(target.identity, Verb.STAT, target.path)
    _cache_of(target).cached(target.path)


_CACHE: dict[bytes, Callable[[Call, Target], Awaitable[None]]] = {
    b"evict": _evict,
    b"fevict": _evict_now,
    b"cached": _is_cached,
}

HANDLERS: dict[int, Handler] = {
    Code.QUERY: query,
    Code.SET: change,
    Code.PREPARE: prepare,
    Code.FATTR: fattr,
}


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
