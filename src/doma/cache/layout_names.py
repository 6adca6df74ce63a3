"""Which columns of a file a user's globs name. Pure."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate

from doma.core.errors import BadQuery, UnknownColumn


def chosen(names: Sequence[tuple[str, str]], globs: Iterable[str], tree: str | None, where: str) -> list[int]:
    """The columns that globs name.

    A glob fits a column by its full name or any leading part of it (``Muon_pt`` is ``Muon_pt.list.element``
    and ``Muon_pt._0``), with or without the branches above it.

    Args:
        names: Tree and name of each column.
        globs: ``*``, ``?`` and ``[…]`` as in file names; case matters.
        tree: The tree they are in, or None.
        where: The file, for messages.

    Raises:
        UnknownColumn: a glob fits nothing, or there is no such tree; the text has the nearest names.
        BadQuery: no glob at all.

    >>> chosen([("Events", "Muon_pt"), ("Events", "Jet_pt._0"), ("Runs", "run")], ["*_pt"], None, "f.root")
    [0, 1]
    """
    trees = sorted({found for found, _ in names})
    if tree is not None and tree not in trees:
        raise _unknown(tree, trees, where, "tree")
    forms = [(n, form) for n, (of, name) in enumerate(names) if tree in (None, of) for form in _forms(name)]
    found: set[int] = set()
    for glob in (given := list(globs)):
        fits = re.compile(translate(glob)).match
        matching = {n for n, form in forms if fits(form)}
        if not matching:
            raise _unknown(glob, [form for _, form in forms], where, "column")
        found |= matching
    if not given:
        raise BadQuery(f"{where}: no columns are named; name some, as in 'Muon_*'", path=where)
    return sorted(found)


def _forms(name: str) -> Iterator[str]:
    for whole in {name, name.rpartition("/")[2]}:
        yield whole
        yield from (whole[: cut.start()] for cut in re.finditer(r"[./]", whole) if cut.start())


def _unknown(name: str, known: list[str], where: str, kind: str) -> UnknownColumn:
    near = difflib.get_close_matches(name, sorted(set(known))[:50_000], 3, 0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"it has {len(set(known))} others"
    return UnknownColumn(f"{where}: no {kind} {name[:200]!r}; {hint}", column=name[:200], near=near)
