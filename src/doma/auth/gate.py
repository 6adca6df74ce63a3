"""The decision who may do what on a path of an endpoint: pure, synchronous, in about a microsecond.

A right is a verb and an effective path, the prefix of the issuer's area plus the scope's own path; it
covers by component. What an identity may do is worked out once and kept with the identity object, so that
a thousand requests on one connection cost a dictionary look-up and a string comparison each.

Source: WLCG Common JWT Profile 1.3; rules T12-T19, §5 and §6 of the token contract. RFC 6750 §3.1 for the
two refusals: no identity is 401, too few rights is 403 with the smallest scope that would do.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from doma.auth.model import Capability, Identity, Verb
from doma.auth.scopes import SATISFIED_BY, decides_alone, scope_path, written
from doma.core.errors import BadRequest, ConfigError, Forbidden, Unauthenticated
from doma.core.paths import checked, covers, encode

log = logging.getLogger(__name__)

MEMO = 1024
"""Identities whose rights are kept worked out."""

_OPEN = frozenset({Verb.READ, Verb.LIST, Verb.STAT})


class _Grant(NamedTuple):
    """One effective path: itself (a file too, unless the scope said directory) and all below."""

    exact: str
    below: str
    also_file: bool


class _Rights(NamedTuple):
    identity: Identity
    area: tuple[str, ...]
    """Prefixes of the identity's issuer."""
    by_verb: dict[Verb, tuple[_Grant, ...]]


