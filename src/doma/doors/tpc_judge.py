"""What a COPY may do, before anybody else is asked: rights, paths and conditions become a job.

Source: W51-W58, W61 and W71 of the storage contract; §5 of the token contract.
"""

import asyncio
from dataclasses import dataclass, field

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity, Verb
from doma.core.errors import Conflict, NotAllowed, NotFound, PreconditionFailed, Refused
from doma.doors.dav_call import Call, check_conditions
from doma.doors.dav_target import Target as Place
from doma.doors.dav_target import is_ours, target_of
from doma.doors.endpoint import Endpoint
from doma.doors.landing import upload_id
from doma.doors.tpc_order import Order, order_of
from doma.doors.tpc_progress import Progress
from doma.doors.tpc_pull import Target
from doma.store.protocol import Stat


@dataclass(slots=True)
class Job:
    """One transfer under way."""

    call: Call
    order: Order
    here: Place
    """Our side."""
    there: Place | None
    """The other side, if that is ours too (W71)."""
    target: Target | None
    """Where and how to publish, if we write."""
    began: float
    progress: Progress = field(default_factory=Progress)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    """Its end is recorded."""

    @property
    def issuer(self) -> str:
        return self.call.identity.issuer if self.call.identity else ""

    def start(self) -> None:
        """The other side has agreed, or will take a while: the client shall get its stream."""
        self.started.set()


async def judge(call: Call, now: float) -> Job:
    """Everything that can be refused without asking anybody else.

    Args:
        call: The COPY.
        now: Unix seconds.

    Raises:
        DomaError: it is refused.
    """
    push = "source" not in call.headers
    header = "destination" if push else "source"
    mapped = call.headers.get(header, "").strip().lower().startswith(("s3s:", "webdav"))
    there = target_of(call, header) if not mapped and is_ours(call, header) else None
    order = order_of(call.shown, call.headers, here=there is not None)
    here = Place(call.endpoint, call.path)
    identity = call.identity if there is None else await _other(call, order)
    read, write = (here, there) if push else (there, here)
    readers, writers = (call.identity, identity) if push else (identity, call.identity)
    if read == write:
        raise Refused(f"{call.shown}: COPY onto itself changes nothing; name another place")
    if read is not None:
        read.endpoint.gate.decide(readers, Verb.READ, read.path)
    if push:
        stat = await call.found(Verb.READ)
        if stat.is_dir:
            raise Conflict(f"{call.shown}: is a directory; only files are copied to another server")
        check_conditions(call, stat)
    target = await _target(call, order, write, writers) if write is not None else None
    return Job(call, order, here, there, target, now)


async def _target(call: Call, order: Order, write: Place, who: Identity | None) -> Target:
    """The right and the conditions to write there.

    Raises:
        DomaError: it is refused.
    """
    endpoint, path = write.endpoint, write.path
    call.must_be_writable(endpoint)
    may_modify = endpoint.gate.may(who, Verb.MODIFY, path)
    if not may_modify:
        endpoint.gate.decide(who, Verb.CREATE, path)
    there = await _there(endpoint, path)
    if path == "/" or (there is not None and there.is_dir):
        raise NotAllowed(f"{write.shown}: is a directory; name a file")
    if there is not None:
        if not order.overwrite:
            raise PreconditionFailed(f"{write.shown}: exists, and the request says Overwrite: F")
        endpoint.gate.decide(who, Verb.MODIFY, path)
    absent, only, named = not (order.overwrite and may_modify), None, ""
    if not order.push:  # conditions speak of the request's own path
        check_conditions(call, there)
        absent = absent or call.headers.get("if-none-match", "").strip() == "*"
        only = there.version if there is not None and "if-match" in call.headers else None
        named = upload_id(call.headers.get("x-upload-id", ""))
    return Target(endpoint.store, path, only, absent, named)


async def _there(endpoint: Endpoint, path: str) -> Stat | None:
    try:
        return await endpoint.store.stat(path)
    except NotFound:
        return None


async def _other(call: Call, order: Order) -> Identity | None:
    """Who asks on the other side, when that is ours: by ``TransferHeaderAuthorization``, else the same."""
    token = bearer_of(order.fields.get("Authorization"))
    return call.identity if token is None else await call.site.verifier.verify(token, macaroons=True)
