"""The registered clients of the built-in issuer: one private JSON file, secrets only as scrypt hashes.

Its users, who log in with a password on the issuer's own pages, are the same in another file. A file is read
again when it has changed, so that the command line can add a client to a running issuer.

Source: RFC 6749 §2; RFC 7914 (scrypt); §8 "Policy" and "Secrets" of the token contract.
"""

import hmac
import json
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b, scrypt
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from doma.auth.files import make_private_dir, read_private, write_private
from doma.auth.scopes import check_words, is_group
from doma.core.errors import AlreadyExists, BadRequest, ConfigError, NotFound, TooManyRequests

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
_COST = 1 << 14  # 16 MiB and some 40 ms: what RFC 7914 §2 calls interactive
_FILE_LIMIT = 16 << 20
_NOBODY = f"scrypt${secrets.token_hex(16)}${secrets.token_hex(64)}"
"""What a name without a secret is checked against, so that it takes as long as one with: nothing fits."""

GRANTS = ("client_credentials", "token-exchange", "refresh_token")
"""What a client may ask for unless it says otherwise; a public one never the first two."""
INTERACTIVE = ("device_code", "authorization_code", "refresh_token")
"""The same for a client that acts for users."""

TRIES = 10
"""Wrong secrets that one client may send in a minute."""
NAMES = 10_000
"""Names whose wrong secrets are counted: more than can be checked in a minute, so none is forgotten early."""