class Gate:
    """The policy of one endpoint.

    Args:
        prefixes: Issuer to the areas of the endpoint that its scopes are relative to; an issuer that is
            not listed gives no right here.
        public: Whether reading needs no token.
        wide: Whether a scope for a whole area (``storage.read:/``) counts; False where every path has its own
            owner, who hands out narrow tokens.
        groups: Group name to what its members may do, for tokens without any capability scope; the paths
            are relative to the issuer's area.
        name: The endpoint's: an identity that is limited to one endpoint has rights at this name only.

    Raises:
        ConfigError: a prefix or a group's path is not a path.
    """

    def __init__(
        self,
        prefixes: Mapping[str, Sequence[str]],
        *,
        public: bool = False,
        wide: bool = True,
        groups: Mapping[str, Sequence[Capability]] | None = None,
        name: str = "",
    ) -> None:
        try:
            self._prefixes = {
                issuer.removesuffix("/"): tuple(checked(area) for area in areas)
                for issuer, areas in prefixes.items()
            }
            self._groups = {
                group: tuple(Capability(right.verb, scope_path(encode(right.path))) for right in rights)
                for group, rights in (groups or {}).items()
            }
        except BadRequest as e:
            raise ConfigError(f"policy: {e.message}") from e
        self._public = public
        self._wide = wide
        self._name = name
        self._memo: dict[int, _Rights] = {}

    @property
    def areas(self) -> frozenset[str]:
        """The tops of all issuers' areas: what no door removes or renames, whatever the rights (W9)."""
        return frozenset(area for areas in self._prefixes.values() for area in areas)

    def areas_of(self, issuer: str) -> tuple[str, ...]:
        """The areas of one issuer; none for one that does not count here."""
        return self._prefixes.get(issuer.removesuffix("/"), ())

    def decide(self, identity: Identity | None, verb: Verb, path: str, is_dir: bool = False) -> None:
        """Return if the identity may do this, raise if not. It does not look at ``identity.expires``.

        Args:
            identity: Who asks; None: nobody.
            verb: What is wanted.
            path: Canonical, relative to the endpoint.
            is_dir: The path is, or is to become, a directory: a scope with a trailing slash covers it then.

        Raises:
            Unauthenticated: nobody asks, and the path is not public.
            Forbidden: the rights do not cover it; ``detail["scope"]`` has the smallest scope that would.
        """
        if identity is not None:
            # The memo holds the identity itself, so its id cannot come to name another one.
            rights = self._memo.get(id(identity)) or self._work_out(identity)
            for exact, below, also_file in rights.by_verb[verb]:
                if path.startswith(below) or (path == exact and (also_file or is_dir)):
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug("%s may %s %s: granted below %s", identity, verb, encode(path), exact)
                    return
            if verb is Verb.STAT and _leads_to_grant(rights, verb, path):
                return
        if self._public and verb in _OPEN:
            return
        self._refuse(identity, verb, path)

    def may(self, identity: Identity | None, verb: Verb, path: str, is_dir: bool = False) -> bool:
        """Whether :meth:`decide` would return; for leaving entries out of a listing, not logged."""
        if self._public and verb in _OPEN:
            return True
        if identity is None:
            return False
        rights = self._memo.get(id(identity)) or self._work_out(identity)
        return any(
            path.startswith(below) or (path == exact and (also_file or is_dir))
            for exact, below, also_file in rights.by_verb[verb]
        ) or (verb is Verb.STAT and _leads_to_grant(rights, verb, path))

    def decide_directory(self, identity: Identity | None, path: str) -> None:
        """Return if the identity may make this directory, empty: for MKCOL and missing parents only.

        Besides what :meth:`decide` allows for CREATE, these are the directories that lead to a path on which
        it may create (T14). They are not its own: nothing may be moved or copied there, or away from there.

        Raises:
            Unauthenticated, Forbidden: as :meth:`decide`.
        """
        if identity is not None:
            rights = self._memo.get(id(identity)) or self._work_out(identity)
            if _leads_to_grant(rights, Verb.CREATE, path):
                return
        self.decide(identity, Verb.CREATE, path, True)

    def _work_out(self, identity: Identity) -> _Rights:
        area = self._area(identity)
        held: Sequence[Capability] = identity.capabilities
        if not held and not decides_alone(identity.scopes):
            held = [right for group in identity.groups for right in self._groups.get(group, ())]
        counted = [right for right in held if self._wide or right.path != "/"]
        by_verb = {
            verb: tuple(
                dict.fromkeys(
                    _grant(prefix, right.path)
                    for right in counted
                    if right.verb in enough
                    for prefix in (("/",) if identity.only and area else area)
                )
            )
            for verb, enough in SATISFIED_BY.items()
        }
        if len(self._memo) >= MEMO:
            self._memo.clear()
        rights = self._memo[id(identity)] = _Rights(identity, area, by_verb)
        return rights

    def _area(self, identity: Identity) -> tuple[str, ...]:
        """Where the identity's issuer counts here; nowhere if the identity is for another endpoint."""
        return () if identity.only not in {"", self._name} else self.areas_of(identity.issuer)

    def _refuse(self, identity: Identity | None, verb: Verb, path: str) -> None:
        if identity is None:
            raise Unauthenticated(
                f"{path}: a token is needed to {verb} this; send it as 'Authorization: Bearer ...'"
            )
        area = self._area(identity)
        log.info("%s may not %s %s: no scope or group covers it", identity, verb, encode(path))
        if identity.only:
            raise Forbidden(
                f"{path}: the macaroon of {identity} does not allow to {verb} this; ask for another"
            )
        inside = [prefix for prefix in area if covers(prefix, path)]
        if not inside:
            raise Forbidden(
                f"{path}: is outside the area of the issuer of this token, {identity.issuer};"
                f" its area here is {', '.join(area) or 'empty'}"
            )
        if not self._wide:
            raise Forbidden(f"{path}: private; ask the service that made it for its address, which opens it")
        nearest = max(inside, key=len)
        scope = written(verb, "/" + path[len(nearest.rstrip("/")) :].lstrip("/"))
        raise Forbidden(
            f"{path}: the token of {identity} does not allow to {verb} this; it needs the scope {scope}",
            scope=scope,
        )


def _grant(prefix: str, path: str) -> _Grant:
    base = prefix.rstrip("/") + path.rstrip("/")
    return _Grant(base or "/", base + "/", not path.endswith("/") or path == "/")


def _leads_to_grant(rights: _Rights, verb: Verb, path: str) -> bool:
    """Whether the path is a directory above one granted for the verb, inside the issuer's area (T14).

    Clients look at the parents before they write, and make them when they are missing.
    """
    lead = path if path == "/" else path + "/"
    return any(g.exact.startswith(lead) or g.below == lead for g in rights.by_verb[verb]) and any(
        covers(prefix, path) for prefix in rights.area
    )
