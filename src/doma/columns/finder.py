"""Data identifiers that clients write, and the Protocol of what resolves them to files.

Source: servicex.md §3.6 and §6 of the project's contracts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from urllib.parse import quote

from doma.columns.model import Grant
from doma.core.errors import BadQuery, LimitExceeded

MAX_FILES = 100_000
"""Files of one dataset."""
MAX_URL = 2000
MAX_REPLICAS = 32
"""Of one file; what a catalogue tells beyond is left out."""

_DID = re.compile(r"([a-z][a-z0-9-]{0,31})://(.+)", re.DOTALL)
_FILES = re.compile(r"(.*)\?files=([0-9]{1,9})", re.DOTALL)


class Lookup(StrEnum):
    """Where the look-up of a dataset stands; the words are ServiceX's own."""

    CREATED = "created"
    LOOKING = "looking"
    COMPLETE = "complete"
    MISSING = "does_not_exist"
    BAD = "bad_name"
    FAILED = "internal_failure"

    @property
    def final(self) -> bool:
        return self not in {Lookup.CREATED, Lookup.LOOKING}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a dataset."""

    name: str
    """What the catalogue calls it; the same file has the same name in every answer."""
    replicas: tuple[str, ...]
    """URLs, in the order in which they should be tried; at least one."""
    bytes: int = 0
    """0: not known; as ``events``."""
    events: int = 0
    adler32: str | None = None


class Finder(Protocol):
    """A catalogue."""

    word: str
    """Scheme of the data identifiers that it resolves."""
    private: bool
    """Whether its answers depend on who asks."""

    async def find(self, name: str, grant: Grant) -> Sequence[FoundFile]:
        """All files of a dataset, in any order.

        Args:
            name: What stands behind ``scheme://``, without ``?files=``.
            grant: Who asks.

        Raises:
            NotFound: there is no such dataset. BadRequest: it can never exist under that name.
            LimitExceeded: too many files. Any other DomaError: the catalogue has trouble; ``retry`` tells.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Did:
    """A data identifier as written, taken apart."""

    word: str
    name: str
    files: int | None = None
    """How many files are wanted; None: all."""

    def __str__(self) -> str:
        return f"{self.word}://{self.name}" + ("" if self.files is None else f"?files={self.files}")

    @classmethod
    def parse(cls, text: str, default: str) -> "Did":
        """Read ``scheme://name[?files=N]``; without a scheme it is the default one's.

        Raises:
            BadQuery: empty, too long, not printable, or a number of files below one.

        >>> Did.parse("user.ada:hists?files=3", "rucio")
        Did(word='rucio', name='user.ada:hists', files=3)
        >>> str(Did.parse("xrootd://root://a.org//d/f?.root", "rucio"))
        'xrootd://root://a.org//d/f?.root'
        """
        if not text or len(text) > 2 * MAX_URL or not text.isprintable() or text != text.strip():
            raise BadQuery(f"did: {text[:100]!a}: a data identifier is a printable text such as scope:name")
        match = _DID.fullmatch(text)
        word, name = (match[1], match[2]) if match else (default, text)
        files = None
        if tail := _FILES.fullmatch(name):
            name, files = tail[1], int(tail[2])
            if files < 1 or not name:
                raise BadQuery(f"did: {text[:200]!r}: the number of files must be at least 1")
        return cls(word, name, files)


def chosen(found: Iterable[FoundFile], files: int | None) -> list[FoundFile]:
    """The files of a dataset in the order of their names; the first ``files`` of them, the same every time.

    Raises:
        LimitExceeded: more than a dataset may have.

    >>> [f.name for f in chosen([FoundFile("b", ("u",)), FoundFile("a", ("v",)), FoundFile("b", ("w",))], 2)]
    ['a', 'b']
    """
    unique: dict[str, FoundFile] = {}
    for file in found:
        unique.setdefault(file.name, file)
        if len(unique) > MAX_FILES:
            raise too_many()
    return [unique[name] for name in sorted(unique)][:files]


NOWHERE = "nowhere:"


def nowhere(name: str) -> str:
    """What stands for the replica of a file that has none: the file fails with this name, and is not lost."""
    return f"{NOWHERE}{quote(name, safe='/:')[: MAX_URL - len(NOWHERE)]}"


def too_many() -> LimitExceeded:
    """A dataset with more files than one may have."""
    return LimitExceeded(f"a dataset may have at most {MAX_FILES} files; ask for a part of it")


def by_preference(urls: Iterable[str], prefer: Sequence[str] = ()) -> tuple[str, ...]:
    """Replicas in the order of trial: preferred prefixes first, then ``root://``, then the rest.

    >>> by_preference(["https://b/1", "root://a//1", "https://c/1"], ["https://c"])
    ('https://c/1', 'root://a//1', 'https://b/1')
    """

    def rank(url: str) -> tuple[int, int]:
        place = next((i for i, prefix in enumerate(prefer) if url.startswith(prefix)), len(prefer))
        return place, 0 if url.startswith(("root:", "roots:")) else 1

    good = (u for u in dict.fromkeys(urls) if len(u) <= MAX_URL and u.isascii() and u.isprintable())
    return tuple(sorted(good, key=rank)[:MAX_REPLICAS])
