"""What the root:// door shares with the WebDAV door: who may change what, and what is told of it.

A change by root:// is judged and told by the very code that judges a DELETE or a MOVE.
"""

from doma.auth.model import Identity
from doma.cache.store import CacheStore
from doma.core.errors import DomaError, NotAllowed, Unauthenticated
from doma.doors import dav_call
from doma.doors.dav_call import Message
from doma.doors.root_call import Call, Target, split
from doma.net.xroot_errors import READ_ONLY


def acting(call: Call, target: Target, act: str, **headers: str) -> dav_call.Call:
    """The request as the WebDAV door would see it; what that answers goes nowhere.

    Args:
        call: Ours.
        target: What it is about.
        act: For messages: ``rm``, ``mv``.
        headers: Names in lower case.
    """
    return dav_call.Call(
        call.site, target.endpoint, target.path, target.identity, {"method": act}, headers, _nothing, _drop
    )


async def must_be_writable(target: Target, act: str) -> None:
    """Raise NotAllowed where nobody can change anything; of a cache it names the origin."""
    store = target.endpoint.store
    try:
        if isinstance(store, CacheStore):
            await store.make_dir(target.path)  # It refuses every change, and says where to go instead.
        if not target.endpoint.writable:
            name = target.endpoint.name
            raise NotAllowed(f"{target.shown}: {act} is not possible: {name!r} is read-only")
    except DomaError as e:
        e.detail["xrootd"] = READ_ONLY
        raise


async def at_top(call: Call) -> tuple[bool, Identity | None]:
    """Whether a request is about what lies above all endpoints, and then who asks."""
    path, _, secret = split(bytes(call.data))
    if path != "/":
        return False, None
    if secret:
        return True, await call.site.identify(None, secret)
    try:
        return True, await call.caller(path)
    except Unauthenticated:
        return True, None  # what is public needs no token


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _drop(message: Message) -> None:
    pass
