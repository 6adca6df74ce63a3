"""The text of an uproot-raw selection: a JSON list of sub-queries, checked key by key.

Source: servicex.md §8.2 of the project's contracts; ``servicex.uproot_raw`` of the client writes it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from doma.columns.raw_filter import Filter
from doma.columns.raw_language import Formula
from doma.core.errors import BadQuery, LimitExceeded

MAX_TEXT = 4 << 20
MAX_PARTS = 1000
MAX_ITEMS = 20_000
"""Of strings in one list."""


@dataclass(frozen=True, slots=True)
class Part:
    """One sub-query."""

    number: int
    """From 1, for messages."""
    trees: tuple[tuple[str, str], ...] = ()
    """Input and output names."""
    expressions: tuple[Formula, ...] | None = None
    """None: every branch that passes the filters."""
    cut: Formula | None = None
    names: Filter | None = None
    types: Filter | None = None
    aliases: tuple[Formula, ...] = ()
    """Named by themselves."""
    must_exist: bool = False
    standard_axis: bool = False
    histograms: Filter | None = None

    @property
    def digest(self) -> tuple[Any, ...]:
        """What the answer depends on, spellings aside."""
        own = (self.trees, self.must_exist, self.standard_axis, repr(self.names), repr(self.types))
        asked = None if self.expressions is None else tuple((f.name, f.shape) for f in self.expressions)
        cut = None if self.cut is None else self.cut.shape
        return (*own, asked, cut, tuple((f.name, f.shape) for f in self.aliases), repr(self.histograms))


def parse_request(text: str) -> tuple[Part, ...]:
    """The sub-queries of a selection.

    Raises:
        BadQuery: what is wrong, in which key of which sub-query. LimitExceeded: too much of it.
    """
    if len(text) > MAX_TEXT:
        raise LimitExceeded(f"selection: {len(text)} characters are more than {MAX_TEXT}")
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as e:
        why = str(e) if isinstance(e, ValueError) else "it is nested too deeply"
        raise BadQuery(f"selection: uproot-raw takes a JSON list of sub-queries: {why[:200]}") from e
    if not isinstance(parts, list) or not parts:
        raise BadQuery("selection: uproot-raw takes a JSON list of one or more sub-queries")
    if len(parts) > MAX_PARTS:
        raise LimitExceeded(f"selection: {len(parts)} sub-queries are more than {MAX_PARTS}")
    return tuple(_part(number, part) for number, part in enumerate(parts, 1))


def _part(number: int, part: Any) -> Part:
    if not isinstance(part, dict):
        raise BadQuery(f"sub-query {number}: it must be an object of keys and values")
    keys = _Keys(number, part)
    trees, histograms = keys.trees(), keys.filter("copy_histograms")
    if not trees and histograms is None:
        raise BadQuery(f"sub-query {number}: it needs a treename or copy_histograms")
    if not trees:
        return Part(number, histograms=histograms)
    return Part(
        number,
        trees,
        keys.formulas("expressions"),
        keys.formula("cut"),
        keys.filter("filter_name"),
        keys.filter("filter_typename"),
        tuple(keys.parsed("aliases", name, text) for name, text in keys.pairs("aliases")),
        keys.flag("fail_on_missing_trees"),
        keys.flag("use_standard_awkward_axis"),
        histograms,
    )


@contextmanager
def naming(number: int, key: str = "") -> Iterator[None]:
    """Say in which sub-query, and in which key of it, something is wrong."""
    try:
        yield
    except (BadQuery, LimitExceeded) as e:
        if e.message.startswith("sub-query "):
            raise
        raise type(e)(f"sub-query {number}{key and f', {key}'}: {e.message}", **e.detail) from e


class _Keys:
    """Values of one sub-query, with messages that name the key."""

    def __init__(self, number: int, part: dict[str, Any]) -> None:
        self._number, self._part = number, part

    def parsed(self, key: str, name: str, text: str) -> Formula:
        with naming(self._number, key):
            return Formula.parse(name, text)

    def formulas(self, key: str) -> tuple[Formula, ...] | None:
        texts = self.strings(key)
        if texts is None:
            return None
        return tuple(self.parsed(key, t, t) for t in dict.fromkeys(texts))

    def formula(self, key: str) -> Formula | None:
        text = self._part.get(key)
        if text is None or text == "":
            return None
        if not isinstance(text, str):
            raise self._wrong(key, "must be a string")
        return self.parsed(key, key, self._clean(key, text))

    def strings(self, key: str) -> tuple[str, ...] | None:
        value = self._part.get(key)
        if value is None:
            return None
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise self._wrong(key, "must be a string or a list of strings")
        if len(values) > MAX_ITEMS:
            raise LimitExceeded(f"sub-query {self._number}, {key}: {len(values)} are more than {MAX_ITEMS}")
        return tuple(self._clean(key, v) for v in values)

    def filter(self, key: str) -> Filter | None:
        values = self.strings(key)
        if not values:
            return None
        with naming(self._number, key):
            return Filter(values)

    def flag(self, key: str) -> bool:
        value = self._part.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "must be true or false")
        return bool(value)

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self._part.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self._wrong(key, "must map names to strings")
        if len(value) > MAX_ITEMS:
            raise LimitExceeded(f"sub-query {self._number}, {key}: {len(value)} are more than {MAX_ITEMS}")
        return tuple((self._clean(key, k), self._clean(key, v)) for k, v in value.items())

    def trees(self) -> tuple[tuple[str, str], ...]:
        key = "treename"
        if isinstance(self._part.get(key), dict):
            return self.pairs(key)
        return tuple((name, name.split(";")[0]) for name in dict.fromkeys(self.strings(key) or ()) if name)

    def _clean(self, key: str, text: str) -> str:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise self._wrong(key, "holds what is no text (NUL, or half of a character)")
        if not text and key != "treename":
            raise self._wrong(key, "holds an empty string")
        return text

    def _wrong(self, key: str, what: str) -> BadQuery:
        return BadQuery(f"sub-query {self._number}, {key}: it {what}")
