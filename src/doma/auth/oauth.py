"""What all OAuth endpoints of the issuer share: their errors, their forms, and which client asks.

FTS writes its forms without percent-encoding, so blanks, ``:`` and ``/`` may come raw.

Source: RFC 6749 §2.3 and §5.2, RFC 7523 §2.2 (private_key_jwt); §8 of the token contract.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol
from urllib.parse import parse_qsl, unquote_plus

from doma.auth.clients import Client, Clients
from doma.auth.compact import check_signature, keys_of, parse
from doma.auth.scopes import shown
from doma.core.errors import DomaError, InvalidToken, TooManyRequests

MAX_FORM = 64 << 10
"""Bytes of the largest form that is read."""
MAX_FIELDS = 100
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_LIFE = 3600.0
"""Seconds that a client's assertion may be valid."""

_REPEATABLE = {"audience", "resource"}


class OAuthError(Exception):
    """A refusal of RFC 6749 §5.2."""

    def __init__(self, error: str, description: str, status: int = 400, **headers: str) -> None:
        super().__init__(description)
        self.error, self.description, self.status, self.headers = error, description, status, headers

    def body(self) -> dict[str, str]:
        """The JSON answer: printable ASCII without quote and backslash."""
        text = "".join(c if " " <= c <= "~" and c not in '"\\' else "'" for c in self.description)
        return {"error": self.error, "error_description": text}


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request; only the audience may repeat."""

    single: Mapping[str, str]
    audience: tuple[str, ...] = field(default=())

    def get(self, name: str) -> str:
        """A parameter, empty if it is not there."""
        return self.single.get(name, "")

    def must(self, name: str) -> str:
        """A parameter that is needed.

        Raises:
            OAuthError: it is missing or empty.
        """
        value = self.single.get(name)
        if not value:
            raise OAuthError("invalid_request", f"{name} is missing")
        return value


class Once(Protocol):
    """Remembers names that may be used once."""

    def once(self, name: str, client: str, expires: float, now: float) -> bool:
        """Whether the name was never used before."""


def read_form(body: bytes) -> Form:
    """The form, blanks and other characters taken raw or encoded.

    Raises:
        OAuthError: it is no form, too large, or repeats a parameter.
    """
    if len(body) > MAX_FORM:
        raise OAuthError("invalid_request", f"the form is larger than {MAX_FORM} bytes", 413)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as e:
        raise OAuthError("invalid_request", "the body is not a form in UTF-8 of at most 100 fields") from e
    single: dict[str, str] = {}
    audience: dict[str, None] = {}
    for name, value in pairs:
        if name in _REPEATABLE:
            audience.update((word, None) for word in value.split())
        elif single.setdefault(name, value) != value:
            raise OAuthError("invalid_request", f"{shown(name)} is given twice")
    return Form(single, tuple(audience))


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Tells which client a request comes from.

    Args:
        clients: Who is registered.
        names: What an assertion's ``aud`` may be: the issuer and its token endpoint.
        memory: Refuses an assertion that comes again; None: no assertion is taken.
    """

    clients: Clients
    names: frozenset[str]
    memory: Once | None = None

    def client(self, form: Form, authorization: str | None, now: float) -> Client:
        """The client, which has proved who it is, or is public and only says so.

        Raises:
            OAuthError: ``invalid_client``, or the request holds two credentials.
        """
        posted_id, posted = form.get("client_id"), form.single.get("client_secret")
        ways = (authorization is not None) + (posted is not None) + ("client_assertion" in form.single)
        if ways > 1:
            raise OAuthError("invalid_request", "the client authenticates twice; use one way only")
        if authorization is not None:
            attempts = _basic(authorization)
            if posted_id and posted_id not in {client_id for client_id, _ in attempts}:
                raise OAuthError("invalid_request", "client_id is not the client that authenticates")
            return self._by_secret(attempts)
        if posted is not None:
            return self._by_secret([(posted_id, posted)])
        if "client_assertion" in form.single:
            return self._by_assertion(form, now)
        found = self._registered(posted_id)
        if found is None or not found.public:
            raise _refused("the client must authenticate, by Basic or by client_id and client_secret")
        return found

    def _registered(self, client_id: str) -> Client | None:
        try:
            return self.clients.get(client_id)
        except DomaError as e:
            raise _unreadable() from e

    def _by_secret(self, attempts: list[tuple[str, str]]) -> Client:
        try:
            for client_id, secret in attempts:
                client = self.clients.authenticate(client_id, secret)
                if client is not None:
                    return client
        except TooManyRequests as e:
            raise OAuthError("temporarily_unavailable", e.message, 429, **{"Retry-After": "60"}) from e
        except DomaError as e:
            raise _unreadable() from e
        raise _refused("unknown client or wrong secret")

    def _by_assertion(self, form: Form, now: float) -> Client:
        if self.memory is None or form.get("client_assertion_type") != ASSERTION:
            raise _refused(f"client_assertion_type must be {ASSERTION}")
        try:
            token = parse(form.get("client_assertion"))
            client = self._registered(token.issuer)
            key = keys_of({"keys": list(client.jwks)}).get((token.kid or "", token.alg)) if client else None
            if client is None or key is None:
                raise _refused("the assertion is not of a registered client with that key")
            check_signature(token, key)
        except InvalidToken as e:
            raise _refused(f"client_assertion: {e.message}") from e
        claims = token.claims
        said, expires, jti = claims.get("aud"), claims.get("exp"), claims.get("jti")
        audience = [said] if isinstance(said, str) else said
        if claims.get("sub") != client.id or form.get("client_id") not in {"", client.id}:
            raise _refused("client_assertion: iss, sub and client_id must all be the client")
        if not isinstance(audience, list) or not any(
            isinstance(name, str) and name in self.names for name in audience
        ):
            raise _refused(f"client_assertion: aud must be {min(self.names)}")
        if isinstance(expires, bool) or not isinstance(expires, int | float):
            raise _refused("client_assertion: exp must be a number")
        if not now < expires <= now + ASSERTION_LIFE or not isinstance(jti, str) or not jti:
            raise _refused("client_assertion: has expired, lives longer than an hour, or has no jti")
        name = sha256(f"assertion\0{client.id}\0{jti}".encode("utf-8", "surrogatepass")).hexdigest()
        if not self.memory.once(name, client.id, float(expires), now):
            raise _refused("client_assertion: was used before; sign a new one")
        return client


def _basic(authorization: str) -> list[tuple[str, str]]:
    """User and password, percent-decoded as the standard says, then raw as many clients send them."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        raise _refused("the token endpoint takes Basic, client_secret_post or private_key_jwt")
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError as e:
        raise _refused("the Basic credential is not base64 of 'id:secret'") from e
    user, colon, password = text.partition(":")
    if not colon:
        raise _refused("the Basic credential is not base64 of 'id:secret'")
    decoded = (unquote_plus(user), unquote_plus(password))
    return list(dict.fromkeys([decoded, (user, password)]))


def _refused(why: str) -> OAuthError:
    return OAuthError("invalid_client", why, 401, **{"WWW-Authenticate": 'Basic realm="token"'})


def _unreadable() -> OAuthError:
    return OAuthError("server_error", "the clients cannot be read now; the log has the cause", 500)
