"""The private keys of the built-in issuer: made once, kept in files that only their owner can read.

Source: RFC 7517, RFC 7518 §6, RFC 7638 (the thumbprint is the ``kid``); §8 of the token contract.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from doma.auth.files import make_private_dir, read_private, write_private
from doma.core.errors import BadRequest, ConfigError

RSA_BITS = 2048
SECRET = 32
"""Bytes of a symmetric secret."""

Private = RSAKey | ECKey


class KeySet:
    """One signing key for each of RS256 and ES256.

    Args:
        keys: Private keys by algorithm.
    """

    def __init__(self, keys: Mapping[str, Private]) -> None:
        self._keys = {alg: (key.thumbprint(), key) for alg, key in keys.items()}
        self._jwks = {
            "keys": [
                {**key.as_dict(private=False), "use": "sig", "alg": alg, "kid": kid}
                for alg, (kid, key) in self._keys.items()
            ]
        }

    @classmethod
    def load_or_make(cls, folder: Path) -> Self:
        """The keys of a folder, made if they are missing. Two processes that start at once get the same.

        Args:
            folder: Holds ``rs256.pem`` and ``es256.pem`` (PKCS #8, mode 0600); made with mode 0700.

        Raises:
            ConfigError: a file is torn, is no such key, or others can read it.
            StorageFull: no space for a new key.
        """
        make_private_dir(folder)
        return cls({"RS256": _rsa(folder / "rs256.pem"), "ES256": _ec(folder / "es256.pem")})

    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK set: the same object every time, not to be changed."""
        return self._jwks

    def sign(self, claims: Mapping[str, Any], alg: str = "RS256") -> str:
        """A JWT over the claims, in compact form.

        ``typ`` is written as ``JWT``: older verifiers do not know ``at+jwt``.

        Raises:
            BadRequest: there is no key for this algorithm.
        """
        if alg not in self._keys:
            raise BadRequest(f"alg {alg!r}: tokens are signed with one of {', '.join(sorted(self._keys))}")
        kid, key = self._keys[alg]
        body = json.dumps(claims, separators=(",", ":"))
        return jws.serialize_compact({"alg": alg, "kid": kid, "typ": "JWT"}, body, key, algorithms=[alg])


class Secrets:
    """A secret of the storage and the one before it; what another process rotates is seen here.

    Args:
        path: The file; made if it is missing. Beside it ``<name>.previous`` may stand.

    Raises:
        ConfigError: a file is torn or others can read it.
    """

    def __init__(self, path: Path) -> None:
        self._paths = (path, path.with_name(path.name + ".previous"))
        self._mark: tuple[object, ...] = ()
        self._held: tuple[bytes, ...] = ()
        make_private_dir(path.parent)
        write_private(path, secrets.token_bytes(SECRET), replace=False)
        self()

    def __call__(self) -> Sequence[bytes]:
        """The secrets, the one in use first."""
        mark = tuple(_stamp(path) for path in self._paths)
        if mark != self._mark:
            found = tuple(data for path in self._paths if (data := read_private(path)) is not None)
            if not found or any(len(data) != SECRET for data in found):
                raise ConfigError(
                    f"{self._paths[0]}: is torn; remove it, a new one is made at the next start"
                )
            self._mark, self._held = mark, found
        return self._held

    def rotate(self) -> None:
        """Make a new one; what was made with the one before last ends."""
        current, previous = self._paths
        write_private(previous, self()[0])
        write_private(current, secrets.token_bytes(SECRET))


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _rsa(path: Path) -> RSAKey:
    data = read_private(path) or _made(path, RSAKey.generate_key(RSA_BITS))
    key = _loaded(path, data)
    if not isinstance(key, RSAPrivateKey) or key.key_size < RSA_BITS:
        raise _torn(path)
    return RSAKey.import_key(key)


def _ec(path: Path) -> ECKey:
    data = read_private(path) or _made(path, ECKey.generate_key("P-256"))
    key = _loaded(path, data)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise _torn(path)
    return ECKey.import_key(key)


def _loaded(path: Path, data: bytes) -> object:
    try:
        return load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _torn(path) from e


def _made(path: Path, key: Private) -> bytes:
    """The new key as it now stands in the file, or the one that another process wrote first."""
    fresh = key.as_pem(private=True)
    if write_private(path, fresh, replace=False):
        return fresh
    return read_private(path) or b""


def _torn(path: Path) -> ConfigError:
    kind = "RSA key of at least 2048 bits" if path.name.startswith("rs") else "P-256 key"
    return ConfigError(
        f"{path}: is not a whole private {kind}; restore it, or remove it and all tokens it signed end"
    )
