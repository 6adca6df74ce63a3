"""What a token says, once its signature is good: the checks that turn claims into an identity.

Source: WLCG Common JWT Profile 1.3, SciTokens 2.0, RFC 9068, RFC 7519 §4.1; rules T4-T11, T19 and §4 of
the token contract.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from doma.auth.audience import SCITOKENS_ANY, WLCG_ANY
from doma.auth.model import Identity
from doma.auth.scopes import Profile, capabilities, is_group, shown, words
from doma.core.config import Issuer
from doma.core.errors import BadRequest, InvalidToken

MAX_SUBJECT = 255

_VERSION = re.compile(r"([0-9]{1,4})\.[0-9]+")
_SCITOKEN = ("scitoken:2.0", "scitokens:2.0")
_SUBJECT = re.compile(r"[\x20-\x7e]+")


def identity_of(
    claims: Mapping[str, Any], issuer: Issuer, audiences: frozenset[str], now: float, skew: float
) -> Identity:
    """The identity that verified claims stand for.

    Args:
        claims: The JSON object whose signature was checked.
        issuer: The trusted issuer that signed it.
        audiences: Our own names, see :func:`doma.auth.audience.accepted`.
        now: Unix seconds.
        skew: Seconds that ``nbf`` and ``iat`` may lie in the future; ``exp`` has no grace.

    Raises:
        InvalidToken: a check failed; the message names it and what was expected.
    """
    profile = _profile(claims, issuer)
    expires = _times(claims, now, skew)
    _life(claims, issuer, expires, now)
    subject = _subject(claims, required=profile != "scitokens")
    _required(claims, issuer, profile)
    audience = _audience(claims, issuer, profile, audiences)
    if ("nonce" in claims or "at_hash" in claims) and "scope" not in claims and "wlcg.groups" not in claims:
        raise InvalidToken("token: this is an ID token; send the access token instead")
    try:
        scopes = words(claims.get("scope"))
        rights = capabilities(scopes, profile)
    except BadRequest as e:
        raise InvalidToken(f"token: {e.message}") from e
    return Identity(
        issuer=issuer.issuer,
        subject=subject,
        expires=expires,
        vo=issuer.vo,
        client=_text(claims, "client_id") or _text(claims, "azp"),
        audience=audience,
        capabilities=rights,
        scopes=scopes,
        groups=_groups(claims, issuer.vo),
        jti=_text(claims, "jti"),
    )


def _profile(claims: Mapping[str, Any], issuer: Issuer) -> Profile:
    """Which profile the token follows (T6, T7)."""
    wlcg, sci = claims.get("wlcg.ver"), claims.get("ver")
    if wlcg is not None:
        match = _VERSION.fullmatch(wlcg) if isinstance(wlcg, str) else None
        if match is None or int(match[1]) != 1:
            is_now = shown(wlcg) if isinstance(wlcg, str) else "not a string"
            raise InvalidToken(f"token: wlcg.ver is {is_now}; expected 1.0 or another 1.x")
        found: Profile = "wlcg"
    elif sci in _SCITOKEN:
        found = "scitokens"
    else:
        found = "any"
    if issuer.profile not in {found, "any"}:
        claim = "wlcg.ver 1.x" if issuer.profile == "wlcg" else "ver scitoken:2.0 and no wlcg.ver"
        raise InvalidToken(
            f"token: tokens of {issuer.issuer} must follow the profile {issuer.profile}; expected {claim}"
        )
    return found


def _times(claims: Mapping[str, Any], now: float, skew: float) -> float:
    """The expiry, if the token is valid at this moment (T4)."""
    expires = _instant(claims, "exp")
    if expires is None:
        raise InvalidToken("token: exp is missing; expected an expiry time")
    if now >= expires:
        raise InvalidToken(f"token: expired (exp) at {_utc(expires)}, now is {_utc(now)}; get a new one")
    for name in ("nbf", "iat"):
        instant = _instant(claims, name)
        if instant is not None and instant > now + skew:
            raise InvalidToken(
                f"token: {name} is {_utc(instant)}, now is {_utc(now)};"
                f" at most {skew:g} s in the future are accepted"
            )
    return expires


def _life(claims: Mapping[str, Any], issuer: Issuer, expires: float, now: float) -> None:
    """No longer than this issuer's tokens may live (T4); a token that hides its beginning began now."""
    begun = _instant(claims, "iat")
    life = expires - (now if begun is None else begun)
    if 0 < issuer.max_lifetime < life:
        raise InvalidToken(
            f"token: lives {life:g} s (exp - iat); {issuer.issuer} may give {issuer.max_lifetime:g} s"
        )


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    # A year below 10^6: what no calendar has is no time, and inf would live for ever.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3e13:
        raise InvalidToken(f"token: {name} must be a number of seconds since 1970")
    return float(value)


def _subject(claims: Mapping[str, Any], *, required: bool) -> str:
    value = claims.get("sub")
    if value is None and not required:
        return ""
    if not isinstance(value, str) or len(value) > MAX_SUBJECT or not _SUBJECT.fullmatch(value):
        raise InvalidToken(f"token: sub must be printable ASCII of 1 to {MAX_SUBJECT} characters")
    return value


def _required(claims: Mapping[str, Any], issuer: Issuer, profile: Profile) -> None:
    """``iat`` and ``jti`` are there, unless this issuer is known to leave them out (T8)."""
    if issuer.lenient or profile == "scitokens":
        return
    for name in ("iat", "jti"):
        if not claims.get(name):
            raise InvalidToken(f"token: {name} is missing; {issuer.issuer} must write it")


def _audience(
    claims: Mapping[str, Any], issuer: Issuer, profile: Profile, ours: frozenset[str]
) -> tuple[str, ...]:
    """The audience, if one element is ours: exact, case-sensitive (T5)."""
    value = claims.get("aud")
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(item, str) for item in listed):
        raise InvalidToken("token: aud is missing; expected a name of this server")
    wild = {"wlcg": {WLCG_ANY}, "scitokens": {SCITOKENS_ANY}, "any": {WLCG_ANY, SCITOKENS_ANY}}[profile]
    accepted = ours | wild if issuer.wildcard_audience else ours
    if accepted.isdisjoint(listed):
        # the fullest of our names: what a new token should hold
        this = min(ours, key=lambda n: (not n.startswith("https://"), -len(n), n), default="nameless")
        raise InvalidToken(f"token: aud is {shown(' '.join(listed))}, this is {this}; ask for that audience")
    return tuple(listed)


def _groups(claims: Mapping[str, Any], vo: str) -> tuple[str, ...]:
    """The groups of the issuer's own VO, in order (T19)."""
    value = claims.get("wlcg.groups")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidToken("token: wlcg.groups must be a list of group names")
    # Another VO's group would borrow the rights that this site gave to that VO.
    return tuple(g for g in value if is_group(g) and (not vo or g.split("/")[1] == vo))


def _text(claims: Mapping[str, Any], name: str) -> str:
    """A claim that is printable and of sensible length, or nothing."""
    value = claims.get(name)
    return value if isinstance(value, str) and len(value) <= MAX_SUBJECT and _SUBJECT.fullmatch(value) else ""


def _utc(instant: float) -> str:
    """The instant for people; the plain number when no calendar has it."""
    whole = math.floor(instant)
    try:
        return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(whole)
