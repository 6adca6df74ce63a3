"""The quick side of PUT and DELETE: small files and no conditions, where the store can at once.

Source: dataplane.md §3.6 of the project's contracts; rules W6, W9, W25 of the storage contract.
"""

from time import perf_counter

from doma.core.errors import DomaError
from doma.core.events import Event
from doma.doors.endpoint import Site
from doma.doors.fast_ask import Asker, Unknown
from doma.doors.intake import Count
from doma.doors.landing import described, landed
from doma.net.exchange import Answer, Buffer, Request, status_line

_PLAIN = frozenset(
    {
        b"host", b"authorization", b"user-agent", b"accept", b"accept-encoding", b"accept-language",
        b"clientinfo", b"connection", b"content-length", b"content-type", b"keep-alive", b"te",
    }
)  # fmt: skip
"""Fields of a plain PUT or DELETE; any other may be a condition."""


class Changes:
    """Publishes and deletes; None: nothing was done, the application decides.

    Args:
        site: The endpoints.
        ask: Who asks for what.
        count: Told of what was answered here.
    """

    def __init__(self, site: Site, ask: Asker, count: Count | None) -> None:
        self._site, self._ask, self._count = site, ask, count

    def land(self, request: Request, data: Buffer) -> Answer | None:
        """Publish a new file without conditions that came whole."""
        if not _PLAIN.issuperset(request.fields):
            return None
        began = perf_counter()
        try:
            folder, name = self._ask.within(request.target, self._ask.identity(request))
            land = folder.land
            stat = land(folder.path + name, data) if land is not None else None
        except (Unknown, DomaError):
            return None
        if stat is None:
            return None
        self._site.emit(landed(folder.endpoint, folder.shown + name, stat, folder.owner))
        if self._count is not None:
            self._count(folder.endpoint, "PUT", 201, stat.size, 0, perf_counter() - began, 1)
        return Answer(_CREATED + described(stat))

    def delete(self, request: Request) -> Answer | None:
        """Delete a plain file without conditions."""
        if not _PLAIN.issuperset(request.fields):
            return None
        began = perf_counter()
        try:
            folder, name = self._ask.within(request.target, self._ask.identity(request))
            remove = folder.remove
            size = remove(folder.path + name) if remove is not None else None
        except (Unknown, DomaError):
            return None
        if size is None:
            return None
        facts = {"endpoint": folder.endpoint, "is_dir": False, "bytes": size}
        self._site.emit(Event("file.deleted", folder.shown + name, facts, folder.owner))
        if self._count is not None:
            self._count(folder.endpoint, "DELETE", 204, 0, 0, perf_counter() - began, 1)
        return Answer(_GONE)


_CREATED = status_line(201) + b"Content-Length: 0\r\n"
_GONE = status_line(204)
