"""Engines for the contract suites: a SQLite file, and a throw-away PostgreSQL on a unix socket."""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from doma.db.engine import Database

ENGINES = ["sqlite", "postgresql"]

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
    # name of a unix socket is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="doma-pg-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        data = place / "data"
        if os.geteuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        run: list[str | Path] = [*_user(), "env", "-C", name]
        make: list[str | Path] = ["-D", data, "-U", "doma", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*run, binaries / "initdb", *make], check=True, capture_output=True)
        fast = ["fsync=off", "full_page_writes=off", "shared_buffers=16MB", "listen_addresses="]
        options = [word for option in fast for word in ("-c", option)]
        with (place / "log").open("wb") as log:
            server = subprocess.Popen(
                [*run, binaries / "postgres", "-D", data, "-k", place, *options], stdout=log, stderr=log
            )
        try:
            _wait(binaries, place, server)
            yield name
        finally:
            server.send_signal(2)  # fast shutdown: connections are dropped
            server.wait(30)


def _wait(binaries: Path, place: Path, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        if server.poll() is not None:
            pytest.fail(f"PostgreSQL did not start: {(place / 'log').read_text()[-800:]}")
        asked = subprocess.run([binaries / "pg_isready", "-q", "-h", place, "-U", "doma"], check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"PostgreSQL did not start: {(place / 'log').read_text()[-800:]}")


@pytest.fixture(params=[pytest.param(e, marks=pytest.mark.engine) if e != "sqlite" else e for e in ENGINES])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'doma.db'}"
    import psycopg

    socket = request.getfixturevalue("postgres_server")
    name = f"test_{next(_number)}"
    with psycopg.connect(f"host={socket} user=doma dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql+psycopg://doma@/{name}?host={socket}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of each engine with every table."""
    db = Database(database_url)
    db.migrate()
    yield db
    db.close()
