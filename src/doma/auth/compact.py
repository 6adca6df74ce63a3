"""A JWT taken apart, and its signature checked: nothing here believes what the token says.

The header only selects: ``alg`` must be one of two, ``kid`` names a key of an issuer that is trusted
already. ``jku``, ``x5u``, ``jwk`` and ``x5c`` are never followed; a token with ``crit`` is refused.

Source: RFC 7515 §5.2 and §7.1, RFC 7518 §3.3-3.4, RFC 8725 §2-3; rules T1-T3 of the token contract.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from doma.auth.scopes import shown
from doma.core.errors import InvalidToken

MAX_TOKEN = 16 << 10
"""Bytes of the largest token that is looked at."""
MAX_KEYS = 100
"""Keys of one issuer that are looked at."""
ALGORITHMS = ("RS256", "ES256")

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ES256_HALF = 32


@dataclass(frozen=True, slots=True)
class Compact:
    """The parts of a token, unverified."""

    alg: str
    kid: str | None
    issuer: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of an issuer and the one algorithm it is used with."""

    alg: str
    key: RSAPublicKey | EllipticCurvePublicKey


Keys = Mapping[tuple[str, str], PublicKey]
"""By ``(kid, alg)``; a key without ``kid`` has the empty one."""


def parse(token: str) -> Compact:
    """Take a token apart.

    Raises:
        InvalidToken: it is no JWS of three parts and at most 16 KiB, uses another algorithm than RS256 and
            ES256, has ``crit``, or has no ``iss``.
    """
    if len(token) > MAX_TOKEN:
        raise InvalidToken(f"token: has {len(token)} bytes; at most {MAX_TOKEN} are accepted")
    if not _COMPACT.fullmatch(token):
        raise InvalidToken("token: is not a JWT; expected three base64url parts joined by dots")
    head, body, signature = token.split(".")
    header = _object(head, "header")
    alg, kid = header.get("alg"), header.get("kid")
    if alg not in ALGORITHMS:
        raise InvalidToken(f"token: alg is {_named(alg)}; expected one of {', '.join(ALGORITHMS)}")
    if "crit" in header:
        raise InvalidToken("token: critical header extensions (crit) are not supported")
    if kid is not None and (not isinstance(kid, str) or not kid):
        raise InvalidToken("token: kid must be a string that names a key")
    claims = _object(body, "claims")
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or not issuer:
        raise InvalidToken("token: iss is missing; expected the URL of a trusted issuer")
    return Compact(alg, kid, issuer, claims, f"{head}.{body}".encode(), _decoded(signature, "signature"))


def check_signature(token: Compact, key: PublicKey) -> None:
    """Return if the key made the signature.

    Raises:
        InvalidToken: it did not, or belongs to another algorithm.
    """
    if key.alg != token.alg:
        raise InvalidToken(f"token: alg is {token.alg}, but its key is for {key.alg}")
    try:
        if isinstance(key.key, RSAPublicKey):
            key.key.verify(token.signature, token.signed, PKCS1v15(), SHA256())
        else:
            key.key.verify(_der(token.signature), token.signed, ECDSA(SHA256()))
    except InvalidSignature as e:
        raise InvalidToken(
            f"token: the signature does not fit its content and the key of {shown(token.issuer)}"
        ) from e


def keys_of(jwks: object) -> dict[tuple[str, str], PublicKey]:
    """The usable keys of a JWK set; others (encryption, other curves, weak RSA) are left out.

    Raises:
        ValueError: it is not a JWK set.

    >>> keys_of({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]})
    {}
    """
    listed = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(listed, list):
        raise ValueError("not a JWK set: 'keys' is not a list")  # noqa: TRY004 - one error for its callers
    found: dict[tuple[str, str], PublicKey] = {}
    for entry in listed[:MAX_KEYS]:
        key = _public(entry) if isinstance(entry, Mapping) else None
        if key is not None:
            kid = entry.get("kid")
            found.setdefault((kid if isinstance(kid, str) else "", key.alg), key)
    return found


def _der(signature: bytes) -> bytes:
    """The two numbers of fixed width (RFC 7518 §3.4) in the form that OpenSSL reads."""
    if len(signature) != 2 * _ES256_HALF:
        raise InvalidSignature
    r, s = signature[:_ES256_HALF], signature[_ES256_HALF:]
    return encode_dss_signature(int.from_bytes(r), int.from_bytes(s))


def _public(entry: Mapping[str, Any]) -> PublicKey | None:
    """The public part of a JWK that may check signatures, else None."""
    operations = entry.get("key_ops")
    if entry.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    kty, alg = entry.get("kty"), entry.get("alg")
    try:
        if kty == "RSA" and alg in {None, "RS256"}:
            n, e = _number(entry["n"]), _number(entry["e"])
            return PublicKey("RS256", RSAPublicNumbers(e, n).public_key()) if _strong(n, e) else None
        if kty == "EC" and alg in {None, "ES256"} and entry.get("crv") == "P-256":
            point = EllipticCurvePublicNumbers(_number(entry["x"]), _number(entry["y"]), SECP256R1())
            return PublicKey("ES256", point.public_key())
    except (KeyError, ValueError, TypeError):
        return None
    return None


def _number(text: str) -> int:
    return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))


def _strong(n: int, e: int) -> bool:
    """Neither too weak to trust (NIST SP 800-131A) nor so large that a check costs milliseconds."""
    return 2048 <= n.bit_length() <= 8192 and e.bit_length() <= 32


def _named(value: object) -> str:
    return shown(value) if isinstance(value, str) else "not a string"


def _object(part: str, name: str) -> dict[str, Any]:
    try:
        # As text: given bytes, the parser would guess UTF-16 and the like.
        text = _decoded(part, name).decode()
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise InvalidToken(f"token: its {name} cannot be read as JSON") from e
    if not isinstance(found, dict):
        raise InvalidToken(f"token: its {name} must be a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # RFC 7519 §4 lets us take the last one; another verifier may take the first.
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _decoded(part: str, name: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError as e:
        raise InvalidToken(f"token: its {name} is not base64url") from e
