"""Which names pass: exact ones, globs, and ``/regular expressions/``, as uproot's filters take them.

Regular expressions run on RE2 (by pyarrow), in time proportional to the name: Python's can be made to run
for ever by a pattern. RE2 has neither look-around nor back-references.
"""

import fnmatch
import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from doma.core.errors import BadQuery

MAX_PATTERN = 1000
_SLASHES = re.compile(r"/(.*)/([iLmsux]*)", re.DOTALL)


class Filter:
    """Names, globs and regular expressions; what matches one of them passes."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = patterns
        self._exact = {p for p in patterns if not _is_pattern(p)}
        self._tests = [_test(p) for p in patterns if _is_pattern(p)]

    def __call__(self, name: str) -> bool:
        return name in self._exact or any(test(name) for test in self._tests)

    def __repr__(self) -> str:
        return repr(self._patterns)

    @property
    def exact(self) -> frozenset[str]:
        """The names among the patterns."""
        return frozenset(self._exact)


def _is_pattern(text: str) -> bool:
    return bool(_SLASHES.fullmatch(text)) or any(c in text for c in "*?[")


def _test(pattern: str) -> Callable[[str], bool]:
    if len(pattern) > MAX_PATTERN:
        raise BadQuery(f"a pattern of {len(pattern)} characters is longer than {MAX_PATTERN}")
    slashes = _SLASHES.fullmatch(pattern)
    if slashes is None:
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    regex, flags = slashes.groups()
    if set(flags) & set("xL"):
        raise BadQuery(f"{pattern!r}: the flags x and L are not offered")
    kept = "".join(f for f in "ims" if f in flags)
    anchored = f"{f'(?{kept})' if kept else ''}\\A(?:{regex})"

    def matches(name: str) -> bool:
        try:
            return bool(pc.match_substring_regex(pa.array([name]), anchored)[0].as_py())
        except pa.ArrowException as e:
            raise BadQuery(
                f"{pattern!r} is no regular expression here: {str(e)[:200]}; "
                "look-around and back-references are not offered"
            ) from e

    matches("")
    return matches
