"""What contract suites run on: both databases, and the WebDAV door over writable stores."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from doma.db.engine import Database
from tests.conftest import migrated
from tests.tied import Tied

_number = itertools.count()


def _binaries() -> Path | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("postgres")
    if found:
        places.insert(0, Path(found).resolve().parent)
    return next((p for p in places if (p / "postgres").exists() and (p / "initdb").exists()), None)


def _user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Socket directory of a running cluster; the superuser is ``doma``, no password."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed; the Debian package is: postgresql")
    pytest.importorskip("psycopg")
    # Not below pytest's own directory: its parents are closed to the user that runs the server, and the
    # name of a unix socket is limited to 107 bytes. In memory where that can be: some
    # disks take a minute to remove it.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="doma-pg-", dir=memory, ignore_cleanup_errors=True) as name:
        place = Path(name)
        data = place / "data"
        if os.geteuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        run: list[str | Path] = [*_user(), "env", "-C", name]
        make: list[str | Path] = [
            "-D",
            data,
            "-U",
            "doma",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run([*run, binaries / "initdb", *make], check=True, capture_output=True)
        fast = ["fsync=off", "full_page_writes=off", "shared_buffers=16MB", "listen_addresses="]
        options = [word for option in fast for word in ("-c", option)]
        with (place / "log").open("wb") as log:
            server = Tied(
                [*run, binaries / "postgres", "-D", data, "-k", place, *options], stdout=log, stderr=log
            )
        try:
            _wait(binaries, place, server)
            yield name
        finally:
            server.send_signal(signal.SIGQUIT)  # nothing is kept, so nothing has to be written first
            server.wait(30)


def _wait(binaries: Path, place: Path, server: Tied) -> None:
    for _ in range(200):
        if server.poll() is not None:
            pytest.fail(f"PostgreSQL did not start: {(place / 'log').read_text()[-800:]}")
        asked = subprocess.run([binaries / "pg_isready", "-q", "-h", place, "-U", "doma"], check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"PostgreSQL did not start: {(place / 'log').read_text()[-800:]}")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """A database with every table, to be copied: much quicker than to migrate each time."""
    db = Database(_postgres_url(postgres_server, _created(postgres_server)))
    db.migrate()
    db.close()
    assert db.url.database is not None
    return db.url.database


def _asked(socket: str, words: str) -> None:
    import psycopg

    with psycopg.connect(f"host={socket} user=doma dbname=postgres", autocommit=True) as connection:
        connection.execute(words.encode())


def _created(socket: str, template: str = "template0") -> str:
    name = f"test_{next(_number)}"
    _asked(socket, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return name


def _postgres_url(socket: str, name: str) -> str:
    return f"postgresql+psycopg://doma@/{name}?host={socket}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.engine)])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of a database engine."""
    return str(request.param)


@pytest.fixture
def database_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each engine."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path / 'doma.db'}"
    socket = request.getfixturevalue("postgres_server")
    return _postgres_url(socket, _created(socket))


