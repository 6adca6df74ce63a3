"""Files of a root:// server by pattern: ``xrootd://root://host//folder/*.root``.

Wildcards (``*``, ``?``, ``[…]``) may stand in any component and never match a ``/``.
"""

from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from urllib.parse import quote

from doma.columns.finder import MAX_FILES, FoundFile, too_many
from doma.columns.model import Grant
from doma.columns.remote_http import guard_of
from doma.core.errors import BadRequest, Conflict, LimitExceeded, NotFound
from doma.core.paths import checked
from doma.core.url import Origin, origin_of
from doma.store.http_trust import Authorities
from doma.store.protocol import Store
from doma.store.xrootd import SCHEMES, XrootdStore

FOLDERS = 1000
"""Folders that are listed for one pattern, one after the other."""


class XrootdFinder:
    """Any root:// server that may be an input.

    Args:
        ca_file: Authorities to trust besides the system's.
        allow: Origins that may lie in a private network.
        token: Gives the token for a URL in the name of who asks, as for inputs.
    """

    word = "xrootd"
    private = True

    def __init__(
        self, ca_file: Authorities, allow: Sequence[str], token: Callable[[Grant, str], Awaitable[str]]
    ) -> None:
        self._ca_file, self._allow, self._token = ca_file, tuple(allow), token

    async def find(self, name: str, grant: Grant) -> Sequence[FoundFile]:
        origin, parts = _taken_apart(name)
        fixed = [quote(part) for part in takewhile(lambda part: not _is_wild(part), parts)]

        async def token() -> str | None:
            return await self._token(grant, f"{origin}//{'/'.join(fixed)}") or None

        guard = guard_of(origin.host, trusted=str(origin) in self._allow)
        store = XrootdStore(f"{origin}//", token=token, ca_file=self._ca_file, allow=guard)
        try:
            return [_file(origin, path, size) for path, size in await matching(store, parts)]
        except NotFound as e:
            raise NotFound(f"xrootd://{name}: nothing is there that matches") from e
        finally:
            await store.close()

    async def close(self) -> None:
        """Nothing is kept."""


async def matching(store: Store, parts: Sequence[str]) -> list[tuple[str, int]]:
    """Paths and sizes of the files that match a path, component by component.

    Raises:
        NotFound: there are none. LimitExceeded: too many folders or files.
    """
    folders, listings = [""], 0
    for part in parts[:-1]:
        if not _is_wild(part):
            folders = [f"{folder}/{part}" for folder in folders]
            continue
        below: list[str] = []
        for folder in folders:
            listings += 1
            if listings > FOLDERS or len(below) > FOLDERS:
                raise LimitExceeded(f"{'/'.join(parts)}: more than {FOLDERS} folders match; narrow it down")
            below += [path for path, _ in await _entries(store, folder, part, folders=True)]
        folders = below
    found: list[tuple[str, int]] = []
    for folder in folders[: FOLDERS + 1]:
        listings += 1
        if listings > FOLDERS:
            raise LimitExceeded(f"{'/'.join(parts)}: more than {FOLDERS} folders match; narrow it down")
        if _is_wild(parts[-1]):
            found += await _entries(store, folder, parts[-1], folders=False)
        else:
            try:
                stat = await store.stat(f"{folder}/{parts[-1]}")
            except NotFound:
                continue
            found += [] if stat.is_dir else [(stat.path, stat.size)]
        if len(found) > MAX_FILES:
            raise too_many()
    if not found:
        raise NotFound(f"/{'/'.join(parts)}: nothing matches")
    return found


async def _entries(store: Store, folder: str, pattern: str, *, folders: bool) -> list[tuple[str, int]]:
    """What a folder holds that matches; of a folder that a wildcard found and that is none: nothing."""
    try:
        return [
            (stat.path, stat.size)
            async for stat in store.list(folder or "/")
            if stat.is_dir is folders and fnmatchcase(stat.path.rpartition("/")[2], pattern)
        ]
    except (NotFound, Conflict):
        return []


def _file(origin: Origin, path: str, size: int) -> FoundFile:
    """A file by its URL: its name may hold what means something there, and bytes that are no UTF-8."""
    written = quote(path.encode("utf-8", "surrogateescape"), safe="/:@!$&'()*,;=~-._")
    return FoundFile(path if path.isprintable() else written, (f"{origin}/{written}",), size)


def _taken_apart(name: str) -> tuple[Origin, list[str]]:
    scheme, mark, rest = name.partition("://")
    host, _, path = rest.partition("/")
    parts = checked("/" + path).strip("/").split("/")
    if scheme not in SCHEMES or not mark or not parts[0]:
        raise BadRequest(f"xrootd://{name[:200]}: write xrootd://root://host//folder/*.root")
    return origin_of(f"{SCHEMES[scheme]}://{host}"), parts


def _is_wild(part: str) -> bool:
    return any(c in part for c in "*?[")
