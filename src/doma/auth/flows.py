"""The ways to a token: client credentials, refresh, exchange, and its end: revocation and introspection.

A refresh or an exchange never gives more than was there: scopes, audience, groups and the life of an
exchanged access token only shrink.

Source: RFC 6749 §4.4 and §6, RFC 8693, RFC 7009, RFC 7662; §8 and §9 of the token contract.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from doma.auth.audience import SCITOKENS_ANY, WLCG_ANY
from doma.auth.clients import Client
from doma.auth.compact import Keys, check_signature, keys_of, parse
from doma.auth.issuer import Issuer, groups_for, is_group_scope, never_wider
from doma.auth.ledger import Family, Ledger
from doma.auth.oauth import Authenticator, Form, OAuthError
from doma.auth.scopes import from_scitokens, granted, is_group, shown, to_scitokens, words
from doma.core.errors import BadRequest, Forbidden, InvalidToken

TYPES = "urn:ietf:params:oauth:token-type:"
WAYS = {
    "client_credentials": "client_credentials",
    "refresh_token": "refresh_token",
    "urn:ietf:params:oauth:grant-type:token-exchange": "token-exchange",
    "urn:ietf:params:oauth:grant-type:device_code": "device_code",
    "authorization_code": "authorization_code",
}
"""``grant_type`` on the wire to the name in a client's ``grants``."""
ADMIN = "doma.admin"

_ACTORS = 5
"""Parties that an ``act`` claim may name, one in another."""


