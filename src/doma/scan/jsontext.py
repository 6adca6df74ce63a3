"""JSON to values and back without recursion: a query may nest deeper than the interpreter's stack.

The standard library's reader and writer call themselves for every level and fail with RecursionError at a
depth that depends on the caller. Here depth and size are limits of the query language with a clear error.

Source: RFC 8259; limits of scan.md §3.
"""

import json
import math
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in the stubs, in every CPython
from typing import Any

from doma.core.errors import BadQuery, LimitExceeded

MAX_BYTES = 4 << 20
MAX_NESTING = 10_000
"""JSON levels: an expression of depth 2000 takes up to four of them a level."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None}
_MAX_DIGITS = 4000


def read(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        LimitExceeded: more than 4 MiB, or nested too deeply.
        BadQuery: not JSON, a key given twice, ``NaN`` or ``Infinity`` as bare words.

    >>> read('{"a": [1, 2.5, "x", null]}')
    {'a': [1, 2.5, 'x', None]}
    """
    if len(text) > MAX_BYTES:
        raise LimitExceeded(f"query: {len(text)} bytes, the limit is {MAX_BYTES}; ask for less at once")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as e:
            raise BadQuery(f"query: byte {e.start} is not UTF-8; send JSON in UTF-8") from e
    return _Reader(text).document()


class _Reader:
    """One text and a place in it; open arrays and objects stand on an own stack."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def document(self) -> Any:
        root: list[Any] = []
        stack: list[list[Any] | dict[str, Any]] = []
        keys: list[str] = []  # the open key of every object on the stack
        target: list[Any] | dict[str, Any] = root
        while True:
            value = self._value()
            if isinstance(target, dict):
                target[keys[-1]] = value
            else:
                target.append(value)
            if isinstance(value, list | dict) and not self._closes(value):
                stack.append(target)
                target = value
                if len(stack) > MAX_NESTING:
                    raise LimitExceeded(f"query: nested deeper than {MAX_NESTING} JSON levels; flatten it")
                if isinstance(value, dict):
                    keys.append(self._key(value))
                continue
            while stack:
                if self._take(","):
                    if isinstance(target, dict):
                        keys[-1] = self._key(target)
                    break
                self._expect("}" if isinstance(target, dict) else "]")
                if isinstance(target, dict):
                    keys.pop()
                target = stack.pop()
            if not stack:
                break
        self._skip()
        if self.at != len(self.text):
            raise self._wrong("more text after the value")
        return root[0]

    def _skip(self) -> str:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.text[self.at : self.at + 1]

    def _take(self, sign: str) -> bool:
        found = self._skip() == sign
        self.at += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._wrong(f"{sign!r} is missing")

    def _closes(self, value: list[Any] | dict[str, Any]) -> bool:
        return self._take("}" if isinstance(value, dict) else "]")

    def _key(self, target: dict[str, Any]) -> str:
        if self._skip() != '"':
            raise self._wrong("a key in quotes is missing")
        key = self._string()
        if key in target:
            raise self._wrong(f"the key {key[:50]!r} stands twice")
        self._expect(":")
        return key

    def _string(self) -> str:
        try:
            value, self.at = scanstring(self.text, self.at + 1, True)
        except json.JSONDecodeError as e:
            raise self._wrong(e.msg) from e
        if not value.isascii() and any("\ud800" <= c < "\ue000" for c in value):
            raise self._wrong("half a character (a lone surrogate)")
        return str(value)

    def _value(self) -> Any:
        sign = self._skip()
        if sign == "{":
            self.at += 1
            return {}
        if sign == "[":
            self.at += 1
            return []
        if sign == '"':
            return self._string()
        match = _NUMBER.match(self.text, self.at)
        if match:
            self.at = match.end()
            if match.end() - match.start() > _MAX_DIGITS:
                raise self._wrong("a number with too many digits")
            return float(match[0]) if match[1] or match[2] else int(match[0])
        for word, value in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        raise self._wrong("no JSON value")

    def _wrong(self, what: str) -> BadQuery:
        return BadQuery(f"query: {what} at character {self.at}; send valid JSON", position=self.at)


def write(value: Any) -> str:
    """The compact JSON text of a value made of dict, list, tuple, str, int, float, bool, None.

    Raises:
        BadQuery: another type, or a float that JSON cannot say (write it as a typed literal string).

    >>> write({"a": [1, "x", None]})
    '{"a":[1,"x",null]}'
    """
    out: list[str] = []
    work: list[tuple[bool, Any]] = [(False, value)]  # (is text already, text or value), last first
    while work:
        done, item = work.pop()
        if done:
            out.append(item)
        elif isinstance(item, dict):
            work.append((True, "}"))
            pairs = list(item.items())
            for position in range(len(pairs) - 1, -1, -1):
                work.append((False, pairs[position][1]))
                work.append((True, ("," if position else "") + json.dumps(str(pairs[position][0])) + ":"))
            work.append((True, "{"))
        elif isinstance(item, list | tuple):
            work.append((True, "]"))
            for position in range(len(item) - 1, -1, -1):
                work.append((False, item[position]))
                if position:
                    work.append((True, ","))
            work.append((True, "["))
        elif item is None or isinstance(item, str | bool | int):
            out.append(json.dumps(item))
        elif isinstance(item, float) and math.isfinite(item):
            out.append(repr(item))
        else:
            raise BadQuery(
                f"query: {item!r:.60} cannot be written as JSON; give a number, text or truth value"
            )
    return "".join(out)
