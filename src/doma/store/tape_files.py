"""The rows of files on tape. Every function is the work of one transaction, or a part of it.

A change of state names the states it may begin from, and an act of the drives its attempt number: what comes
too late changes nothing. Events are written last, in the same transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, insert, or_, select, update

from doma.core.events import Event
from doma.db import outbox
from doma.store.protocol import Locality, Stat
from doma.store.tape_library import Place
from doma.store.tape_plan import ARCHIVE, Load
from doma.store.tape_stages import advance, chunks
from doma.store.tape_tables import COPIES, LOCALITY, OPEN, Held, Stage, files, staged


@dataclass(frozen=True, slots=True)
class TapeFile:
    """One content that was written to a tape endpoint; see :data:`doma.store.tape_tables.files`."""

    id: str
    endpoint: str
    path: str
    version: str
    disk: str
    size: int
    modified: float
    checksums: Mapping[str, str]
    state: Held = Held.DISK
    attempt: int = 0
    since: float = 0.0
    ready: float = 0.0
    used: float = 0.0
    activity: str = ""
    cartridge: str | None = None
    position: int | None = None
    error: str | None = field(default=None, compare=False)

    @property
    def place(self) -> Place | None:
        """Where it is on tape, as far as that is known."""
        if self.cartridge is None or self.position is None:
            return None
        return Place(self.cartridge, self.position)

    def is_here(self, found: Stat) -> bool:
        """Whether what lies in the buffer is the copy, and is to stay what it is."""
        return found.version == self.disk and self.state in {*COPIES, Held.EVICTING}

    def stat(self, found: Stat) -> Stat:
        """What clients see, from what lies in the buffer: the copy or the stub."""
        here = self.is_here(found)
        locality = LOCALITY[self.state]
        if not here and locality is Locality.DISK_AND_TAPE:
            locality = Locality.TAPE  # evicted, and its row does not say so yet
        return replace(
            found,
            size=self.size,
            version=self.version,
            modified=self.modified,
            checksums={**self.checksums, **found.checksums} if here else self.checksums,
            locality=locality,
        )


def _all(tx: Connection, where: ColumnElement[bool], *order: Any, limit: int | None = None) -> list[TapeFile]:
    rows = tx.execute(select(files).where(where).order_by(*order).limit(limit))
    return [TapeFile(**{**row._mapping, "state": Held(row.state)}) for row in rows]


def by_disk(tx: Connection, endpoint: str, versions: Iterable[str]) -> dict[str, TapeFile]:
    """The files whose copies or stubs have these versions in the buffer."""
    c, found = files.c, dict[str, TapeFile]()
    for some in chunks(versions):
        mine = and_(c.endpoint == endpoint, c.disk.in_(some))
        found |= {file.disk: file for file in _all(tx, mine)}
    return found


def by_id(tx: Connection, ident: str) -> TapeFile | None:
    """One file by its id."""
    return next(iter(_all(tx, files.c.id == ident)), None)


def at_paths(tx: Connection, endpoint: str, paths: Iterable[str]) -> dict[str, list[TapeFile]]:
    """What was last seen at each of some paths and was not deleted."""
    c, found = files.c, dict[str, list[TapeFile]]()
    for some in chunks(paths):
        for file in _all(tx, and_(c.endpoint == endpoint, c.path.in_(some), c.state != Held.DOOMED)):
            found.setdefault(file.path, []).append(file)
    return found


def at(tx: Connection, endpoint: str, path: str, *, below: bool = False) -> list[TapeFile]:
    """What was last seen at a path (or anywhere below it) and was not deleted."""
    c = files.c
    here = c.path == path
    if below:
        lead = path.rstrip("/") + "/"
        here = or_(here, func.substr(c.path, 1, len(lead)) == lead)
    return _all(tx, and_(c.endpoint == endpoint, here, c.state != Held.DOOMED))


def in_state(tx: Connection, endpoint: str, *states: Held, limit: int | None = None) -> list[TapeFile]:
    """Files in some states, the longest waiting first."""
    c = files.c
    return _all(tx, and_(c.endpoint == endpoint, c.state.in_(states)), c.since, limit=limit)


def page(tx: Connection, endpoint: str, after: str, limit: int) -> list[TapeFile]:
    """All files, in pages by id."""
    c = files.c
    return _all(tx, and_(c.endpoint == endpoint, c.id > after), c.id, limit=limit)


def add(tx: Connection, new: Iterable[TapeFile], replaced: Iterable[str], now: float) -> None:
    """New contents were published, in the place of others."""
    for some in chunks(new):
        values = [{name: getattr(file, name) for name in TapeFile.__slots__} for file in some]
        tx.execute(insert(files), [row | {"checksums": dict(row["checksums"])} for row in values])
    doom(tx, replaced, now)


def doom(tx: Connection, idents: Iterable[str], now: float) -> None:
    """Give files up: from now on they do not exist for clients."""
    for some in chunks(idents):
        tx.execute(update(files).where(files.c.id.in_(some)).values(state=Held.DOOMED, since=now, ready=0.0))
        fail(tx, some, now, "the file was deleted or replaced")


def forget(tx: Connection, ident: str) -> None:
    """Drop the row of a file that is nowhere any more."""
    tx.execute(delete(files).where(files.c.id == ident))


def move(tx: Connection, endpoint: str, source: str, target: str) -> None:
    """Follow a rename of a file or of a directory: also what is doomed in it and still lies there."""
    c, lead = files.c, source + "/"
    here = c.endpoint == endpoint
    tx.execute(update(files).where(here, c.path == source).values(path=target))
    below = func.substr(c.path, 1, len(lead)) == lead
    moved = target + "/" + func.substr(c.path, len(lead) + 1)
    tx.execute(update(files).where(here, below).values(path=moved))


def change(
    tx: Connection,
    ident: str,
    before: Iterable[Held],
    values: Mapping[str, Any],
    *,
    attempt: int | None = None,
) -> bool:
    """Change a row that is in one of some states, and at this attempt; False if it is not."""
    mine = and_(files.c.id == ident, files.c.state.in_(list(before)))
    if attempt is not None:
        mine = and_(mine, files.c.attempt == attempt)
    return tx.execute(update(files).where(mine).values(**values)).rowcount == 1


def touch(tx: Connection, used: Mapping[str, float]) -> None:
    """Note when files were last read."""
    for ident, moment in used.items():
        tx.execute(update(files).where(files.c.id == ident).values(used=moment))


# --- the drives ---


def loads(tx: Connection, endpoint: str, now: float) -> list[Load]:
    """What waits for a drive, by cartridge and activity; files to archive have no cartridge."""
    c = files.c
    ready = and_(c.endpoint == endpoint, c.ready <= now)
    count, since = func.count().label("files"), func.min(c.since).label("since")
    recalls = select(c.cartridge, c.activity, count, since).where(ready, c.state == Held.QUEUED)
    found = [
        Load(row.cartridge, row.activity, row.files, row.since)
        for row in tx.execute(recalls.group_by(c.cartridge, c.activity))
    ]
    row = tx.execute(select(count, since).where(ready, c.state == Held.DISK)).one()
    return [*found, Load("", ARCHIVE, row.files, row.since)] if row.files else found


def claim(tx: Connection, endpoint: str, cartridge: str, now: float, limit: int) -> list[TapeFile]:
    """Take what a drive does next: recalls from a cartridge, or (no cartridge) files to archive."""
    c = files.c
    before, after = (Held.QUEUED, Held.RECALLING) if cartridge else (Held.DISK, Held.ARCHIVING)
    mine = and_(c.endpoint == endpoint, c.state == before, c.ready <= now)
    if cartridge:
        mine = and_(mine, c.cartridge == cartridge)
    wanted = select(c.id).where(mine).order_by(c.position if cartridge else c.since).limit(limit)
    idents = list(tx.execute(wanted.with_for_update(skip_locked=True)).scalars())
    taken = update(files).where(c.id.in_(idents)).values(state=after, attempt=c.attempt + 1)
    tx.execute(taken)
    if cartridge:
        begin(tx, idents, now)
    return _all(tx, c.id.in_(idents), c.position if cartridge else c.since)


def give_back(tx: Connection, endpoint: str, idents: Iterable[str] | None = None) -> None:
    """Return what was claimed and not done: all of it (after a kill), or some."""
    c = files.c
    for running, waiting in ((Held.ARCHIVING, Held.DISK), (Held.RECALLING, Held.QUEUED)):
        mine = and_(c.endpoint == endpoint, c.state == running)
        if idents is not None:
            mine = and_(mine, c.id.in_(list(idents)))
        tx.execute(update(files).where(mine).values(state=waiting))


# --- eviction ---


def copied(tx: Connection, endpoint: str) -> int:
    """Bytes of copies in the buffer."""
    c = files.c
    mine = and_(c.endpoint == endpoint, c.state.in_((*COPIES, Held.EVICTING)))
    return int(tx.execute(select(func.sum(c.size)).where(mine)).scalar() or 0)


def _unpinned(now: float) -> ColumnElement[bool]:
    s = staged.c
    wanted = or_(s.state.in_(OPEN), and_(s.state == Stage.COMPLETED, s.pinned_until > now))
    return ~exists().where(s.file == files.c.id, wanted)


def evictable(tx: Connection, endpoint: str, now: float, limit: int) -> list[TapeFile]:
    """Copies that are safely on tape and that nobody has pinned, the longest unread first."""
    c = files.c
    return _all(tx, and_(c.endpoint == endpoint, c.state == Held.BOTH, _unpinned(now)), c.used, limit=limit)


def begin_eviction(tx: Connection, ident: str, now: float) -> bool:
    """Say that a copy is going; False if it was pinned or changed meanwhile."""
    mine = and_(files.c.id == ident, files.c.state == Held.BOTH, _unpinned(now))
    return tx.execute(update(files).where(mine).values(state=Held.EVICTING, attempt=0)).rowcount == 1


def end_eviction(tx: Connection, file: TapeFile, disk: str, now: float) -> bool:
    """A stub stands in the place of the copy; somebody may want the file back already."""
    s = staged.c
    waits = tx.execute(select(s.activity).where(s.file == file.id, s.state.in_(OPEN)).limit(1)).first()
    state = Held.TAPE if waits is None else Held.QUEUED
    values: dict[str, Any] = {"disk": disk, "state": state, "since": now, "ready": 0.0, "attempt": 0}
    if waits is not None:
        values["activity"] = waits.activity
    done = change(tx, file.id, (Held.EVICTING,), values)
    if done:
        tell(tx, "file.evicted", file, now)
    return done


def stop_eviction(tx: Connection, file: TapeFile, now: float) -> None:
    """The copy stays after all."""
    if change(tx, file.id, (Held.EVICTING,), {"state": Held.BOTH}):
        online(tx, file, now)


# --- what the requests see of it ---


def begin(tx: Connection, idents: Sequence[str], now: float) -> None:
    """The recall of files has begun."""
    for some in chunks(idents):
        advance(tx, staged.c.file.in_(some), (Stage.SUBMITTED,), Stage.STARTED, now)


def online(tx: Connection, file: TapeFile, now: float) -> None:
    """A file can be read: whoever waits for it has it, pinned."""
    advance(tx, staged.c.file == file.id, OPEN, Stage.COMPLETED, now)


def fail(tx: Connection, idents: Sequence[str], now: float, why: str) -> None:
    """Files will not come: whoever waits for them is told."""
    advance(tx, staged.c.file.in_(idents), OPEN, Stage.FAILED, now, error=why)


def tell(tx: Connection, kind: str, file: TapeFile, now: float, **facts: Any) -> None:
    """Write what has happened to a file."""
    data = {"endpoint": file.endpoint, "size": file.size, **facts}
    outbox.append(tx, Event(kind, f"/{file.endpoint}{file.path}", data), now)