class Tries:
    """Counts what was wrong, by name: after :data:`TRIES` within a minute that name has to wait.

    Anybody can make up names: the :data:`NAMES` that were wrong last are remembered, for a minute.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: dict[str, deque[float]] = {}

    def failed(self, name: str) -> None:
        """One more was wrong."""
        now = self._clock()
        with self._lock:
            times = self._failed.pop(name, deque(maxlen=TRIES))
            times.append(now)
            self._failed[name] = times
            while len(self._failed) > NAMES or now - next(iter(self._failed.values()))[-1] >= 60:
                del self._failed[next(iter(self._failed))]

    def must_wait(self, name: str) -> bool:
        """Whether there were too many in the last minute."""
        with self._lock:
            failures = self._failed.get(name)
            return bool(failures and len(failures) == TRIES and 0 <= self._clock() - failures[0] < 60)


class Client(BaseModel):
    """A registered client, or a user; its secret is not in here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    scopes: tuple[str, ...] = ()
    """What it may ask for; a storage scope covers all that lies below (T12)."""
    audience: tuple[str, ...] = ()
    """Audience of its tokens when it asks for none."""
    groups: tuple[str, ...] = ()
    """Groups that its tokens may state, in this order by default."""
    lifetime: float | None = Field(default=None, gt=0)
    """Longest life of its tokens in seconds; None: the issuer's."""
    refresh_lifetime: float | None = Field(default=None, gt=0)
    """Life of its refresh tokens in seconds; None: the issuer's."""
    grants: tuple[str, ...] = GRANTS
    """Ways to a token that it may use."""
    redirect_uris: tuple[str, ...] = ()
    """Where authorization codes may be sent, exactly."""
    profile: Literal["wlcg", "scitokens"] = "wlcg"
    """Profile of its tokens."""
    alg: Literal["RS256", "ES256"] = "RS256"
    """What its tokens are signed with."""
    sets: dict[str, tuple[str, ...]] = {}
    """``wlcg.capabilityset`` to the scopes that it stands for."""
    public: bool = False
    """Whether it has no way to prove who it is (a command line on a user's machine)."""
    jwks: tuple[dict[str, Any], ...] = ()
    """Public keys that check its assertions (private_key_jwt)."""
    secret: str = ""
    """``scrypt$<salt>$<hash>`` in hex; empty: it has none."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    clients: list[Client] = []


class Clients:
    """The clients of one issuer.

    Args:
        path: The file; made with the first client. Its directory is made with mode 0700.
        clock: Seconds; orders failed attempts.

    Raises:
        ConfigError: the file is torn or others can read it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._mark: tuple[int, ...] | None = None
        self._known: dict[str, Client] = {}
        self._pepper = secrets.token_bytes(32)
        self._proved: dict[str, bytes] = {}
        self._tries = Tries(clock)
        self._load()

    def add(
        self,
        client_id: str,
        scopes: Sequence[str],
        *,
        secret: str | None = None,
        audience: Sequence[str] = (),
        groups: Sequence[str] = (),
        lifetime: float | None = None,
        **more: Any,
    ) -> str:
        """Register a client.

        Args:
            client_id: Its id.
            scopes: What it may ask for.
            secret: Its secret; None: one is made, unless it is public or has keys.
            audience: See :class:`Client`, like all others.
            groups: Groups it is in.
            lifetime: Of its tokens.
            **more: Further fields of :class:`Client`.

        Returns:
            Its secret. It is not kept: this is the only time to see it. Empty if it has none.

        Raises:
            BadRequest: a malformed id, scope, group or field. AlreadyExists: the id is taken.
        """
        if not _ID.fullmatch(client_id):
            raise BadRequest(f"client {client_id!r}: an id has 1 to 128 of letters, digits and ._:@/-")
        sets: Mapping[str, Sequence[str]] = more.get("sets", {})
        for words in (scopes, *sets.values()):
            check_words(words)
        for group in (*groups, *sets):
            if not is_group(group):
                raise BadRequest(f"group {group!r}: must be of the form /vo/group")
        if secret is None:
            secret = "" if more.get("public") or more.get("jwks") else secrets.token_urlsafe(32)
        fields = {"id": client_id, "scopes": scopes, "audience": audience, "groups": groups, **more}
        hashed = _hashed(secret, secrets.token_bytes(16)) if secret else ""
        try:
            client = Client.model_validate({**fields, "lifetime": lifetime, "secret": hashed})
        except ValidationError as e:
            first = e.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise BadRequest(f"client {client_id}: {place}: {first['msg']}") from e
        with self._lock:
            self._load()
            if client_id in self._known:
                raise AlreadyExists(f"client {client_id}: is registered already; remove it first")
            self._save({**self._known, client_id: client})
        return secret

    def get(self, client_id: str) -> Client | None:
        """The client of this id, unproved. Raises ConfigError as :meth:`authenticate`."""
        with self._lock:
            self._load()
            return self._known.get(client_id)

    def remove(self, client_id: str) -> None:
        """Forget a client; the tokens it has live on until they expire. Raises NotFound."""
        with self._lock:
            self._load()
            if client_id not in self._known:
                raise NotFound(f"client {client_id}: is not registered")
            self._save({k: v for k, v in self._known.items() if k != client_id})

    def __iter__(self) -> Iterator[Client]:
        with self._lock:
            self._load()
            return iter(list(self._known.values()))

    def authenticate(self, client_id: str, secret: str) -> Client | None:
        """The client, if this is its secret. The first time takes some 40 ms: call it in a thread.

        It takes as long, and as many tries, where there is no such client: nobody learns names by asking.

        Raises:
            TooManyRequests: too many wrong secrets for this name in the last minute.
            ConfigError: the file has become unreadable.
        """
        client = self.get(client_id)
        if client is None and not _ID.fullmatch(client_id):
            return None
        stored = (client and client.secret) or _NOBODY
        proof = blake2b(f"{stored}\0{secret}".encode("utf-8", "surrogateescape"), key=self._pepper).digest()
        if hmac.compare_digest(self._proved.get(client_id, b""), proof):
            return client
        if self._tries.must_wait(client_id):
            raise TooManyRequests(
                f"client {client_id}: {TRIES} wrong secrets within a minute; wait and use the right one",
                retry_after=60,
            )
        if not hmac.compare_digest(stored, _hashed(secret, bytes.fromhex(stored.split("$")[1]))):
            self._tries.failed(client_id)
            return None
        self._proved[client_id] = proof
        return client

    def _load(self) -> None:
        """Read the file if it is not the one that was read last."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._mark, self._known = None, {}
            return
        except OSError as e:
            raise ConfigError(f"{self._path}: cannot be read: {e.strerror}") from e
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        if mark == self._mark:
            return
        try:
            parsed = _File.model_validate_json(read_private(self._path, _FILE_LIMIT) or b"{}")
            for client in parsed.clients:
                if client.secret:
                    bytes.fromhex(client.secret.split("$")[1])
        except (ValidationError, ValueError, IndexError) as e:
            raise ConfigError(f"{self._path}: is not a whole client file; restore it or remove it") from e
        self._mark, self._known = mark, {client.id: client for client in parsed.clients}

    def _save(self, clients: dict[str, Client]) -> None:
        make_private_dir(self._path.parent)
        body = {"clients": [client.model_dump(mode="json") for client in clients.values()]}
        write_private(self._path, json.dumps(body, indent=1).encode())
        self._load()


def _hashed(secret: str, salt: bytes) -> str:
    digest = scrypt(secret.encode("utf-8", "surrogateescape"), salt=salt, n=_COST, r=8, p=1, maxmem=64 << 20)
    return f"scrypt${salt.hex()}${digest.hex()}"