@dataclass(frozen=True, slots=True)
class Right:
    """What a token is to say."""

    client: Client
    subject: str
    scopes: tuple[str, ...]
    """Words of WLCG."""
    audience: tuple[str, ...]
    groups: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further claims: ``act``, ``auth_time``."""
    longest: float | None = None
    """Seconds that it may live at most."""
    user: bool = False
    """Whether a user has logged in for it, whose registration counts as well."""


class Flows:
    """The token endpoint's decisions. Every method blocks (scrypt, signatures, rows): call them in a thread.

    Args:
        issuer: Whose.
    """

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        names = frozenset({issuer.url, f"{issuer.url}/", f"{issuer.url}/token"})
        self.authenticator = Authenticator(issuer.clients, names, issuer.ledger)
        self._parsed: tuple[object, Keys] = (None, {})

    def token(self, form: Form, authorization: str | None) -> dict[str, Any]:
        """The answer of the token endpoint.

        Raises:
            OAuthError: the request is refused.
        """
        now = self.issuer.clock()
        client = self.authenticator.client(form, authorization, now)
        grant = form.must("grant_type")
        way = WAYS.get(grant)
        if way is None or way not in self.offered():
            raise OAuthError("unsupported_grant_type", f"grant_type {shown(grant)} is not offered here")
        if way not in client.grants or (client.public and way in {"client_credentials", "token-exchange"}):
            raise OAuthError("unauthorized_client", f"this client may not use grant_type {shown(grant)}")
        match way:
            case "client_credentials":
                return self._own(client, form, now)
            case "refresh_token":
                return self._refreshed(client, form, now)
            case "token-exchange":
                return self._exchanged(client, form, now)
            case _:
                return self._for_user(way, client, form, now)

    def offered(self) -> tuple[str, ...]:
        """The ways that this issuer offers."""
        if self.issuer.ledger is None:
            return ("client_credentials", "token-exchange")
        return ("client_credentials", "refresh_token", "token-exchange")

    def revoke(self, form: Form, authorization: str | None) -> None:
        """Void a token of the client that asks; anything else is ignored (RFC 7009 §2.2).

        Raises:
            OAuthError: the client is not authenticated, or no token is named.
        """
        now = self.issuer.clock()
        client = self.authenticator.client(form, authorization, now)
        token = form.must("token")
        ledger = self._ledger()
        ledger.end(token, client.id, now)
        claims = self.verified(token, now, late=ledger.longer)
        if claims and (claims.get("client_id") == client.id or ADMIN in client.scopes):
            ledger.revoke(str(claims["jti"]), float(claims["exp"]), now)

    def introspect(self, form: Form, authorization: str | None) -> dict[str, Any]:
        """What a token of this issuer says, if it is good.

        Raises:
            OAuthError: the client is not authenticated (a public one cannot be), or no token is named.
        """
        now = self.issuer.clock()
        client = self.authenticator.client(form, authorization, now)
        if client.public:
            raise OAuthError("unauthorized_client", "a public client may not introspect")
        token = form.must("token")
        family = self._ledger().find(token, client.id, now)
        if family is not None:
            return {
                "active": True, "token_type": "refresh_token", "iss": self.issuer.url, "sub": family.subject,
                "client_id": family.client, "scope": family.scope, "exp": int(family.expires),
            }  # fmt: skip
        claims = self.verified(token, now)
        return {**claims, "active": True, "token_type": "Bearer"} if claims else {"active": False}

    def verified(self, token: str, now: float, *, late: float = 0.0) -> dict[str, Any] | None:
        """The claims of an access token of this issuer that is good at this moment.

        Args:
            token: As it came.
            now: Unix seconds.
            late: Seconds for which one that has expired will do.
        """
        try:
            parts = parse(token)
            key = self._keys().get((parts.kid or "", parts.alg))
            if key is None or parts.issuer != self.issuer.url:
                return None
            check_signature(parts, key)
        except InvalidToken:
            return None
        claims = parts.claims
        whole = {"exp", "nbf", "jti", "scope", "sub"} <= claims.keys()
        good = whole and claims["nbf"] <= now < claims["exp"] + late
        if not good or (self.issuer.ledger and self.issuer.ledger.is_revoked(str(claims["jti"]))):
            return None
        return claims

    def _keys(self) -> Keys:
        """The issuer's public keys, parsed once for as long as they are the same."""
        jwks = self.issuer.keys.jwks()
        if self._parsed[0] is not jwks:
            self._parsed = (jwks, keys_of(jwks))
        return self._parsed[1]

    def allowed(self, client: Client, scope: str, user: Client | None = None) -> tuple[str, ...]:
        """:meth:`Issuer.allowed` with OAuth's refusals."""
        try:
            return self.issuer.allowed(client, scope, user)
        except Forbidden as e:
            raise OAuthError("access_denied", e.message) from e
        except BadRequest as e:
            raise OAuthError("invalid_scope", e.message) from e

    def answer(self, right: Right, now: float, *, refresh: str = "") -> dict[str, Any]:
        """A token for a right, as the endpoint answers it.

        Args:
            right: What it says.
            now: Unix seconds.
            refresh: A refresh token to go with it.

        Raises:
            OAuthError: the right cannot be written as a token.
        """
        client = right.client
        own = client.lifetime or self.issuer.lifetime
        life = max(1, int(own if right.longest is None else min(own, right.longest)))
        try:
            token = self.issuer.issue(
                subject=right.subject,
                scopes=" ".join(right.scopes),
                audience=right.audience,
                groups=right.groups,
                lifetime=life,
                client=client.id,
                alg=client.alg,
                profile=client.profile,
                more=right.more,
            )
        except BadRequest as e:
            raise OAuthError("invalid_request", e.message) from e
        shown_as = to_scitokens(right.scopes) if client.profile == "scitokens" else right.scopes
        found = {
            "access_token": token, "token_type": "Bearer", "expires_in": life, "scope": " ".join(shown_as)
        }  # fmt: skip
        return found | ({"refresh_token": refresh} if refresh else {})

    def begin(self, right: Right, now: float) -> tuple[str, str]:
        """A new family of refresh tokens for a right: its id and first token."""
        life = right.client.refresh_lifetime or self.issuer.refresh_lifetime
        return self._ledger().begin(
            client=right.client.id,
            subject=right.subject,
            scope=" ".join(right.scopes),
            audience=right.audience,
            details={"groups": list(right.groups), "more": dict(right.more), "user": right.user},
            now=now,
            expires=now + life,
        )

    def _ledger(self) -> Ledger:
        if self.issuer.ledger is None:
            raise OAuthError("temporarily_unavailable", "this issuer runs without tables", 503)
        return self.issuer.ledger

    def _for_user(self, way: str, client: Client, form: Form, now: float) -> dict[str, Any]:
        """The ways with a user, where there are any."""
        raise OAuthError("unsupported_grant_type", f"{way} is not offered here")

    def _own(self, client: Client, form: Form, now: float) -> dict[str, Any]:
        """For the client itself (RFC 6749 §4.4)."""
        scopes = self.allowed(client, form.get("scope"))
        right = Right(
            client, client.id, scopes, form.audience or client.audience, groups_for(scopes, client.groups)
        )
        durable = "offline_access" in scopes and self.issuer.ledger is not None
        return self.answer(right, now, refresh=self.begin(right, now)[1] if durable else "")

    def _refreshed(self, client: Client, form: Form, now: float) -> dict[str, Any]:
        token = form.must("refresh_token")
        right, refresh = self._ledger().rotate(
            token, client.id, now, lambda family: self._still(client, family, form)
        )
        return self.answer(right, now, refresh=refresh)

    def _still(self, client: Client, family: Family, form: Form) -> Right:
        """What a family gives now: its own right, narrowed as asked and as the registrations are now."""
        details = family.details
        held = Right(
            client, family.subject, tuple(family.scope.split()), family.audience,
            tuple(details["groups"]), details["more"], user=details["user"],
        )  # fmt: skip
        right = _within(_narrowed(held, form), [*client.scopes, *_words_of(client), "wlcg.groups"])
        holder = self._user(family.subject) if held.user else client
        if held.user:
            free = ("openid", "offline_access", "wlcg.groups")
            right = _within(right, [*holder.scopes, *_words_of(holder), *free])
        if held.user or family.subject == client.id:
            right = replace(right, groups=tuple(g for g in right.groups if g in holder.groups))
        return right

    def _user(self, name: str) -> Client:
        user = self.issuer.users.get(name) if self.issuer.users is not None else None
        if user is None:
            raise OAuthError("invalid_grant", f"the user {shown(name)} is not registered any more")
        return user

    def _exchanged(self, client: Client, form: Form, now: float) -> dict[str, Any]:
        """For whom another token speaks (RFC 8693): FTS turns a user's access token into a refresh token."""
        asked = form.get("requested_token_type") or f"{TYPES}access_token"
        if form.get("subject_token_type") not in {f"{TYPES}access_token", f"{TYPES}jwt"}:
            raise OAuthError("invalid_request", f"subject_token_type must be {TYPES}access_token")
        if asked not in {f"{TYPES}access_token", f"{TYPES}jwt", f"{TYPES}refresh_token"}:
            raise OAuthError("invalid_request", "requested_token_type must be access_token or refresh_token")
        if "actor_token" in form.single:
            raise OAuthError("invalid_request", "actor_token is not offered; the client itself is the actor")
        claims = self.verified(form.must("subject_token"), now)
        if claims is None:
            raise OAuthError("invalid_grant", "subject_token: is not a valid access token of this issuer")
        right = _within(_narrowed(_right_of(client, claims, now), form), [*client.scopes, *_words_of(client)])
        durable = asked.endswith("refresh_token")
        if durable and ("offline_access" not in client.scopes or self.issuer.ledger is None):
            raise OAuthError(
                "unauthorized_client", "this client may not have refresh tokens (offline_access)"
            )
        if durable and "offline_access" not in right.scopes:
            right = replace(right, scopes=(*right.scopes, "offline_access"))
        refresh = self.begin(right, now)[1] if durable else ""
        return {**self.answer(right, now, refresh=refresh), "issued_token_type": asked}


