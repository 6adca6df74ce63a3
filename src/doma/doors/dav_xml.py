"""What clients ask in XML: PROPFIND and PROPPATCH bodies, read as hostile input.

No DTD, no entities, at most 64 KiB, at most 100 properties: each is named again in every entry of a listing.

Source: RFC 4918 §9.1, §9.2, §14; rule W35 of the storage contract.
"""

from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from doma.core.errors import BadRequest

LIMIT = 64 << 10
"""Bytes of a body."""
MOST = 100
"""Properties that one request may name."""
LONGEST = 512
"""Characters of a property's name with its namespace."""

DAV = "{DAV:}"


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


def changed(body: bytes) -> tuple[str, ...]:
    """The properties that a PROPPATCH sets or removes, as ``{namespace}name``.

    Raises:
        BadRequest: as for :func:`asked`, or nothing is named.
    """
    root = _root(body, "propertyupdate")
    names: list[str] = []
    for change in root:
        if change.tag in {DAV + "set", DAV + "remove"}:
            for prop in change.findall(DAV + "prop"):
                names += _names(prop)
    if not names:
        raise BadRequest("PROPPATCH: the body names no property to set or remove")
    if len(names) > MOST:
        raise BadRequest(f"PROPPATCH: at most {MOST} properties may be named")
    return tuple(dict.fromkeys(names))


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
