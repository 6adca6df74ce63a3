"""The private keys of the built-in issuer: made once, kept in files that only their owner can read.

Source: RFC 7517, RFC 7518 §6, RFC 7638 (the thumbprint is the ``kid``); §8 of the token contract.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from doma.auth.files import make_private_dir, read_private, write_private
from doma.core.errors import BadRequest, ConfigError, Conflict

RSA_BITS = 2048
SECRET = 32
"""Bytes of a symmetric secret."""

PUBLISHED = 2 * 86400.0
"""Seconds that new keys are published before they sign: as long as verifiers may keep old ones."""
KEEP = 404 * 86400.0
"""Seconds that old keys stay published after they signed last: the longest life of a token, and 4 days."""

Private = RSAKey | ECKey

_ROTATION = "rotation.json"


class _Generation(NamedTuple):
    """One key for each algorithm, and the moment from which they sign."""

    since: float
    keys: dict[str, tuple[str, Private]]


class KeySet:
    """A signing key for each of RS256 and ES256, those that come next, and those that went before.

    Args:
        keys: Private keys by algorithm.
        clock: Unix seconds.
    """

    def __init__(self, keys: Mapping[str, Private], clock: Callable[[], float] = time.time) -> None:
        self._generations = [_generation(0.0, keys)]
        self._clock = clock
        self._folder: Path | None = None
        self._mark: object = None
        self._jwks: dict[str, Any] = {}
        self._published: list[float] = []

    @classmethod
    def load_or_make(cls, folder: Path, clock: Callable[[], float] = time.time) -> Self:
        """The keys of a folder, made if they are missing. Two processes that start at once get the same.

        What :func:`rotate` does to the folder meanwhile is seen at the next use.

        Args:
            folder: Holds ``rs256.pem`` and ``es256.pem`` (PKCS #8, mode 0600); made with mode 0700.
            clock: Unix seconds.

        Raises:
            ConfigError: a file is torn, is no such key, or others can read it.
            StorageFull: no space for a new key.
        """
        make_private_dir(folder)
        keys = cls(_pair(folder, _plan(folder)[0].number), clock)
        keys._folder = folder
        return keys

    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK set: the same object until they change, not to be changed."""
        found = self._current()
        if self._published != [generation.since for generation in found]:
            self._published = [generation.since for generation in found]
            self._jwks = {
                "keys": [
                    {**key.as_dict(private=False), "use": "sig", "alg": alg, "kid": kid}
                    for generation in found
                    for alg, (kid, key) in generation.keys.items()
                ]
            }
        return self._jwks

    def _current(self) -> list[_Generation]:
        """All generations that count, the oldest first, as the folder has them now."""
        if self._folder is not None and (mark := _stamp(self._folder / _ROTATION)) != self._mark:
            self._generations = [
                _generation(entry.since, _pair(self._folder, entry.number)) for entry in _plan(self._folder)
            ]
            self._mark = mark
        now, ends = self._clock(), [generation.since + KEEP for generation in self._generations[1:]]
        return [g for g, end in zip(self._generations, [*ends, inf], strict=True) if end > now]

    def sign(self, claims: Mapping[str, Any], alg: str = "RS256") -> str:
        """A JWT over the claims, in compact form.

        ``typ`` is written as ``JWT``: older verifiers do not know ``at+jwt``.

        Raises:
            BadRequest: there is no key for this algorithm.
        """
        now = self._clock()
        found = self._current()
        keys = next((g for g in reversed(found) if g.since <= now), found[0]).keys
        if alg not in keys:
            raise BadRequest(f"alg {alg!r}: tokens are signed with one of {', '.join(sorted(keys))}")
        kid, key = keys[alg]
        body = json.dumps(claims, separators=(",", ":"))
        return jws.serialize_compact({"alg": alg, "kid": kid, "typ": "JWT"}, body, key, algorithms=[alg])


def rotate(folder: Path, now: float, *, at_once: bool = False, drop: bool = False) -> float:
    """Make new signing keys: published at once, used when every verifier has them.

    Args:
        folder: See :meth:`KeySet.load_or_make`; running processes follow.
        now: Unix seconds.
        at_once: Sign with them from now on: verifiers that have not fetched them yet refuse such tokens for
            up to :data:`PUBLISHED`.
        drop: Withdraw all older keys, with every token that they signed; only ``at_once``.

    Returns:
        Unix seconds from which they sign.

    Raises:
        Conflict: new keys are published already and do not sign yet.
        BadRequest: ``drop`` without ``at_once``. ConfigError, StorageFull: the folder cannot be used.
    """
    if drop and not at_once:
        raise BadRequest("keys: old ones can only be withdrawn when new ones sign at once; add --now")
    make_private_dir(folder)
    plan = _plan(folder)
    _pair(folder, plan[0].number)
    waiting = [entry for entry in plan if entry.since > now]
    if waiting and not at_once:
        raise Conflict(
            f"keys: new ones sign from {waiting[0].since:.0f} on (Unix seconds); use --now to hurry"
        )
    ends = [*(entry.since + KEEP for entry in plan[1:]), inf]
    kept = [entry for entry, end in zip(plan, ends, strict=True) if end > now and entry not in waiting]
    fresh = _Entry(max(entry.number for entry in plan) + 1, now if at_once else now + PUBLISHED)
    _pair(folder, fresh.number)
    left = [fresh] if drop else [*kept, fresh]
    body = {"generations": [entry._asdict() for entry in left]}
    write_private(folder / _ROTATION, json.dumps(body).encode())
    for entry in plan:
        if entry not in left:
            for name in _names(entry.number).values():
                (folder / name).unlink(missing_ok=True)
    return fresh.since


class _Entry(NamedTuple):
    number: int
    since: float


def _plan(folder: Path) -> list[_Entry]:
    """The generations of a folder, the oldest first."""
    path = folder / _ROTATION
    data = read_private(path)
    if data is None:
        return [_Entry(1, 0.0)]
    try:
        found = [_Entry(int(e["number"]), float(e["since"])) for e in json.loads(data)["generations"]]
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path}: is torn; restore it, or remove it to sign with the first keys") from e
    if not found:
        raise ConfigError(f"{path}: names no keys; restore it")
    return sorted(found, key=lambda entry: entry.since)


def _names(number: int) -> dict[str, str]:
    tail = "" if number == 1 else f"-{number}"
    return {"RS256": f"rs256{tail}.pem", "ES256": f"es256{tail}.pem"}


def _pair(folder: Path, number: int) -> dict[str, Private]:
    names = _names(number)
    return {"RS256": _rsa(folder / names["RS256"]), "ES256": _ec(folder / names["ES256"])}


def _generation(since: float, keys: Mapping[str, Private]) -> _Generation:
    return _Generation(since, {alg: (key.thumbprint(), key) for alg, key in keys.items()})


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
