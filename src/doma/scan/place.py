"""Where something stood in a request: kept as a chain, shown as a JSON pointer (RFC 6901)."""

from doma.core.errors import BadQuery

Place = tuple["Place | None", str | int]
"""Where a step stood in the request, as a chain from the inside out: cheap for deep requests."""


def pointer(place: Place | None) -> str:
    """The JSON pointer (RFC 6901) of a place.

    >>> pointer(((None, "where"), 0))
    '/where/0'
    """
    parts: list[str] = []
    while place is not None:
        place, key = place
        parts.append(str(key).replace("~", "~0").replace("/", "~1"))
    return "".join("/" + part for part in reversed(parts))


def shown(place: Place | None) -> str:
    """A pointer short enough for a message."""
    text = pointer(place)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-50:]}"


def wrong(text: str, place: Place | None) -> BadQuery:
    """The error for a place of the request."""
    return BadQuery(f"query{shown(place)}: {text}", pointer=shown(place))
