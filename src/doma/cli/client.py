"""``doma client``, ``doma user`` and ``doma keys``: the registrations and keys of a home's own issuer."""

import json as json_text
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doma.app.home import Home, default_home
from doma.app.identity import clients_of, users_of
from doma.auth.clients import GRANTS, INTERACTIVE, Clients
from doma.auth.keys import Secrets
from doma.auth.keys import rotate as rotate_keys
from doma.cli import show
from doma.cli.token import duration
from doma.core.errors import BadRequest, ConfigError

MIN_PASSWORD = 10
"""Characters of the shortest password that is taken."""
MAX_KEYS_FILE = 1 << 20


def add_client(home: Path | None, name: str, scope: str, json: bool, **fields: Any) -> None:
    """Register a client; the secret is printed once and kept as a hash only."""
    grants = tuple(fields.pop("grants")) or (INTERACTIVE if fields["public"] else GRANTS)
    unknown = [grant for grant in grants if grant not in {*GRANTS, *INTERACTIVE}]
    if unknown:
        raise BadRequest(f"grant {unknown[0]!r}: must be one of {', '.join(sorted({*GRANTS, *INTERACTIVE}))}")
    for span in ("lifetime", "refresh_lifetime"):
        fields[span] = duration(fields[span]) if fields[span] else None
    jwks = fields.pop("jwks")
    fields["jwks"] = _jwks(jwks) if jwks is not None else ()
    secret = _registered(home, users=False).add(name, scope.split(), grants=grants, **fields)
    if json:
        show.as_json({"client_id": name} | ({"client_secret": secret} if secret else {}))
    elif secret:
        print(secret)


def add_user(
    home: Path | None, name: str, scope: str, groups: Sequence[str], password_stdin: bool, json: bool
) -> None:
    """Register a user; a password that was made here is printed once."""
    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else None
    if password is not None and len(password) < MIN_PASSWORD:
        raise BadRequest(f"password: must have at least {MIN_PASSWORD} characters")
    made = _registered(home, users=True).add(name, scope.split(), secret=password, groups=groups, grants=())
    if json:
        show.as_json({"user": name} | ({"password": made} if password is None else {}))
    elif password is None:
        print(made)


def list_all(home: Path | None, json: bool, *, users: bool) -> None:
    """Everybody who is registered; no secret is shown."""
    found = [entry.model_dump(mode="json", exclude={"secret"}) for entry in _registered(home, users=users)]
    if json:
        show.as_json(found)
        return
    rows = [
        (
            entry["id"],
            " ".join(entry["scopes"]),
            " ".join(entry["groups"]),
            "" if users else "public" if entry["public"] else "key" if entry["jwks"] else "secret",
            " ".join(entry["grants"]),
        )
        for entry in found
    ]
    show.table("Users" if users else "Clients", ("id", "scopes", "groups", "proof", "grants"), rows)


def remove(home: Path | None, name: str, json: bool, *, users: bool) -> None:
    """Forget a client or user."""
    _registered(home, users=users).remove(name)
    if json:
        show.as_json({"removed": name})


def rotate(home: Path | None, now: bool, drop: bool, macaroons: bool, json: bool) -> None:
    """New keys; with ``--now`` verifiers far away may refuse tokens until they have fetched them."""
    keys = _home(home) / "keys"
    if macaroons:
        if now or drop:
            raise BadRequest("keys rotate: --macaroons takes effect at once; leave out --now and --drop")
        Secrets(keys / "macaroon.key").rotate()
        told: dict[str, Any] = {"macaroons": True}
        said = "macaroons: a new secret signs; those of the one before still count"
    else:
        since = rotate_keys(keys, time.time(), at_once=now, drop=drop)
        told = {"signs_from": since}
        stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
        said = f"keys: new ones are published and sign from {stamp} on"
        if now:
            said += "; verifiers that have not fetched them yet refuse such tokens for a while"
    if json:
        show.as_json(told)
    else:
        print(said)


def _home(home: Path | None) -> Home:
    found = Home(home or default_home())
    if not (found / "keys").is_dir():
        raise ConfigError(
            f"{found.path}: has no issuer yet; start it once with 'doma up --home {found.path}'"
        )
    return found


def _registered(home: Path | None, *, users: bool) -> Clients:
    return users_of(_home(home)) if users else clients_of(_home(home))


def _jwks(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_KEYS_FILE:
            raise ConfigError(f"{path}: is larger than {MAX_KEYS_FILE} bytes")
        found = json_text.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: cannot be read as a JWK set: {e}") from e
    keys = found.get("keys", [found]) if isinstance(found, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise ConfigError(f"{path}: is no JWK set; expected {{'keys': [...]}}")
    private = [key for key in keys if "d" in key or key.get("kty") == "oct"]
    if private:
        raise ConfigError(f"{path}: holds a private key; give the public part only")
    return keys
