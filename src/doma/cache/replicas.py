"""The places that hold one object: which to ask first, and whether they hold the same.

A *replica* is the object at one origin. Versions of different origins cannot be compared: that a second one
holds what was begun at the first is shown by size and a checksum, or by size and modification time.

Source: cache contract O4, O11, O12, F10, F11.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from doma.cache.lanes import Lanes, Turn
from doma.cache.record import Record
from doma.core.errors import DomaError, Forbidden, NotFound, StorageUnavailable, Unauthenticated, Unsupported
from doma.store.http_status import is_strong
from doma.store.protocol import Reader, Stat, Store


class Probed(Protocol):
    """What an origin answered to "is it still this version?"."""

    @property
    def stat(self) -> Stat | None:
        """None: not modified."""

    @property
    def cache_control(self) -> str: ...
    @property
    def age(self) -> float: ...
    @property
    def duplicates(self) -> Sequence[str]: ...


@runtime_checkable
class CanProbe(Protocol):
    """A store that speaks HTTP's language of freshness."""

    async def probe(self, path: str, *, if_none_match: str | None = None) -> Probed:
        """Like ``stat``, with a condition. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An origin's word on one object."""

    stat: Stat | None
    """None: unchanged."""
    cache_control: str = ""
    age: float = 0.0
    replica: str = ""
    """Whose word it is."""
    duplicates: Sequence[str] = ()
    """URLs at which it says that the same is."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One object at one origin."""

    name: str
    """Of the origin: ``https://host/prefix``."""
    store: Store
    path: str

    @property
    def server(self) -> str:
        """``host:port`` of the origin, as far as its name tells."""
        return urlsplit(self.name).netloc or self.name

    async def open(self) -> Reader:
        """Open it there."""
        return await self.store.open(self.path)

    async def ask(self, version: str | None) -> Answer:
        """What the origin has now. Raises NotFound, and what the origin's store raises."""
        if isinstance(self.store, CanProbe):
            probed = await self.store.probe(self.path, if_none_match=version)
            age = max(0.0, probed.age or 0.0)
            return Answer(probed.stat, probed.cache_control or "", age, self.name, probed.duplicates)
        return Answer(await self.store.stat(self.path), replica=self.name)


def ordered(replicas: Iterable[Replica], lanes: Lanes, first: str) -> list[Replica]:
    """In the order to be tried: those that work before those that rest, and ``first`` before its equals."""
    return sorted(replicas, key=lambda r: (lanes.resting(r.name) > 0, r.name != first))


async def ask(
    replicas: Iterable[Replica], lanes: Lanes, who: str, record: Record | None, *, usable: bool, by_size: bool
) -> Answer:
    """What the origins have now: the word of the first one that has one.

    Args:
        replicas: Of the object.
        lanes: Slots.
        who: Names the caller.
        record: What is here; its own replica is asked first.
        usable: An equal version at the origin means that what is here is current.
        by_size: As :func:`alike` takes it.

    Raises:
        DomaError: nobody has it; a definite refusal is preferred to an origin that is away or busy, unless
            that one gave what is here: then nothing is known of it.
    """
    home = record.replica if record is not None else ""
    verdict: DomaError | None = None
    trouble: DomaError | None = None
    known = True  # whether nothing that gave what is here kept silent
    for replica in ordered(replicas, lanes, home):
        at_home = record is None or home in {"", replica.name}
        try:
            async with lanes.slot(replica.name, Turn(who)):
                answer = await replica.ask(record.version if record and usable and at_home else None)
                if record is None or at_home or answer.stat is None or not usable:
                    return answer
                if await alike(record, replica, answer.stat, by_size=by_size):
                    return replace(answer, stat=None)
                if answer.stat.modified > record.modified:
                    return answer
        except (NotFound, Unauthenticated, Forbidden) as e:
            verdict = e if verdict is None or at_home else verdict
        except DomaError as e:
            trouble = e if trouble is None or at_home else trouble
            known = known and (record is None or not at_home)
    if verdict is not None and known:
        raise verdict
    raise trouble or verdict or StorageUnavailable("no replica holds this version; try again later")


async def alike(record: Record, replica: Replica, stat: Stat, *, by_size: bool) -> bool:
    """Whether a replica of another origin holds what the record describes.

    Args:
        record: One version, from elsewhere.
        replica: The candidate.
        stat: Of the candidate.
        by_size: Equal size is proof enough, where neither a checksum nor the time says anything.
    """
    if stat.size != record.size or stat.is_dir:
        return False
    if is_strong(record.version) and stat.version == record.version:
        return True
    for algorithm, value in record.checksums.items():
        if (told := stat.checksums.get(algorithm)) is not None:
            return told.lower() == value.lower()
    if stat.modified and int(stat.modified) == int(record.modified):
        return True
    if by_size:
        return True
    for algorithm, value in record.checksums.items():
        try:
            return (await replica.store.checksum(replica.path, algorithm)).lower() == value.lower()
        except Unsupported:
            continue
    return False
