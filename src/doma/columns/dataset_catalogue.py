"""The rows of this server's own catalogue: names for lists of files, private or shared with one's VO.

Every function is one transaction's work.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from doma.columns import dataset_repo
from doma.columns.dataset_tables import catalogue, catalogue_files
from doma.columns.finder import MAX_FILES, FoundFile, too_many
from doma.columns.model import Grant
from doma.core.errors import BadRequest, Conflict, NotFound

WORD = "doma"
"""Scheme of its names."""
BATCH = 500

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/-]{0,249}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A dataset of the catalogue."""

    name: str
    owner: str
    shared: bool
    changed: float
    files: int
    bytes: int
    events: int


def checked_name(name: str) -> str:
    """The name. Raises BadRequest."""
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"{name[:100]!a}: a dataset's name has up to 250 letters, digits and . _ : + / -, and begins"
            " with a letter or digit"
        )
    return name


def put(
    tx: Connection,
    grant: Grant,
    name: str,
    found: Sequence[FoundFile],
    now: float,
    *,
    shared: bool | None = None,
    replace: bool = False,
) -> Entry:
    """Make a dataset, or add files to an own one; a file of a known name takes the place of the old one.

    Args:
        tx: A write transaction.
        grant: Whose it is.
        name: Unique among one's own; among the shared ones of a VO as well.
        found: Files.
        now: Unix seconds.
        shared: Whether everybody of the same issuer may read it; None: as it was, at first not.
        replace: Drop the files that it had.

    Raises:
        BadRequest: the name. Conflict: a shared one of that name is somebody else's. LimitExceeded.
    """
    c, name = catalogue.c, checked_name(name)
    row = tx.execute(select(catalogue).where(c.owner == grant.owner, c.name == name)).one_or_none()
    wide = shared if shared is not None else bool(row and row.shared)
    taken = select(c.id).where(c.issuer == grant.issuer, c.name == name, c.shared, c.owner != grant.owner)
    if wide and tx.execute(taken).first() is not None:
        raise Conflict(f"{WORD}://{name}: somebody else shares a dataset of that name; choose another")
    if row is None:
        id_ = tx.execute(
            insert(catalogue)
            .values(owner=grant.owner, issuer=grant.issuer, name=name, shared=wide, changed=now)
            .returning(c.id)
        ).scalar_one()
    else:
        id_ = row.id
        tx.execute(update(catalogue).where(c.id == id_).values(shared=wide, changed=now))
    _store(tx, id_, found, replace=replace)
    dataset_repo.outdate(tx, WORD, name)
    return next(e for e in listed(tx, grant) if (e.name, e.owner) == (name, grant.owner))


def remove(tx: Connection, grant: Grant, name: str) -> None:
    """Forget an own dataset. Raises NotFound."""
    c = catalogue.c
    row = tx.execute(select(c.id).where(c.owner == grant.owner, c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"{WORD}://{name[:250]}: you have no dataset of that name")
    tx.execute(delete(catalogue_files).where(catalogue_files.c.dataset == row.id))
    tx.execute(delete(catalogue).where(c.id == row.id))
    dataset_repo.outdate(tx, WORD, name)


def listed(tx: Connection, grant: Grant) -> list[Entry]:
    """The datasets that somebody may read, own ones and those that are shared, by name."""
    c, f = catalogue.c, catalogue_files.c
    sums = (func.count(f.id), func.coalesce(func.sum(f.bytes), 0), func.coalesce(func.sum(f.events), 0))
    rows = tx.execute(
        select(c.name, c.owner, c.shared, c.changed, *sums)
        .select_from(catalogue.outerjoin(catalogue_files, f.dataset == c.id))
        .where(_readable(grant))
        .group_by(c.id)
        .order_by(c.name, c.owner)
    )
    return [Entry(r[0], r[1], r[2], r[3], int(r[4]), int(r[5]), int(r[6])) for r in rows]


def files(tx: Connection, grant: Grant, name: str) -> list[FoundFile]:
    """The files of a dataset, the own one before the shared one of that name. Raises NotFound."""
    c, f = catalogue.c, catalogue_files.c
    own_first = (c.owner != grant.owner, c.id)
    row = tx.execute(select(c.id).where(c.name == name, _readable(grant)).order_by(*own_first)).first()
    if row is None:
        raise NotFound(f"{WORD}://{name[:250]}: there is no such dataset among yours and the shared ones")
    found = tx.execute(select(catalogue_files).where(f.dataset == row.id).order_by(f.name))
    return [dataset_repo.file_of(r) for r in found]


def _readable(grant: Grant) -> ColumnElement[bool]:
    c = catalogue.c
    return or_(c.owner == grant.owner, and_(c.issuer == grant.issuer, c.shared))


def _store(tx: Connection, id_: int, found: Sequence[FoundFile], *, replace: bool) -> None:
    f = catalogue_files.c
    if replace:
        tx.execute(delete(catalogue_files).where(f.dataset == id_))
    rows: dict[str, dict[str, Any]] = {
        file.name: {"dataset": id_, **dataset_repo.row_of(file)} for file in found
    }
    names = list(rows)
    for start in range(0, len(names), BATCH):
        part = names[start : start + BATCH]
        tx.execute(delete(catalogue_files).where(f.dataset == id_, f.name.in_(part)))
        tx.execute(insert(catalogue_files), [rows[name] for name in part])
    total = tx.execute(select(func.count()).where(f.dataset == id_)).scalar_one()
    if total > MAX_FILES:
        raise too_many()
