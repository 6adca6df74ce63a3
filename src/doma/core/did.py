"""Data identifiers: ``scope:name``, as Rucio writes and accepts them.

Source: rucio/rucio ``lib/rucio/common/schema/generic.py`` (``SCOPE``, ``NAME``) and
``common/utils.py`` (``extract_scope``): the default schema; an experiment may allow less.
"""

import re
from dataclasses import dataclass

from doma.core.errors import BadRequest

MAX_SCOPE = 25
MAX_NAME = 250

_SCOPE = re.compile(r"[a-zA-Z_\-.0-9]{1,25}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-_/]{0,249}")


@dataclass(frozen=True, slots=True, order=True)
class Did:
    """A file, dataset or container of the data catalogue.

    >>> str(Did("cms", "/Muon/Run2012B/NANOAOD"))
    'cms:/Muon/Run2012B/NANOAOD'
    """

    scope: str
    name: str

    def __post_init__(self) -> None:
        if not _SCOPE.fullmatch(self.scope):
            raise BadRequest(
                f"{_shown(self.scope)}: a scope has 1 to {MAX_SCOPE} letters, digits, '_', '-' and '.'"
            )
        if not _NAME.fullmatch(self.name.removeprefix("/")) or len(self.name) > MAX_NAME:
            raise BadRequest(
                f"{_shown(self.name)}: a name has 1 to {MAX_NAME} letters, digits, '.', '-', '_' and '/',"
                " and begins with a letter or digit, or '/' and one of these"
            )

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Did":
        """Read ``scope:name``; the first colon separates.

        Raises:
            BadRequest: there is no colon, or a part is not in the grammar.

        >>> Did.parse("user.ada:hist.root").scope
        'user.ada'
        """
        scope, colon, name = text.partition(":")
        if not colon:
            raise BadRequest(f"{_shown(text)}: a data identifier is written scope:name")
        return cls(scope, name)


def _shown(text: str) -> str:
    short = text if len(text) <= 100 else text[:100] + "…"
    return repr(short)
