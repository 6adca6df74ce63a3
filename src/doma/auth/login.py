"""Tokens for users: a device or a redirect asks, the user logs in on the issuer's page and agrees.

Source: RFC 8628 (device), RFC 6749 §4.1 with RFC 7636 (code with PKCE, S256 only), OpenID Connect Core 1.0
§2 and §5.3 (id_token, userinfo); §8 of the token contract.
"""

import hmac
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.responses import RedirectResponse, Response

from doma.auth import pages
from doma.auth.clients import Client, Clients, Tries
from doma.auth.codes import Codes, hashed
from doma.auth.compact import parse
from doma.auth.flows import Flows, Right
from doma.auth.issuer import Issuer, groups_for
from doma.auth.ledger import Ledger
from doma.auth.oauth import Form, OAuthError
from doma.auth.scopes import shown, to_scitokens
from doma.auth.turns import near
from doma.core.errors import Conflict, TooManyRequests

DEVICE_LIFE, CODE_LIFE, TICKET_LIFE = 600, 60, 600
"""Seconds that a device code, an authorization code and a page's ticket are good."""
MAX_WAITING, MAX_NEAR = 10_000, 200
"""Devices that may wait for their users at once, in all and of one address: anybody can make one wait."""

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words come out (RFC 8628 §6.1)
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A checked authorization request."""

    client: Client
    redirect: str
    back: Mapping[str, str]
    """``state``, to be given back."""
    scope: str
    audience: tuple[str, ...]
    challenge: str
    nonce: str


class UserFlows(Flows):
    """All of :class:`Flows`, and those with a user.

    Args:
        issuer: Whose; it has a ledger and users.
        ledger: Its memory.
        users: Who can log in.
    """

    def __init__(self, issuer: Issuer, ledger: Ledger, users: Clients) -> None:
        super().__init__(issuer)
        self.codes = Codes(ledger)
        self._users, self._seal = users, ledger.mac
        self._once = ledger.once
        self._guesses = Tries(issuer.clock)
        """Codes of devices that are none, by user: with one of another's device he would be let in there."""

    def offered(self) -> tuple[str, ...]:
        return (*super().offered(), "device_code", "authorization_code")

    def device(self, form: Form, authorization: str | None, *, peer: str = "") -> dict[str, Any]:
        """The answer of the device authorization endpoint (RFC 8628 §3.2).

        Args:
            form: The request.
            authorization: Its header.
            peer: The address that it came from.

        Raises:
            OAuthError: the client is not known, may not do this, or may have none of the scopes.
        """
        now = self.issuer.clock()
        client = self.authenticator.client(form, authorization, now)
        if "device_code" not in client.grants:
            raise OAuthError("unauthorized_client", "this client may not use the device flow")
        peer = near(peer)
        if self.codes.pending(now, peer) >= MAX_NEAR or self.codes.pending(now) >= MAX_WAITING:
            raise OAuthError("temporarily_unavailable", "too many devices wait", 429, **{"Retry-After": "60"})
        scope = form.get("scope") or " ".join(client.scopes)
        code = secrets.token_urlsafe(32)
        for _ in range(5):
            letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
            try:
                self.codes.keep(
                    code, client.id, scope, form.audience, {"kind": "device", "peer": peer},
                    now=now, life=DEVICE_LIFE, user_code=letters,
                )  # fmt: skip
                break
            except Conflict:
                continue
        else:
            raise OAuthError("temporarily_unavailable", "no free code; try again", 503)
        shown_as = f"{letters[:4]}-{letters[4:]}"
        page = f"{self.issuer.url}/device"
        return {
            "device_code": code, "user_code": shown_as, "verification_uri": page, "interval": 5,
            "verification_uri_complete": f"{page}?user_code={shown_as}", "expires_in": DEVICE_LIFE,
        }  # fmt: skip

    def device_page(self, form: Form) -> Response:
        """The next page after a form of ``/device``."""
        now = self.issuer.clock()
        if form.get("ticket"):
            return self._device_decided(form, now)
        typed = form.get("user_code")
        user, why = self._logged_in(form)
        if user is None:
            return pages.login(self.issuer.vo, "device", user_code=typed, why=why, status=401)
        if self._guesses.must_wait(user.id):
            return pages.told("Too many wrong codes", "Wait a minute; then look at it again.", status=429)
        letters = "".join(c for c in typed.upper() if c in _LETTERS)
        row = self.codes.waiting(letters, now) if len(letters) == 8 else None
        client = self.issuer.clients.get(row.client) if row is not None else None
        if row is None or client is None:
            self._guesses.failed(user.id)
            why = "No device waits under this code; look at it again."
            return pages.login(self.issuer.vo, "device", user_code=typed, why=why, status=400)
        try:
            scopes = self.allowed(client, row.scope, user)
        except OAuthError as e:
            return pages.told("Not possible", e.description, status=403)
        ticket = self._sealed({"do": "device", "id": row.id, "user": user.id, "at": int(now)}, now)
        words = to_scitokens(scopes) if client.profile == "scitokens" else scopes
        return pages.consent(user.id, client.id, words, "device", ticket, code=f"{letters[:4]}-{letters[4:]}")

    def _device_decided(self, form: Form, now: float) -> Response:
        ticket = self._opened(form.get("ticket"), "device", now)
        agreed = form.get("decision") == "allow"
        if ticket is None or not self.codes.decide(
            ticket["id"], ticket["user"], ticket["at"], agreed=agreed, now=now
        ):
            return pages.told("Too late", "This page has expired; begin again.", status=400)
        if agreed:
            return pages.told("Done", "The device has what it needs; you can close this page.")
        return pages.told("Refused", "The device gets nothing; you can close this page.")

    def authorize_page(self, query: Form) -> Response:
        """The login page of an authorization request (RFC 6749 §4.1.1); errors go back to the client."""
        asked = self._asked(query)
        if isinstance(asked, Response):
            return asked
        facts = {name: query.get(name) for name in query.single}
        ticket = self._sealed(
            {"do": "login", "query": facts, "audience": list(query.audience)}, self.issuer.clock()
        )
        return pages.login(self.issuer.vo, "authorize", ticket=ticket)

    def authorize_form(self, form: Form) -> Response:
        """The next step after a form of ``/authorize``."""
        now = self.issuer.clock()
        agreed = self._opened(form.get("ticket"), "agree", now)
        ticket = agreed or self._opened(form.get("ticket"), "login", now)
        if ticket is None:
            return pages.told("Too late", "This page has expired; begin again.", status=400)
        asked = self._asked(Form(ticket["query"], tuple(ticket["audience"])))
        if isinstance(asked, Response):
            return asked
        if agreed is not None:
            return self._redirected(asked, agreed, form, now)
        user, why = self._logged_in(form)
        if user is None:
            return pages.login(self.issuer.vo, "authorize", ticket=form.get("ticket"), why=why, status=401)
        try:
            scopes = self.allowed(asked.client, asked.scope, user)
        except OAuthError as e:
            return _back(asked, error=e.error)
        sealed = self._sealed({**ticket, "do": "agree", "user": user.id, "at": int(now)}, now)
        to = urlsplit(asked.redirect)
        back = f"{to.scheme}://{to.netloc}" if to.netloc else f"{to.scheme}:"
        return pages.consent(user.id, asked.client.id, scopes, "authorize", sealed, back=back)

    def userinfo(self, token: str | None) -> dict[str, Any] | None:
        """Who an access token speaks for (OpenID Connect Core §5.3); None if it is not good."""
        claims = self.verified(token or "", self.issuer.clock())
        if claims is None or "openid" not in str(claims["scope"]).split():
            return None
        return {"sub": claims["sub"]} | (
            {"wlcg.groups": claims["wlcg.groups"]} if "wlcg.groups" in claims else {}
        )

    def _for_user(self, way: str, client: Client, form: Form, now: float) -> dict[str, Any]:
        code = form.must("device_code" if way == "device_code" else "code")
        if way == "device_code":
            row = self.codes.take(code, client.id, "device", now)
        else:
            row = self.codes.take(code, client.id, "redirect", now)
            _check_pkce(form, row.details)
        user = self._user(row.subject)
        scopes = self.allowed(client, row.scope, user)
        right = Right(
            client, user.id, scopes, tuple(row.audience) or client.audience,
            groups_for(scopes, user.groups), {"auth_time": int(row.auth_time)}, user=True,
        )  # fmt: skip
        family = refresh = ""
        if "offline_access" in scopes and "refresh_token" in client.grants:
            family, refresh = self.begin(right, now)
        found = self.answer(right, now, refresh=refresh)
        claims = parse(found["access_token"]).claims
        self.codes.gave(row, family, claims["jti"], claims["exp"], now)
        if "openid" in scopes:
            found["id_token"] = self._id_token(
                right, found["access_token"], row.details.get("nonce", ""), now
            )
        return found

    def _id_token(self, right: Right, access_token: str, nonce: str, now: float) -> str:
        half = sha256(access_token.encode()).digest()[:16]
        claims = {
            "iss": self.issuer.url, "sub": right.subject, "aud": right.client.id, "iat": int(now),
            "exp": int(now) + int(self.issuer.lifetime), "auth_time": right.more["auth_time"],
            "at_hash": urlsafe_b64encode(half).rstrip(b"=").decode(),
        }  # fmt: skip
        return self.issuer.keys.sign(claims | ({"nonce": nonce} if nonce else {}), right.client.alg)

    def _asked(self, query: Form) -> _Asked | Response:
        """The request, or the answer that refuses it: a page while it is not sure where to send anybody."""
        client = self.issuer.clients.get(query.get("client_id"))
        redirect = query.get("redirect_uri")
        if client is None or not redirect or redirect not in client.redirect_uris:
            text = "The client or the address to return to is not registered here."
            return pages.told("Not possible", text, status=400)
        asked = _Asked(
            client,
            redirect,
            {name: query.get(name) for name in ("state",) if query.get(name)} | {"iss": self.issuer.url},
            query.get("scope") or " ".join(client.scopes),
            query.audience,
            query.get("code_challenge"),
            query.get("nonce")[:255],
        )
        if query.get("response_type") != "code":
            return _back(asked, error="unsupported_response_type")
        if "authorization_code" not in client.grants:
            return _back(asked, error="unauthorized_client")
        if query.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(asked.challenge):
            return _back(asked, error="invalid_request", error_description="PKCE with S256 is needed")
        return asked

    def _redirected(self, asked: _Asked, ticket: Mapping[str, Any], form: Form, now: float) -> Response:
        name = hashed(f"ticket {form.get('ticket')}")
        if not self._once(name, asked.client.id, now + TICKET_LIFE, now):
            return pages.told("Too late", "This page was used already; begin again.", status=400)
        if form.get("decision") != "allow":
            return _back(asked, error="access_denied")
        code = secrets.token_urlsafe(32)
        details = {
            "kind": "redirect", "redirect_uri": asked.redirect, "challenge": asked.challenge,
            "nonce": asked.nonce,
        }  # fmt: skip
        self.codes.keep(
            code, asked.client.id, asked.scope, asked.audience, details,
            now=now, life=CODE_LIFE, subject=ticket["user"], auth_time=ticket["at"],
        )  # fmt: skip
        return _back(asked, code=code)

    def _logged_in(self, form: Form) -> tuple[Client | None, str]:
        """The user whose name and password these are, or what to say."""
        name, password = form.get("username"), form.get("password")
        try:
            user = self._users.authenticate(name, password) if name and password else None
        except TooManyRequests:
            return None, "Too many wrong passwords; wait a minute."
        return user, "" if user is not None else "Name or password is wrong."

    def _sealed(self, facts: Mapping[str, Any], now: float) -> str:
        body = json.dumps({**facts, "until": now + TICKET_LIFE, "salt": secrets.token_hex(8)}).encode()
        text = urlsafe_b64encode(body).rstrip(b"=").decode()
        return f"{text}.{self._seal(f'ticket {text}')}"

    def _opened(self, ticket: str, purpose: str, now: float) -> dict[str, Any] | None:
        text, _, seal = ticket.partition(".")
        if not ticket.isascii() or not hmac.compare_digest(seal, self._seal(f"ticket {text}")):
            return None
        facts: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return facts if facts["do"] == purpose and now < facts["until"] else None


def _check_pkce(form: Form, details: Mapping[str, Any]) -> None:
    """The one who redeems is the one who began (RFC 7636 §4.6)."""
    verifier = form.must("code_verifier")
    digest = urlsafe_b64encode(sha256(verifier.encode("utf-8", "surrogatepass")).digest()).rstrip(b"=")
    if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(digest.decode(), details["challenge"]):
        raise OAuthError("invalid_grant", "code_verifier does not fit the code")
    if form.get("redirect_uri") != details["redirect_uri"]:
        raise OAuthError("invalid_grant", f"redirect_uri must be {shown(details['redirect_uri'])}")


def _back(asked: _Asked, **facts: str) -> Response:
    joint = "&" if "?" in asked.redirect else "?"
    target = f"{asked.redirect}{joint}{urlencode({**facts, **asked.back})}"
    return RedirectResponse(target, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