def _words_of(holder: Client) -> list[str]:
    return [word for words_of_one in holder.sets.values() for word in words_of_one]


def _right_of(client: Client, claims: Mapping[str, Any], now: float) -> Right:
    """What the subject token gave, with the client named as the one who acts."""
    scopes, audience = words(claims["scope"]), claims["aud"]
    listed = (audience,) if isinstance(audience, str) else tuple(audience)
    more: dict[str, Any] = {"act": {"sub": client.id}}
    before, depth = claims.get("act"), 1
    inner = before
    while isinstance(inner, dict):
        depth, inner = depth + 1, inner.get("act")
    if depth > _ACTORS:
        raise OAuthError("invalid_grant", f"subject_token: went through {_ACTORS} exchanges already")
    if isinstance(before, dict):
        more["act"]["act"] = before
    if "auth_time" in claims:
        more["auth_time"] = claims["auth_time"]
    groups = claims.get("wlcg.groups", [])
    return Right(
        client, str(claims["sub"]), from_scitokens(scopes) if "ver" in claims else scopes, listed,
        tuple(g for g in groups if is_group(g)), more, float(claims["exp"]) - now, "auth_time" in claims,
    )  # fmt: skip


def _narrowed(held: Right, form: Form) -> Right:
    """The right with the scopes and audience that a request asks for.

    Raises:
        OAuthError: ``invalid_scope``: it asks for more than is there.
    """
    raw = words(form.get("scope"))
    asked = from_scitokens(raw) if held.client.profile == "scitokens" else raw
    if asked:
        try:
            given = {*granted(asked, held.scopes), "offline_access"}
        except BadRequest as e:
            raise OAuthError("invalid_scope", e.message) from e
        given |= {word for word in asked if is_group_scope(word) and _has_groups(held, word)}
        extra = [word for word in asked if word not in given]
        if extra:
            raise OAuthError("invalid_scope", f"{shown(extra[0])} is not in the scope of the token given")
    scopes = never_wider(tuple(dict.fromkeys(asked)) or held.scopes, held.scopes)
    if not {SCITOKENS_ANY, WLCG_ANY} & set(held.audience) and not set(form.audience) <= set(held.audience):
        raise OAuthError("invalid_scope", "the audience asked for is not in that of the token given")
    return replace(
        held,
        scopes=scopes,
        audience=form.audience or held.audience,
        groups=groups_for(scopes, held.groups),
    )


def _has_groups(held: Right, word: str) -> bool:
    group = word.partition(":")[2]
    return bool(held.groups) and (not group or group in held.groups)


def _within(right: Right, registered: Sequence[str]) -> Right:
    """The right without what a registration does not cover; groups count where ``wlcg.groups`` is in it.

    Raises:
        OAuthError: nothing is left.
    """
    given = {*granted(right.scopes, registered)}
    if "wlcg.groups" in registered:
        given |= {word for word in right.scopes if is_group_scope(word)}
    scopes = never_wider(tuple(word for word in right.scopes if word in given), right.scopes)
    if not set(scopes) - {"offline_access"}:
        raise OAuthError("invalid_scope", "nothing is left of the scope that this client may have")
    return replace(right, scopes=scopes, groups=groups_for(scopes, right.groups))
