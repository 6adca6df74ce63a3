"""Who asks for what, as far as that is known at once: a target's endpoint and path, a token's identity.

Source: dataplane.md §3.5 of the project's contracts.
"""

import re
from collections.abc import Callable
from functools import cache
from math import inf
from typing import cast

from doma.auth.model import Identity, Verb
from doma.core.paths import MAX_DEPTH, normalise
from doma.doors.endpoint import Endpoint, Site
from doma.doors.landing import owner_of
from doma.net.exchange import Request
from doma.store.protocol import CanLand, CanRemove

TRUST = 30.0
"""Seconds for which a connection's last token needs no look at the verifier, unless its epoch changes."""

_CANONICAL = re.compile(rb"(?:/[A-Za-z0-9_~+=,@:-][A-Za-z0-9_~+=,@:.-]{0,59})+")
"""Paths that :func:`doma.core.paths.normalise` leaves as they are, if not too long or deep."""
_NAME = re.compile(rb"[A-Za-z0-9_~+=,@:-][A-Za-z0-9_~+=,@:.-]{0,254}")
"""Last names that are left as they are, and never reserved."""
_SHORT = 2048
FOLDERS = 4096
"""Directories and identities whose rights are kept worked out."""


class Unknown(Exception):
    """The quick side cannot say."""


class Asker:
    """Finds out who asks for what.

    Args:
        site: The endpoints.
        clock: Unix seconds.
    """

    def __init__(self, site: Site, clock: Callable[[], float]) -> None:
        self._site, self._clock = site, clock
        self._folders: dict[tuple[bytes | str, int], Folder] = {}

    def within(self, target: bytes, identity: Identity | None) -> tuple["Folder", str]:
        """The directory that a target lies in, as this identity may change it, and the last name there.

        Raises:
            Unknown, DomaError: as :meth:`aim`.
        """
        cut = target.rfind(b"/") + 1
        if len(target) >= _SHORT or not _NAME.fullmatch(target, cut):
            shown, endpoint, path = self.aim(target)
            return self._folder(shown[: shown.rfind("/")], endpoint, path, identity)
        above = target[:cut]
        known = self._folders.get((above, id(identity)))
        if known is None:
            shown, endpoint, path = self.aim(target)
            known, _ = self._folder(above, endpoint, path, identity)
        return known, target[cut:].decode("ascii")

    def _folder(
        self, key: bytes | str, endpoint: Endpoint, path: str, identity: Identity | None
    ) -> tuple["Folder", str]:
        above, _, name = path.rpartition("/")
        if not name:
            raise Unknown  # the top
        known = self._folders.get((key, id(identity)))
        if known is None:
            if len(self._folders) >= FOLDERS:
                self._folders.clear()
            known = self._folders[key, id(identity)] = Folder(endpoint, above, identity)
        return known, name

    def aim(self, target: bytes) -> tuple[str, Endpoint, str]:
        """The path of a file as people know it, its endpoint, and the path there.

        Raises:
            Unknown: it is no plain path of a file.
            DomaError: it is no path, or there is no such endpoint.
        """
        if _CANONICAL.fullmatch(target) and len(target) < _SHORT and target.count(b"/") <= MAX_DEPTH:
            shown = target.decode("ascii")
        elif b"?" in target or target[-1:] == b"/" or not target.isascii():
            raise Unknown
        else:
            shown = normalise(target.decode("ascii"))
        endpoint, path = self._site.find(shown)
        return shown, endpoint, path

    def identity(self, request: Request) -> Identity | None:
        """Who asks; None: nobody says.

        Raises:
            Unknown: a token that was not seen before, or has expired.
        """
        credential = request.fields.get(b"authorization")
        if credential is None:
            return None
        verifier, memo, now = self._site.verifier, request.memo, self._clock()
        last = memo.get("token")
        if last is not None and last[0] == credential and last[1] == verifier.epoch and now < last[3]:
            identity: Identity = last[2]
        else:
            scheme, _, token = credential.partition(b" ")
            if scheme.lower() != b"bearer" or not token.isascii():
                raise Unknown
            known = verifier.known(token.strip().decode("ascii"))
            if known is None:
                raise Unknown
            identity = known
            memo["token"] = (credential, verifier.epoch, identity, now + TRUST)
        if now >= identity.expires:
            raise Unknown
        return identity

    def until(self, request: Request, identity: Identity | None) -> float:
        """Unix seconds until which :meth:`identity` says the same at one epoch of the verifier."""
        return inf if identity is None else min(request.memo["token"][3], identity.expires)


class Folder:
    """A directory as one identity may change what lies in it: rights are the same for every name there.

    Args:
        endpoint: Its endpoint.
        above: Its path there, without a slash at the end.
        identity: Who asks. It is held, so that its id cannot come to name another one.
    """

    __slots__ = ("endpoint", "identity", "land", "owner", "path", "remove", "shown")

    def __init__(self, endpoint: Endpoint, above: str, identity: Identity | None) -> None:
        store, gate = endpoint.store, endpoint.gate
        self.endpoint, self.identity, self.owner = endpoint.name, identity, owner_of(identity)
        self.path = above + "/"
        self.shown = f"/{endpoint.name}{self.path}"
        here, kind, writable = above or "/", type(store), endpoint.writable
        modify = writable and gate.may(identity, Verb.MODIFY, here, is_dir=True)
        create = modify or (writable and gate.may(identity, Verb.CREATE, here, is_dir=True))
        self.land = cast("CanLand", store).land if create and offers(kind, CanLand) else None
        """Publishes a small file in the directory; None: not for everything there."""
        tops = any(area.startswith(self.path) for area in gate.areas)
        self.remove = (
            cast("CanRemove", store).remove if modify and not tops and offers(kind, CanRemove) else None
        )
        """Deletes one; None as for ``land``."""


@cache
def offers(kind: type, what: type) -> bool:
    """Whether stores of a class do this, asked once: the question costs much of a small request."""
    return issubclass(kind, what)
