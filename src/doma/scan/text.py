"""Cuts as a physicist writes them: ``any(Muon.pt > 20 and abs(Muon.eta) < 2.4) and nMuon >= 2``.

Names are columns; ``Muon.pt`` inside ``any all count sum min max mean`` is the variable of an object of the
collection (the column ``Muon_pt``), and all of one call mean the same object. Another name for the object,
needed where two collections meet: ``any(m in Muon: not any(j in Jet: abs(j.eta - m.eta) < 0.4))``. A bare
list works too: ``sum(Muon_pt) > 50``. Names of any spelling stand in backquotes. Other operators:
``+ - * / // % **``,
``== != < <= > >=``, ``in [1, 2]``, ``and or not`` (or ``&& || !``), ``x[0]``, and functions of the language.

An operator-precedence parser with its own stacks: no recursion, nothing is ever evaluated.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from doma.core.errors import BadQuery, LimitExceeded
from doma.scan.grammar import AGGREGATE, ARITY, COMPARE

MAX_TEXT = 1 << 20
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)"
    r"|(?P<name>`[^`]+`|[^\W\d]\w*(?:\.[^\W\d]\w*)*)|(?P<text>\"(?:[^\"\\]|\\[\"\\])*\"|'(?:[^'\\]|\\['\\])*')"
    r"|(?P<sign>\*\*|//|<=|>=|==|!=|&&|\|\||[-+*/%<>!()\[\],:]))"
)
_RANK = {
    "or": 1, "and": 2, "not": 3, "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 4, "!=": 4, "in": 4,
    "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "neg": 7, "**": 8,
}  # fmt: skip
_ALIASES = {"&&": "and", "||": "or", "!": "not"}
_WORDS = {"true": True, "false": False, "True": True, "False": False, "null": None, "None": None}
_TEXTUAL = frozenset({"starts_with", "ends_with", "contains", "like", "regex"})


@dataclass(slots=True)
class _Value:
    """A piece of the result: JSON, and the objects it speaks of that no call has bound yet."""

    json: Any
    free: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Call:
    """An open bracket: of a function, of a group, of an index or of a list of values."""

    name: str
    at: int
    base: int
    alias: str | None = None
    collection: str | None = None


@dataclass(slots=True)
class _Parser:
    source: str
    tokens: list[tuple[str, str, int]]
    values: list[_Value] = field(default_factory=list)
    signs: list[Any] = field(default_factory=list)
    next: int = 0


def expression(source: str) -> Any:
    """The JSON form of a cut.

    Raises:
        BadQuery: not understood; the message says where.
        LimitExceeded: longer than 1 MiB.

    >>> expression("nMuon >= 2")
    {'>=': [{'col': 'nMuon'}, {'lit': 2}]}
    >>> expression("any(Muon.pt > 20)")
    {'any': [{'each': 'Muon', 'as': 'Muon'}, {'>': [{'var': 'Muon.pt'}, {'lit': 20}]}]}
    """
    if len(source) > MAX_TEXT:
        raise LimitExceeded(f"cut: {len(source)} characters, the limit is {MAX_TEXT}; use the JSON form")
    parser = _Parser(source, _tokens(source))
    operand = True  # whether an operand is expected next
    while parser.next < len(parser.tokens):
        kind, text, at = parser.tokens[parser.next]
        parser.next += 1
        operand = _operand(parser, kind, text, at) if operand else _operator(parser, text, at)
    if operand:
        raise _wrong(parser, len(source), "something is missing at the end")
    _reduce(parser, 0)
    if parser.signs:
        raise _wrong(parser, parser.signs[-1].at, "a bracket is not closed")
    result = parser.values[0]
    if result.free:
        name = min(result.free)
        raise _wrong(
            parser, 0, f"{name}.… is a value of many objects: put it into any(…), all(…), count(…), sum(…)"
        )
    return result.json


def _operand(p: _Parser, kind: str, text: str, at: int) -> bool:
    """Take a token where an operand may begin; whether one is still expected."""
    if kind == "number":
        p.values.append(_Value({"lit": int(text) if text.isdigit() else float(text)}))
        return False
    if kind == "text":
        p.values.append(_Value({"lit": re.sub(r"\\(.)", r"\1", text[1:-1])}))
        return False
    if kind == "name" and text != "not":
        return _name(p, text, at)
    sign = _ALIASES.get(text, text)
    if sign == "not":
        p.signs.append("not")
    elif sign == "-":
        p.signs.append("neg")
    elif sign == "(":
        p.signs.append(_Call("", at, len(p.values)))
    elif (
        sign in ("]", ")")
        and p.signs
        and isinstance(p.signs[-1], _Call)
        and p.signs[-1].base == len(p.values)
    ):
        return _close(p, sign, at)
    elif sign != "+":
        raise _wrong(p, at, f"{text!r} stands where a value is needed")
    return True


def _name(p: _Parser, text: str, at: int) -> bool:
    following = p.tokens[p.next][1] if p.next < len(p.tokens) else ""
    if following == "(" and text[0] != "`":
        call = _Call(text, at, len(p.values))
        p.next += 1
        ahead = p.tokens[p.next : p.next + 4]
        if text in AGGREGATE and len(ahead) == 4 and ahead[1][1] == "in" and ahead[3][1] == ":":
            call.alias, call.collection = ahead[0][1], ahead[2][1].strip("`")
            p.next += 4
        p.signs.append(call)
        return True
    if text in _WORDS:
        p.values.append(_Value({"lit": _WORDS[text]}))
    elif text in ("and", "or", "in"):
        raise _wrong(p, at, f"{text!r} stands where a value is needed")
    elif text[0] == "`":
        p.values.append(_Value({"col": text[1:-1]}))
    elif "." in text:
        p.values.append(_Value({"var": text}, frozenset({text.partition(".")[0]})))
    else:
        p.values.append(_Value({"col": text}))
    return False


def _operator(p: _Parser, text: str, at: int) -> bool:
    """Take a token after an operand; whether an operand is expected next."""
    sign = _ALIASES.get(text, text)
    if sign == "not" and p.next < len(p.tokens) and p.tokens[p.next][1] == "in":
        p.next += 1
        p.values.append(_Value({"not": _members(p, at)}))
        return False
    if sign == "in":
        _reduce(p, _RANK["in"] + 1)
        top = p.values.pop()
        p.values.append(_Value({"in": [top.json, _list(p, at)]}, top.free))
        return False
    if sign == "[":
        _reduce(p, 9)
        p.signs.append(_Call("[", at, len(p.values) - 1))
        return True
    if sign in (")", "]"):
        return _close(p, sign, at)
    if sign == ",":
        _reduce(p, 0)
        if not p.signs or p.signs[-1].name in ("", "["):
            raise _wrong(p, at, "a comma outside of a function")
        return True
    if sign not in _RANK or sign in ("not", "neg"):
        raise _wrong(p, at, f"{text!r} does not continue the expression")
    rank = _RANK[sign]
    if sign in COMPARE:
        _reduce(p, rank + 1)
        if p.signs and isinstance(p.signs[-1], str) and p.signs[-1] in COMPARE:
            raise _wrong(p, at, "comparisons do not chain; write a < b and b < c")
    else:
        _reduce(p, rank + (sign == "**"))
    p.signs.append(sign)
    return True


def _members(p: _Parser, at: int) -> Any:
    _reduce(p, _RANK["in"] + 1)
    top = p.values.pop()
    if top.free:
        raise _wrong(p, at, "write not (x in […]) for a value of objects")
    return {"in": [top.json, _list(p, at)]}


def _list(p: _Parser, at: int) -> list[Any]:
    """The constants in square brackets after ``in``."""
    out: list[Any] = []
    sign = "["
    while True:
        if p.next + 1 >= len(p.tokens) or p.tokens[p.next][1] != sign:
            if sign == "," and p.next < len(p.tokens) and p.tokens[p.next][1] == "]":
                p.next += 1
                return out
            raise _wrong(p, at, "'in' needs a list of constants: in [1, 2]")
        p.next += 1
        if sign == "[" and p.tokens[p.next][1] == "]":
            p.next += 1
            return out
        negative = p.tokens[p.next][1] == "-"
        p.next += negative
        kind, text, place = p.tokens[p.next] if p.next < len(p.tokens) else ("", "", at)
        p.next += 1
        if kind == "number":
            number = int(text) if text.isdigit() else float(text)
            out.append(-number if negative else number)
        elif kind == "text" and not negative:
            out.append(re.sub(r"\\(.)", r"\1", text[1:-1]))
        elif text in ("true", "false") and not negative:
            out.append(_WORDS[text])
        else:
            raise _wrong(p, place, "only constants stand in a list")
        sign = ","


def _reduce(p: _Parser, rank: int) -> None:
    """Apply waiting operators that bind at least so tightly."""
    while p.signs and not isinstance(p.signs[-1], _Call) and _RANK[p.signs[-1]] >= rank:
        sign = p.signs.pop()
        right = p.values.pop()
        if sign == "neg" and isinstance(right.json, dict) and isinstance(right.json.get("lit"), int | float):
            p.values.append(_Value({"lit": -right.json["lit"]}))
        elif sign in ("not", "neg"):
            p.values.append(_Value({sign: right.json}, right.free))
        else:
            left = p.values.pop()
            p.values.append(_Value({sign: [left.json, right.json]}, left.free | right.free))


def _close(p: _Parser, sign: str, at: int) -> bool:
    _reduce(p, 0)
    if not p.signs or (p.signs[-1].name == "[") != (sign == "]"):
        raise _wrong(p, at, f"{sign!r} closes nothing")
    call: _Call = p.signs.pop()
    args = p.values[call.base :]
    del p.values[call.base :]
    free: frozenset[str] = frozenset().union(*(a.free for a in args))
    jsons = [a.json for a in args]
    if call.name == "":
        if len(args) != 1:
            raise _wrong(p, call.at, "an empty bracket")
        p.values.append(args[0])
    elif call.name == "[":
        index = jsons[1].get("lit") if len(jsons) == 2 else None
        if not isinstance(index, int) or isinstance(index, bool):
            raise _wrong(p, call.at, "an index is a whole number: x[0], x[-1]")
        p.values.append(_Value({"at": [jsons[0], index]}, free))
    elif call.name in AGGREGATE and not (call.name in ("min", "max") and len(args) == 2):
        p.values.append(_aggregate(p, call, args))
    else:
        p.values.append(_Value(_function(p, call, jsons), free))
    return False


def _function(p: _Parser, call: _Call, args: list[Any]) -> Any:
    name = {"min": "min2", "max": "max2"}.get(call.name, call.name)
    if name in _TEXTUAL or name == "cast":
        if len(args) != 2 or not isinstance(args[1].get("lit"), str):
            raise _wrong(p, call.at, f"{name} takes a value and a text in quotes")
        return {name: [args[0], args[1]["lit"]]}
    if name == "is_null" and len(args) == 1:
        return {name: args[0]}
    if name not in ARITY or name in _RANK:
        raise _wrong(p, call.at, f"{name!r} is not a function; see the list in the manual")
    low, high = ARITY[name]
    if not low <= len(args) <= high:
        raise _wrong(p, call.at, f"{name} takes {low} arguments, here are {len(args)}")
    return {name: args[0] if high == 1 else args}


def _aggregate(p: _Parser, call: _Call, args: list[_Value]) -> _Value:
    if len(args) != 1:
        raise _wrong(p, call.at, f"{call.name} takes one expression")
    body = args[0]
    if call.alias is not None:
        scope: Any = {"each": call.collection, "as": call.alias}
        return _Value({call.name: [scope, body.json]}, body.free - {call.alias})
    if len(body.free) > 1:
        names = sorted(body.free)
        raise _wrong(
            p,
            call.at,
            f"{' and '.join(names)} meet in one call; name the object: {call.name}(x in {names[0]}: …)",
        )
    if body.free:
        (name,) = body.free
        return _Value({call.name: [{"each": name, "as": name}, body.json]})
    column = body.json.get("col")
    if isinstance(column, str) and call.name == "count":
        return _Value({"count": [{"each": column}]})
    if isinstance(column, str):
        return _Value({call.name: [{"each": {"x": column}, "as": "it"}, {"var": "it.x"}]})
    raise _wrong(p, call.at, f"{call.name} needs objects: write Muon.pt, not Muon_pt, inside it")


def _tokens(source: str) -> list[tuple[str, str, int]]:
    out = []
    at = 0
    end = len(source.rstrip())
    while at < end:
        match = _TOKEN.match(source, at)
        if match is None or match.lastgroup is None:
            shown = source[at : at + 20].strip()
            raise BadQuery(f"cut: {shown!r} at character {at} is not understood; see the manual", position=at)
        out.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        at = match.end()
    if not out:
        raise BadQuery("cut: it is empty; leave it out to get all rows")
    return out


def _wrong(p: _Parser, at: int, what: str) -> BadQuery:
    return BadQuery(f"cut: {what} (at character {at}: {p.source[at : at + 30]!r})", position=at)
