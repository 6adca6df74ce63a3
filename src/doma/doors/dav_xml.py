"""XML of WebDAV: what clients ask and set, read as hostile input; and the pieces answers are made of.

No DTD, no entities, at most 64 KiB, at most 100 properties: each is named again in every entry of a listing.

Source: RFC 4918 §4, §9.1, §9.2, §13, §14; rule W35 of the storage contract.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from xml.etree.ElementTree import Element, ParseError, tostring
from xml.sax.saxutils import escape, quoteattr

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from doma.core.errors import BadRequest

LIMIT = 64 << 10
"""Bytes of a body."""
MOST = 100
"""Properties that one request may name."""
LONGEST = 512
"""Characters of a property's name with its namespace."""
DEEPEST = 100
"""Levels of XML inside a property that is kept."""
_SHORT = 4 << 10
"""Bytes of a body whose meaning is remembered."""

DAV = "{DAV:}"
LCGDM = "{LCGDM:}"
DCACHE = "{http://www.dcache.org/2013/webdav}"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"

XML = 'application/xml; charset="utf-8"'
OPEN = (
    '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:" xmlns:L="LCGDM:"'
    ' xmlns:C="http://www.dcache.org/2013/webdav">\n'
)
CLOSE = "</D:multistatus>\n"
# The namespace of ``xml:`` may be bound to no other prefix.
_PREFIXES = {"DAV:": "D", "LCGDM:": "L", DCACHE[1:-1]: "C", "http://www.w3.org/XML/1998/namespace": "xml"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a PROPFIND asks for: everything, only the names, or the named ones."""

    names: tuple[str, ...] = ()
    """``{namespace}name`` of each; with ``everything`` those to add."""
    everything: bool = True
    only_names: bool = False


def asked(body: bytes) -> Wanted:
    """Read a PROPFIND body; an empty one asks for everything.

    Raises:
        BadRequest: not XML, a DTD or entity, another document, too many properties.

    >>> asked(b'<propfind xmlns="DAV:"><prop><getetag/></prop></propfind>').names
    ('{DAV:}getetag',)
    """
    # Clients send one and the same body again and again.
    return _asked(body) if len(body) <= _SHORT else _asked.__wrapped__(body)


@lru_cache(maxsize=64)
def _asked(body: bytes) -> Wanted:
    if not body.strip():
        return Wanted()
    root = _root(body, "propfind")
    prop, include = root.find(DAV + "prop"), root.find(DAV + "include")
    if root.find(DAV + "propname") is not None:
        return Wanted(everything=False, only_names=True)
    if prop is not None:
        return Wanted(_names(prop), everything=False)
    if root.find(DAV + "allprop") is not None:
        return Wanted(_names(include) if include is not None else ())
    raise BadRequest("PROPFIND: the body must hold prop, allprop or propname in the namespace DAV:")


def changed(body: bytes) -> dict[str, str | None]:
    """What a PROPPATCH sets, as a whole element that needs no context, or removes (None), by property.

    Of several changes of one property the last counts: they are done in the order of the document.

    Raises:
        BadRequest: as for :func:`asked`, nothing is named, or a value is nested too deeply.

    >>> changed(b'<propertyupdate xmlns="DAV:"><set><prop><x xmlns="u:">1</x></prop></set></propertyupdate>')
    {'{u:}x': '<ns0:x xmlns:ns0="u:">1</ns0:x>'}
    """
    root = _root(body, "propertyupdate")
    changes: dict[str, str | None] = {}
    for act in root:
        if act.tag not in {DAV + "set", DAV + "remove"}:
            continue
        for prop in act.findall(DAV + "prop"):
            _names(prop)
            lang = prop.get(_LANG) or act.get(_LANG) or root.get(_LANG)
            for child in prop:
                changes[str(child.tag)] = _kept(child, lang) if act.tag == DAV + "set" else None
    if not changes:
        raise BadRequest("PROPPATCH: the body names no property to set or remove")
    if len(changes) > MOST:
        raise BadRequest(f"PROPPATCH: at most {MOST} properties may be named")
    return changes


def text(value: str) -> str:
    r"""Any text as XML content; two characters that a name may hold and XML may not become U+FFFD.

    >>> text("a<b\uffff")
    'a&lt;b�'
    """
    if not value.isascii():
        value = value.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
    return escape(value)


def tags(name: str) -> tuple[str, str]:
    """The opening and closing tag of a property in one of our own namespaces."""
    space, _, local = name[1:].rpartition("}")
    prefix = _PREFIXES[space]
    return f"<{prefix}:{local}>", f"</{prefix}:{local}>"


def element(name: str) -> str:
    """The empty element of a property, also of one that only the client knows."""
    if not name.startswith("{"):
        return f'<{name} xmlns=""/>'
    space, _, local = name[1:].rpartition("}")
    prefix = _PREFIXES.get(space)
    if prefix is not None:
        return f"<{prefix}:{local}/>"
    return f"<x:{local} xmlns:x={quoteattr(space)}/>"


def propstat(names: str, status: int, why: str = "", said: str = "") -> str:
    """The outcome of some properties.

    Args:
        names: Their elements.
        status: Of HTTP.
        why: Element of the precondition that failed, if RFC 4918 names one.
        said: For people.
    """
    error = f"<D:error><D:{why}/></D:error>" if why else ""
    told = f"<D:responsedescription>{text(said)}</D:responsedescription>" if said else ""
    return f"<D:propstat><D:prop>{names}</D:prop>{_status(status)}{error}{told}</D:propstat>"


def failures(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The multistatus of what failed in a collection: the problem object of each by its address."""
    told = "".join(
        f"<D:response><D:href>{escape(href)}</D:href>{_status(problem['status'])}"
        f"<D:responsedescription>{text(problem['detail'])}</D:responsedescription></D:response>\n"
        for href, problem in parts.items()
    )
    return f"{OPEN}{told}{CLOSE}"


def _status(status: int) -> str:
    return f"<D:status>HTTP/1.1 {status} {HTTPStatus(status).phrase}</D:status>"


def _kept(prop: Element, lang: str | None) -> str:
    waiting = [(prop, 1)]
    while waiting:  # ``tostring`` calls itself for each level
        one, depth = waiting.pop()
        if depth > DEEPEST:
            raise BadRequest(f"PROPPATCH: a property may hold at most {DEEPEST} levels of XML")
        waiting += [(child, depth + 1) for child in one]
    prop.tail = None
    if lang and _LANG not in prop.attrib:
        prop.set(_LANG, lang)
    # A carriage return that came as a character reference has to go as one, or it would become a line feed.
    return tostring(prop, encoding="unicode").replace("\r", "&#13;")


def _root(body: bytes, name: str) -> Element:
    try:
        root = fromstring(body, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except (ParseError, ValueError, LookupError) as e:  # defused refusals are ValueErrors
        text = str(e) if isinstance(e, ParseError) else "document types and entities are not accepted"
        raise BadRequest(f"the body is not acceptable XML: {text}") from e
    assert isinstance(root, Element)
    if root.tag != DAV + name:
        raise BadRequest(f"the body must be a {name} element in the namespace DAV:")
    return root


def _names(prop: Element) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(str(child.tag) for child in prop))
    if len(names) > MOST:
        raise BadRequest(f"at most {MOST} properties may be named")
    if any(len(name) > LONGEST for name in names):
        raise BadRequest(f"the name of a property may have at most {LONGEST} characters")
    return names
