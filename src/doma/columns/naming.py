"""Names of result objects.

Source: servicex.md §5 of the project's contracts.
"""

import hashlib

from doma.core.url import redacted

LONGEST = 255


def object_name(url: str, format_: str = "parquet") -> str:
    """The object that holds the result of an input: its URL with ``:`` for ``/``; Parquet adds its suffix.

    Tokens and signatures of the URL are left out; a digest of all of it tells such inputs apart.

    >>> object_name("https://a.org/d/1.root")
    'https:::a.org:d:1.root.parquet'
    >>> object_name("https://a.org/d/1.root", "root-file")
    'https:::a.org:d:1.root'
    >>> len(object_name("https://a.org/" + "x" * 300))
    255
    >>> object_name("https://a.org/1.root?authz=hush", "root-file")
    'https:::a.org:1.root?authz=.6ccff0b25669536c32748bd9a525439d'
    """
    shown = redacted(url)
    if shown != url:
        url = f"{shown.replace('***', '')}.{hashlib.sha256(url.encode()).hexdigest()[:32]}"
    name = url.replace("/", ":") + (".parquet" if format_ == "parquet" else "")
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    return f"_{digest}{name[len(digest) + 1 - LONGEST :]}"
