"""The built-in issuer: access tokens of the WLCG profile, signed with our own keys.

A site that runs an IAM, CILogon or Keycloak configures that one instead; nothing else changes.

Source: WLCG Common JWT Profile 1.3 §"Access tokens"; §8 of the token contract.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from doma.auth.audience import SCITOKENS_ANY
from doma.auth.clients import Client, Clients
from doma.auth.keys import KeySet
from doma.auth.scopes import (
    check_words,
    decides_alone,
    from_scitokens,
    granted,
    is_group,
    shown,
    to_scitokens,
    words,
)
from doma.core.errors import BadRequest, ConfigError, Forbidden

if TYPE_CHECKING:
    from doma.auth.ledger import Ledger  # a command that only signs needs no database

PROFILE = "1.0"
"""What every issuer writes as ``wlcg.ver``, also for the semantics of 1.3 (T6)."""
EARLIER = 60
"""Seconds by which ``nbf`` lies before ``iat``: clocks of grid sites differ."""
MAX_LIFETIME = 400 * 86400.0


_FOR_ALL = ("openid", "offline_access")
"""Words that need no entry of the user's own: they say nothing about data."""


class Issuer:
    """Signs tokens for one VO.

    Args:
        url: The ``iss``, ``https://host:port/<vo>``.
        vo: The VO.
        keys: Private keys.
        clients: Who may ask at the token endpoint.
        clock: Unix seconds.
        lifetime: Life of a token in seconds unless said otherwise.
        default_audience: ``aud`` when neither request nor client says one; empty: one must be said.
        new_id: Makes ``jti``.
        ledger: What it remembers; None: it offers only what needs no memory.
        users: Who may log in on its pages; None: nobody.
        refresh_lifetime: Life of a refresh token in seconds unless a client says otherwise.

    Raises:
        ConfigError: the URL has no path.
    """

    def __init__(
        self,
        url: str,
        vo: str,
        keys: KeySet,
        *,
        clients: Clients,
        clock: Callable[[], float] = time.time,
        lifetime: float = 3600,
        default_audience: str = "",
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        ledger: "Ledger | None" = None,
        users: Clients | None = None,
        refresh_lifetime: float = 30 * 86400.0,
    ) -> None:
        self.url = url.removesuffix("/")
        self.vo = vo
        self.keys = keys
        self.clients = clients
        self.lifetime = lifetime
        self.default_audience = default_audience
        self.ledger = ledger
        self.users = users
        self.refresh_lifetime = refresh_lifetime
        self.clock = clock
        self._new_id = new_id
        if not self.path:
            raise ConfigError(f"issuer {url}: must end in the name of its VO, like https://host:port/{vo}")

    @property
    def path(self) -> str:
        """The path of the URL, ``/<vo>``: where the issuer's app is mounted."""
        return urlsplit(self.url).path

    def issue(
        self,
        *,
        subject: str,
        scopes: str,
        audience: Sequence[str],
        groups: Sequence[str] = (),
        lifetime: float | None = None,
        client: str = "",
        alg: str = "RS256",
        profile: str = "wlcg",
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """Sign an access token. Whether the subject may have it, the caller has decided.

        Args:
            subject: ``sub``, printable ASCII of at most 255 characters.
            scopes: Words of WLCG separated by blanks.
            audience: Names that accept it; none: the default audience.
            groups: Becomes ``wlcg.groups``, in this order.
            lifetime: Seconds; None: the issuer's.
            client: ``client_id``.
            alg: ``RS256`` or ``ES256``.
            profile: ``wlcg``, or ``scitokens``: then the words are written as that profile has them.
            more: Further claims.

        Raises:
            BadRequest: a malformed scope (a storage scope without path, a relative one, ``..``), group,
                subject or lifetime, or no audience at all.
        """
        listed = words(scopes)
        check_words(listed)
        default = SCITOKENS_ANY if profile == "scitokens" else self.default_audience
        names = tuple(dict.fromkeys(audience)) or ((default,) if default else ())
        self._check(subject, names, groups)
        life = self.lifetime if lifetime is None else lifetime
        if not 1 <= life <= MAX_LIFETIME:
            raise BadRequest(f"lifetime {life:g} s: must lie between 1 s and {MAX_LIFETIME:g} s")
        now = int(self.clock())
        claims: dict[str, Any] = {
            "iss": self.url,
            "sub": subject,
            "aud": names[0] if len(names) == 1 else list(names),
            "exp": now + int(life),
            "iat": now,
            "nbf": now - EARLIER,
            "jti": self._new_id(),
            **(more or {}),
        }
        if profile == "scitokens":
            listed, claims["ver"] = to_scitokens(listed), "scitoken:2.0"
        else:
            claims["wlcg.ver"] = PROFILE
            if groups:
                claims["wlcg.groups"] = list(groups)
        claims["scope"] = " ".join(dict.fromkeys(listed))
        if client:
            claims["client_id"] = client
        return self.keys.sign(claims, alg)

    def allowed(self, client: Client, scope: str, user: Client | None = None) -> tuple[str, ...]:
        """What a client may have of the scopes it asks for, as WLCG's words; the rest is dropped.

        Args:
            client: Who asks.
            scope: What it asks for, in the words of its profile.
            user: Who it acts for: then both must be allowed to, and the groups are the user's.

        Raises:
            BadRequest: nothing is asked, a scope is malformed, or nothing is left.
            Forbidden: a group or capability set that the holder is not entitled to.
        """
        holder = user or client
        raw = words(scope)
        asked = _expanded(from_scitokens(raw) if client.profile == "scitokens" else raw, holder)
        if not asked:
            raise BadRequest(f"client {client.id}: scope is missing; name the scopes wanted")
        check_words(asked)
        own = [word for part in holder.sets.values() for word in part] if user is None else []
        given = set(granted(asked, [*client.scopes, *own]))
        if user is not None:
            given &= {*granted(asked, [*user.scopes, *(w for s in user.sets.values() for w in s)]), *_FOR_ALL}
        for word in filter(is_group_scope, asked):
            group = word.partition(":")[2]
            if group and group not in holder.groups:
                raise Forbidden(f"client {holder.id}: is not in the group {shown(group)}")
            if holder.groups and (user is None or "wlcg.groups" in client.scopes):
                given.add(word)
        left = tuple(word for word in asked if word in given)
        if not left:
            raise BadRequest(
                f"client {holder.id}: may have none of the scopes asked; it is registered for:"
                f" {' '.join(holder.scopes) or 'nothing'}"
            )
        return left

    def _check(self, subject: str, audience: Sequence[str], groups: Sequence[str]) -> None:
        if not (0 < len(subject) <= 255 and subject.isascii() and subject.isprintable()):
            raise BadRequest(f"subject {shown(subject)}: must be printable ASCII of 1 to 255 characters")
        if not audience:
            raise BadRequest("audience: none is given and the issuer has no default; name one")
        for name in audience:
            if not name or len(name) > 1024 or not name.isascii() or not name.isprintable() or " " in name:
                raise BadRequest(f"audience {shown(name)}: must be printable ASCII without blanks")
        for group in groups:
            if not is_group(group):
                raise BadRequest(f"group {shown(group)}: must be of the form /vo/group")


def is_group_scope(word: str) -> bool:
    """Whether a scope asks for groups."""
    return word == "wlcg.groups" or word.startswith("wlcg.groups:")


def groups_for(scopes: Sequence[str], held: Sequence[str]) -> tuple[str, ...]:
    """The groups to state: those asked for, in that order, then the others; a bare word marks their place.

    >>> groups_for(["wlcg.groups:/a/b"], ["/a", "/a/b"]), groups_for(["fts"], ["/a"])
    (('/a/b', '/a'), ())
    """
    asked = [word.partition(":")[2] for word in scopes if is_group_scope(word)]
    if not asked:
        return ()
    placed = (name for group in [*asked, ""] for name in ([group] if group else held))
    return tuple(group for group in dict.fromkeys(placed) if group in held)


def never_wider(scopes: Sequence[str], held: Sequence[str]) -> tuple[str, ...]:
    """The words without their groups, if only the loss of capabilities would make groups count (T18).

    >>> never_wider(["wlcg.groups", "openid"], ["storage.read:/a", "wlcg.groups", "openid"])
    ('openid',)
    """
    if decides_alone(held) and not decides_alone(scopes):
        return tuple(word for word in scopes if not is_group_scope(word))
    return tuple(scopes)


def _expanded(asked: Sequence[str], holder: Client) -> tuple[str, ...]:
    """The words with each capability set replaced by what it stands for."""
    found: dict[str, None] = {}
    for word in asked:
        name, colon, group = word.partition(":")
        if name != "wlcg.capabilityset":
            found[word] = None
        elif not colon or group not in holder.sets:
            raise Forbidden(f"client {holder.id}: has no capability set {shown(group)}")
        else:
            found.update(dict.fromkeys(holder.sets[group]))
    return tuple(found)
