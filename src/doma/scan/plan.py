"""Decisions of a scan as pure functions: signed tickets, and which row groups need no reading.

Source: scan.md §2 (tickets) and §3 (row-group statistics).
"""

import hashlib
import hmac
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from doma.auth.model import Identity
from doma.core.errors import BadRequest, Forbidden, LimitExceeded, PreconditionFailed
from doma.scan.grammar import COMPARE, Program, Step
from doma.scan.jsontext import MAX_BYTES

MAX_TICKET = 64 << 10
_MAGIC = b"doma1"
_MAC = hashlib.sha256().digest_size
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


@dataclass(frozen=True, slots=True)
class FileRef:
    """One version of one file of an endpoint."""

    endpoint: str
    path: str
    version: str

    @property
    def name(self) -> str:
        """As in a query's ``from``."""
        return f"/{self.endpoint}{self.path}"


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to one part of one planned scan.

    Args:
        scan: Number of the scan, for statistics and cancelling.
        query: JSON text.
        files: All files of the snapshot: the schema comes from all of them.
        start: First file of this part.
        stop: One behind its last file.
        owner: ``issuer#subject`` of whom it was made for.
        expires: Unix seconds.
    """

    scan: str
    query: str
    files: tuple[FileRef, ...]
    start: int
    stop: int
    owner: str
    expires: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a planned scan that can be fetched on its own."""

    ticket: bytes
    rows: int
    """-1: only the scan itself can say."""
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned scan."""

    scan: str
    schema: pa.Schema
    parts: tuple[Part, ...]
    rows: int


def owner_of(identity: Identity | None) -> str:
    """Whom a ticket is bound to; nobody is ``#``."""
    return "#" if identity is None else f"{identity.issuer}#{identity.subject}"


def seal(ticket: Ticket, key: bytes) -> bytes:
    """The signed bytes of a ticket.

    Raises:
        LimitExceeded: more than 64 KiB.
    """
    files = [[f.endpoint, f.path, f.version] for f in ticket.files]
    body = [ticket.scan, ticket.query, files, ticket.start, ticket.stop, ticket.owner, ticket.expires]
    packed = zlib.compress(json.dumps(body).encode())
    sealed = _MAGIC + hmac.digest(key, packed, "sha256") + packed
    if len(sealed) > MAX_TICKET:
        raise LimitExceeded(
            f"query: its ticket has {len(sealed)} bytes, at most {MAX_TICKET} fit; name fewer files or values"
        )
    return sealed


def unseal(data: bytes, key: bytes, owner: str, now: float) -> Ticket:
    """The ticket in signed bytes, if it is whole, in time and the caller's own.

    Raises:
        BadRequest: not made here, or changed. PreconditionFailed: expired. Forbidden: somebody else's.
    """
    head, mac, packed = data[: len(_MAGIC)], data[len(_MAGIC) :][:_MAC], data[len(_MAGIC) + _MAC :]
    # Nothing is unpacked before the signature is known to be ours.
    if (
        len(data) > MAX_TICKET
        or head != _MAGIC
        or not hmac.compare_digest(mac, hmac.digest(key, packed, "sha256"))
    ):
        raise BadRequest("ticket: not signed here; get one by GetFlightInfo", reason="bad-ticket")
    text = zlib.decompressobj().decompress(packed, 4 * MAX_BYTES)
    scan, query, files, start, stop, holder, expires = json.loads(text)
    if now >= expires:
        raise PreconditionFailed("ticket: expired; get a new one by GetFlightInfo", reason="expired-ticket")
    if holder != owner:
        raise Forbidden("ticket: made for somebody else; get your own by GetFlightInfo")
    return Ticket(scan, query, tuple(FileRef(*f) for f in files), start, stop, holder, expires)


def can_skip(where: Program, bounds: Callable[[str], tuple[int, int] | None]) -> bool:
    """Whether no row of a group can pass, judged by the bounds of its integer columns.

    Only where evaluation cannot fail on any row, so that an error never depends on statistics.

    Args:
        where: The cut.
        bounds: Least and greatest value of a column in the group; None: unknown.
    """
    if not where.total():
        return False
    steps = where.steps
    work = [len(steps) - 1]
    while work:
        step = steps[work.pop()]
        if step.op == "and":
            work.extend(step.args)
        elif step.op in COMPARE and _hopeless(step, steps, bounds):
            return True
    return False


def _hopeless(step: Step, steps: tuple[Step, ...], bounds: Callable[[str], tuple[int, int] | None]) -> bool:
    left, right = (steps[arg] for arg in step.args)
    op = step.op
    if left.op == "lit":
        left, right, op = right, left, _FLIP[op]
    if left.op != "col" or right.op != "lit" or len(left.value) != 1:
        return False
    value: Any = right.value.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    known = bounds(left.value[0])
    if known is None:
        return False
    low, high = known  # Python compares int with float exactly
    return {
        "<": low >= value,
        "<=": low > value,
        ">": high <= value,
        ">=": high < value,
        "==": value < low or value > high,
        "!=": low == high == value,
    }[op]
