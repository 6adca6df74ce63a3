"""The quick side of PUT and DELETE: small files and no conditions, where the store can at once.

Source: dataplane.md §3.6 of the project's contracts; rules W6, W9, W25 of the storage contract.
"""

from time import perf_counter
from typing import cast

from doma.auth.model import Verb
from doma.core.errors import DomaError
from doma.core.events import Event
from doma.core.paths import covers
from doma.doors.endpoint import Site
from doma.doors.fast_ask import Asker, Unknown, offers
from doma.doors.intake import Count
from doma.doors.landing import described, landed, owner_of
from doma.net.exchange import Answer, Buffer, Request, status_line
from doma.store.protocol import CanLand, CanRemove

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
            shown, endpoint, path = self._ask.aim(request.target)
            store = endpoint.store
            if not offers(type(store), CanLand) or not endpoint.writable or path == "/":
                return None
            identity, gate = self._ask.identity(request), endpoint.gate
            if not (gate.may(identity, Verb.MODIFY, path) or gate.may(identity, Verb.CREATE, path)):
                return None
            stat = cast("CanLand", store).land(path, data)
        except (Unknown, DomaError):
            return None
        if stat is None:
            return None
        self._site.emit(landed(endpoint.name, shown, stat, identity))
        if self._count is not None:
            self._count(endpoint.name, "PUT", 201, stat.size, 0, perf_counter() - began, 1)
        return Answer(_CREATED + described(stat))

    def delete(self, request: Request) -> Answer | None:
        """Delete a plain file without conditions."""
        if not _PLAIN.issuperset(request.fields):
            return None
        began = perf_counter()
        try:
            shown, endpoint, path = self._ask.aim(request.target)
            store, gate = endpoint.store, endpoint.gate
            if not offers(type(store), CanRemove) or not endpoint.writable:
                return None
            identity = self._ask.identity(request)
            if not gate.may(identity, Verb.MODIFY, path) or any(covers(path, area) for area in gate.areas):
                return None
            size = cast("CanRemove", store).remove(path)
        except (Unknown, DomaError):
            return None
        if size is None:
            return None
        facts = {"endpoint": endpoint.name, "is_dir": False, "bytes": size}
        self._site.emit(Event("file.deleted", shown, facts, owner_of(identity)))
        if self._count is not None:
            self._count(endpoint.name, "DELETE", 204, 0, 0, perf_counter() - began, 1)
        return Answer(_GONE)


_CREATED = status_line(201) + b"Content-Length: 0\r\n"
_GONE = status_line(204)
