"""Other places of the same file, as an HTTP server names them in ``Link`` (Metalink/HTTP).

Nothing is believed of them but that they may be asked: who uses one must be allowed to go there and must
compare what it has.

Source: RFC 6249 §2, §3; RFC 8288 §3.
"""

MOST = 16
"""Places that are looked at."""
LONGEST = 16 << 10
"""Characters of the field that are looked at."""
_LAST = 1_000_000
"""The priority of a place that has none (RFC 6249 §3.1: 1 is best)."""


def duplicates(field: str) -> tuple[str, ...]:
    """URLs with ``rel=duplicate`` in a ``Link`` field, the preferred first.

    >>> duplicates('<https://b/f>; rel=duplicate; pri=2, <c>; rel=up, <https://a/f>; rel="duplicate"; pri=1')
    ('https://a/f', 'https://b/f')
    """
    found = []
    for number, part in enumerate(field[:LONGEST].split("<")[1:]):
        url, closed, rest = part.partition(">")
        said = dict(_parameter(word) for word in rest.rstrip(", ").split(";")[1:])
        if closed and "duplicate" in said.get("rel", "").lower().split():
            priority = said.get("pri", "")
            weight = (
                int(priority) if priority.isascii() and priority.isdigit() and len(priority) < 7 else _LAST
            )
            found.append((weight, number, url.strip()))
    return tuple(url for _, _, url in sorted(found)[:MOST])


def _parameter(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name.strip().lower(), value.strip().strip('"')