@pytest.fixture
def database(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of each engine with every table."""
    if engine == "sqlite":
        db = migrated(tmp_path / "doma.db")
        yield db
        db.close()
        return
    socket = request.getfixturevalue("postgres_server")
    name = _created(socket, request.getfixturevalue("postgres_template"))
    db = Database(_postgres_url(socket, name))
    yield db
    db.close()
    _asked(socket, f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class Answer:
    """What came back over ASGI."""

    status: int
    headers: dict[str, str]
    body: bytes
    parts: int

    @property
    def text(self) -> str:
        return self.body.decode()


class Door:
    """The WebDAV door of a site, asked with raw request targets: nothing is normalised on the way."""

    issuer = "https://issuer.example/dv"
    audience = "https://se.example"
    everything = "storage.read:/ storage.modify:/"

    def __init__(self, stores: dict[str, Any]) -> None:
        from joserfc.jwk import ECKey

        from doma.auth.gate import Gate
        from doma.auth.keys import KeySet
        from doma.auth.verifier import Verifier
        from doma.core.config import Issuer
        from doma.doors.endpoint import Endpoint, Site
        from doma.doors.webdav import app

        self.keys = KeySet({"ES256": ECKey.generate_key("P-256")})
        trusted = [Issuer(issuer=self.issuer, vo="dv")]
        verifier = Verifier(trusted, [self.audience], local={self.issuer: self.keys.jwks()})
        self.events: list[Any] = []
        self.stores = stores
        gate, public = Gate({self.issuer: ["/"]}), Gate({self.issuer: ["/"]}, public=True)
        endpoints = {
            "site": Endpoint("site", stores["site"], gate),
            "other": Endpoint("other", stores["other"], gate),
            "vo": Endpoint("vo", stores["site"], Gate({self.issuer: ["/grid/vo", "/grid/lab"]})),
            "data": Endpoint("data", stores["site"], gate, writable=False),
            "open": Endpoint("open", stores["site"], public, writable=False),
        }
        self.site = Site(verifier, endpoints, self.events.append, "se.example")
        self.app = app(self.site)

    def token(self, scope: str, **claims: Any) -> str:
        now = int(time.time())
        return self.keys.sign(
            {
                "iss": self.issuer, "sub": "ada", "aud": self.audience, "iat": now, "exp": now + 600,
                "jti": "1", "wlcg.ver": "1.0", "scope": scope, **claims,
            },
            "ES256",
        )  # fmt: skip

    async def ask(
        self,
        method: str,
        target: str | bytes,
        scope: str | None = everything,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        send: Callable[[Any], Awaitable[None]] | None = None,
    ) -> Answer:
        """Send one request; ``scope`` None sends no token; ``send`` takes the answer itself."""
        raw, _, query = (target if isinstance(target, bytes) else target.encode()).partition(b"?")
        sent = {"host": "se.example", **(headers or {})}
        if scope is not None:
            sent["authorization"] = f"Bearer {self.token(scope)}"
        pieces = [body[i : i + 7000] for i in range(0, len(body), 7000)] or [b""]
        incoming = [
            {"type": "http.request", "body": p, "more_body": i + 1 < len(pieces)}
            for i, p in enumerate(pieces)
        ]
        messages: list[dict[str, Any]] = []

        async def receive() -> Any:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def keep(message: Any) -> None:
            messages.append(message)

        ask = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "https", "path": unquote(raw.decode("latin-1")), "raw_path": raw, "root_path": "",
            "query_string": query,
            "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in sent.items()],
            "server": ("se.example", 443), "client": ("192.0.2.1", 1),
        }  # fmt: skip
        await self.app(ask, receive, send or keep)
        if send:
            return Answer(0, {}, b"", 0)
        start, *parts = messages
        assert start["type"] == "http.response.start"
        assert not parts[-1].get("more_body", False)
        body_out = b"".join(part["body"] for part in parts)
        fields = {n.decode(): v.decode("latin-1") for n, v in start["headers"]}
        length = fields.get("content-length")
        assert length is None or method == "HEAD" or int(length) == len(body_out)
        return Answer(start["status"], fields, body_out, len(parts))

    async def put(self, path: str, data: bytes = b"x", store: str = "site") -> Any:
        """Write a file past the door."""
        upload = await self.stores[store].create(path, size=len(data))
        await upload.write(data)
        return await upload.commit()

    async def content(self, path: str, store: str = "site") -> bytes:
        """Read a file past the door."""
        reader = await self.stores[store].open(path)
        data = bytes(await reader.read(0, reader.stat.size))
        await reader.close()
        return data


@pytest.fixture(params=["memory", "file"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    """A site over each kind of writable store."""
    if request.param == "memory":
        from doma.store.memory import MemoryStore

        stores: dict[str, Any] = {name: MemoryStore() for name in ("site", "other")}
    else:
        from doma.store.file import FileStore

        stores = {}
        for name in ("site", "other"):
            (tmp_path / name).mkdir()
            stores[name] = FileStore(tmp_path / name)
    yield Door(stores)
    for store in stores.values():
        await store.close()
