"""The built-in issuer: access tokens of the WLCG profile, signed with our own keys.

A site that runs an IAM, CILogon or Keycloak configures that one instead; nothing else changes.

Source: WLCG Common JWT Profile 1.3 §"Access tokens"; §8 of the token contract.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from doma.auth.clients import Client, Clients
from doma.auth.keys import KeySet
from doma.auth.scopes import WLCG, check_words, granted, is_group, shown, words
from doma.core.errors import BadRequest, ConfigError, Forbidden

PROFILE = "1.0"
"""What every issuer writes as ``wlcg.ver``, also for the semantics of 1.3 (T6)."""
EARLIER = 60
"""Seconds by which ``nbf`` lies before ``iat``: clocks of grid sites differ."""
MAX_LIFETIME = 400 * 86400.0


@dataclass(frozen=True, slots=True)
class Granted:
    """What a client got."""

    token: str
    scope: str
    lifetime: float
    """Seconds."""


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
    ) -> None:
        self.url = url.removesuffix("/")
        self.vo = vo
        self.keys = keys
        self.clients = clients
        self.lifetime = lifetime
        self.default_audience = default_audience
        self._clock = clock
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
    ) -> str:
        """Sign an access token. Whether the subject may have it, the caller has decided.

        Args:
            subject: ``sub``, printable ASCII of at most 255 characters.
            scopes: Words separated by blanks.
            audience: Names that accept it; none: the default audience.
            groups: Becomes ``wlcg.groups``, in this order.
            lifetime: Seconds; None: the issuer's.
            client: ``client_id``.
            alg: ``RS256`` or ``ES256``.

        Raises:
            BadRequest: a malformed scope (a storage scope without path, a relative one, ``..``), group,
                subject or lifetime, or no audience at all.
        """
        listed = words(scopes)
        check_words(listed)
        names = tuple(dict.fromkeys(audience)) or ((self.default_audience,) if self.default_audience else ())
        self._check(subject, names, groups)
        life = self.lifetime if lifetime is None else lifetime
        if not 1 <= life <= MAX_LIFETIME:
            raise BadRequest(f"lifetime {life:g} s: must lie between 1 s and {MAX_LIFETIME:g} s")
        now = int(self._clock())
        claims: dict[str, Any] = {
            "iss": self.url,
            "sub": subject,
            "aud": names[0] if len(names) == 1 else list(names),
            "exp": now + int(life),
            "iat": now,
            "nbf": now - EARLIER,
            "jti": self._new_id(),
            "scope": " ".join(dict.fromkeys(listed)),
            "wlcg.ver": PROFILE,
        }
        if client:
            claims["client_id"] = client
        if groups:
            claims["wlcg.groups"] = list(groups)
        return self.keys.sign(claims, alg)

    def allowed(self, client: Client, scope: str) -> str:
        """What a client may have of the scopes it asks for; the rest is dropped.

        Raises:
            BadRequest: nothing is asked, a scope is malformed, or nothing is left.
            Forbidden: it asks for a group that it is not in.
        """
        asked = words(scope)
        if not asked:
            raise BadRequest(f"client {client.id}: scope is missing; name the scopes wanted")
        check_words(asked)
        given = set(granted(asked, client.scopes))
        for word in filter(_is_group_scope, asked):
            group = word.partition(":")[2]
            if group and group not in client.groups:
                raise Forbidden(f"client {client.id}: is not in the group {shown(group)}")
            if client.groups:
                given.add(word)
        if not given:
            raise BadRequest(
                f"client {client.id}: may have none of the scopes asked; it is registered for:"
                f" {' '.join(client.scopes) or 'nothing'}"
            )
        return " ".join(word for word in dict.fromkeys(asked) if word in given)

    def grant(self, client: Client, scope: str, audience: Sequence[str]) -> Granted:
        """A token for a client's own use (RFC 6749 §4.4), with the scopes that are :meth:`allowed`.

        Raises:
            BadRequest: see :meth:`allowed` and :meth:`issue`. Forbidden: see :meth:`allowed`.
        """
        scopes = self.allowed(client, scope)
        life = int(min(self.lifetime, client.lifetime or self.lifetime))
        token = self.issue(
            subject=client.id,
            scopes=scopes,
            audience=audience or client.audience,
            groups=_groups(words(scopes), client),
            lifetime=life,
            client=client.id,
        )
        return Granted(token, scopes, life)

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


def metadata(issuer: Issuer) -> dict[str, Any]:
    """The document of OpenID Connect Discovery 1.0 and RFC 8414: what this issuer really offers."""
    return {
        "issuer": issuer.url,
        "jwks_uri": f"{issuer.url}/jwks",
        "token_endpoint": f"{issuer.url}/token",
        "scopes_supported": [*WLCG, "wlcg.groups"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }


def _is_group_scope(word: str) -> bool:
    return word == "wlcg.groups" or word.startswith("wlcg.groups:")


def _groups(scopes: Sequence[str], client: Client) -> tuple[str, ...]:
    """The groups to state: those asked for, in that order, then the others; a bare word marks their place."""
    asked = [word.partition(":")[2] for word in scopes if _is_group_scope(word)]
    if not asked:
        return ()
    placed = (name for group in [*asked, ""] for name in ([group] if group else client.groups))
    return tuple(dict.fromkeys(placed))
