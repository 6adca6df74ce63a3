"""Query parameters of a request for a cached object: which of them might mean another object.

Source: cache contract §2 "Tokens"; the project's decision 17.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import unquote_plus

CREDENTIALS = ("authz", "access_token")
"""Names of parameters that say who asks."""


def telling(query: str, ignored: Iterable[str]) -> str | None:
    """The first parameter that may say which content is meant; None: there is none.

    Args:
        query: As on the wire, without ``?``.
        ignored: Globs of names that say nothing of it, as ``cache.ignore_query``.

    >>> telling("authz=Bearer%20x&X-Amz-Date=1&", ["x-amz-*"]), telling("authz=x&version=1", [])
    (None, 'version')
    """
    globs = [glob.lower() for glob in (*CREDENTIALS, *ignored)]
    for pair in query.split("&"):
        name = unquote_plus(pair.partition("=")[0])
        if pair and not any(fnmatchcase(name.lower(), glob) for glob in globs):
            return name
    return None
