"""Who has used how much: bytes, files and operations by endpoint, VO and user.

Sums are kept in memory and told once a minute as one event ``storage.usage`` for each user and endpoint, and
as metrics by endpoint and VO (never by user: each label value costs memory for ever). What is written,
deleted or moved is taken from the events that the doors emit anyway, so every door counts alike; reads have
no event of their own and are counted by :meth:`Usage.read`. A kill loses the sums of its last minute.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from doma.auth.model import Identity
from doma.core.events import Emit, Event

EVERY = 60.0
"""Seconds between two tellings."""
MOST = 10_000
"""Users and endpoints that are kept apart between two tellings; more are summed up without a name."""


class Who(NamedTuple):
    """Whom a sum is about."""

    endpoint: str
    issuer: str
    vo: str
    subject: str


@dataclass(slots=True)
class Sums:
    """What somebody has done."""

    operations: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    files_written: int = 0
    files_deleted: int = 0


SUMS = {
    "operations": "Reads, writes and deletions of files.",
    "bytes_read": "Bytes of files read.",
    "bytes_written": "Bytes of files written.",
    "files_written": "Files written.",
    "files_deleted": "Files and directories deleted.",
}
"""What :meth:`Usage.numbers` gives, and its meaning."""


class Usage:
    """The sums of one process; from the event loop only.

    Args:
        emit: Takes every event that passes :meth:`see`, and the sums.
        vos: Issuer to its VO.
        clock: Unix seconds.
    """

    def __init__(self, emit: Emit, vos: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> None:
        self._emit = emit
        self._vos = {issuer.removesuffix("/"): vo for issuer, vo in vos.items()}
        self._clock = clock
        self._since = clock()
        self._sums: dict[Who, Sums] = {}
        self._totals: dict[tuple[str, str], Sums] = {}
        self._owners: dict[tuple[str, str], tuple[Sums, Sums]] = {}
        """The sums that an endpoint's events of one owner count in, until they are told."""

    def read(self, endpoint: str, identity: Identity | None, size: int, operations: int = 1) -> None:
        """Count bytes that were read, by so many requests."""
        who = Who(endpoint, "", "", "")
        if identity is not None:
            who = Who(endpoint, identity.issuer, identity.vo or self._vo(identity.issuer), identity.subject)
        for sums in self._of(who):
            sums.operations += operations
            sums.bytes_read += size

    def see(self, event: Event) -> None:
        """Pass an event on, and count it if it tells of a change to files."""
        self._emit(event)
        kind, data = event.kind, event.data
        endpoint = data.get("endpoint")
        if not isinstance(endpoint, str) or not kind.startswith(("file.", "directory.")):
            return
        key = endpoint, event.owner
        known = self._owners.get(key)
        if known is None:
            issuer, _, subject = event.owner.rpartition("#")
            known = self._of(Who(endpoint, issuer, self._vo(issuer), subject))
            if len(self._owners) < MOST:
                self._owners[key] = known
        for sums in known:
            sums.operations += 1
            if kind.endswith(".landed"):
                sums.files_written += 1
                sums.bytes_written += int(data.get("size", data.get("bytes", 0)) or 0)
            elif kind.endswith(".deleted"):
                sums.files_deleted += 1

    def tell(self) -> None:
        """Emit what was summed up since the last time."""
        now, sums, self._sums = self._clock(), self._sums, {}
        self._owners.clear()
        for who, one in sums.items():
            facts = {"endpoint": who.endpoint, "issuer": who.issuer, "vo": who.vo, "user": who.subject}
            owner = f"{who.issuer}#{who.subject}" if who.subject else ""
            span = {"since": round(self._since, 3), "until": round(now, 3)}
            self._emit(Event("storage.usage", who.endpoint, facts | span | asdict(one), owner))
        self._since = now

    async def run(self) -> None:
        """Tell once a minute, until cancelled; whoever stops it calls :meth:`tell` once more."""
        while True:
            await asyncio.sleep(EVERY)
            self.tell()

    def numbers(self, name: str) -> Mapping[tuple[str, ...], float]:
        """One of the sums of this process since its start, by endpoint and VO: for the metrics."""
        return {key: getattr(sums, name) for key, sums in self._totals.items()}

    def _vo(self, issuer: str) -> str:
        return self._vos.get(issuer.removesuffix("/"), "")

    def _of(self, who: Who) -> tuple[Sums, Sums]:
        sums = self._sums.get(who)
        if sums is None:
            if len(self._sums) >= MOST:
                who = Who(who.endpoint, "", "", "")
            sums = self._sums.setdefault(who, Sums())
        total = self._totals.get((who.endpoint, who.vo))
        if total is None:
            total = self._totals[who.endpoint, who.vo] = Sums()
        return sums, total
