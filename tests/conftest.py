"""A whole system in a process of its own, reached as a user reaches it: shared by e2e and fault tests."""

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import httpx

    from doma.auth.issuer import Issuer
    from doma.db.engine import Database
    from doma.facility.access import Access

# The processes of a run share compiled modules, also where the environment has each compile its own.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

COMMAND = (sys.executable, "-c", "from doma.cli import main; main()")

# A busy machine makes no test fail by being slow; --hypothesis-profile=long looks longer.
settings.register_profile(
    "suite", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("suite"), max_examples=1000)
settings.load_profile("suite")


@cache
def lack(kind: str) -> str:
    """Why functions cannot run by ``bubblewrap`` or ``landlock`` on this machine; empty: they can."""
    from doma.columns import sandbox

    if kind == "landlock":
        return sandbox._lacks_landlock()
    if why := sandbox._lacks_bubblewrap():
        return why
    # In a chroot, say, none starts at all, which is no fault of what would run in it.
    tried = subprocess.run(
        ["bwrap", "--ro-bind", "/", "/", "true"], capture_output=True, text=True, check=False
    )
    return tried.stderr if tried.returncode else ""


@cache
def _tables() -> bytes:
    """An SQLite file with every table."""
    from doma.db.engine import Database

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "doma.db"
        db = Database(f"sqlite:///{path}")
        db.migrate()
        db.close()
        return path.read_bytes()


def migrated(path: Path) -> "Database":
    """A database with every table in a new SQLite file: a copy, much quicker than to migrate each time."""
    from doma.db.engine import Database

    path.write_bytes(_tables())
    return Database(f"sqlite:///{path}")


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error."""
        (line,) = self.err.splitlines()
        return line


def doma(*arguments: object) -> Said:
    """Run the real command."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


class System:
    """``doma up`` on a home.

    Args:
        home: The folder.
        options: Further arguments of ``doma up``.
    """

    everything = "storage.read:/ storage.modify:/"

    def __init__(self, home: Path, *options: object) -> None:
        from doma.app.child import Child
        from doma.app.home import Home

        self.home = Home(home)
        self._child = Child(self.home, [str(option) for option in options])
        self._http: httpx.Client | None = None
        self._one = threading.Lock()
        self.run: dict[str, Any] = {}

    # Its life.

    @property
    def pid(self) -> int:
        return self._child.pid

    def up(self) -> dict[str, Any]:
        """Start it; the content of ``run.json``."""
        self.run = self._child.start()
        for name in ("access", "_issuer", "_usual"):
            self.__dict__.pop(name, None)
        return self.run

    def down(self) -> int:
        """Stop it; its exit code. Idempotent."""
        self._close()
        return self._child.stop()

    def crash(self) -> None:
        """``kill -9`` of its whole process group."""
        self._close()
        os.killpg(self.pid, signal.SIGKILL)
        self._child.kill()

    def _close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    @property
    def log(self) -> str:
        """Everything it has printed."""
        return self._child.log.read_text(errors="replace")

    def workers(self) -> set[int]:
        """Process ids of its living children."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if int(parent) == self.pid and state != "Z":
                found.add(int(entry.name))
        return found

    # What users do with it.

    @cached_property
    def access(self) -> "Access":
        from doma.facility.access import Access

        return Access.read(self.home.path)

    @cached_property
    def _issuer(self) -> "Issuer":
        from doma.app.identity import issuer_of

        return issuer_of(self.home)

    @cached_property
    def _usual(self) -> str:
        """Ada's token for most requests: signing one for each would cost more than the requests."""
        return self.token(lifetime=3600)

    def token(
        self,
        scope: str = everything,
        *,
        subject: str = "ada",
        audience: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
        age: float = 0,
        lifetime: float = 600,
    ) -> str:
        """A token of its issuer; ``age``: seconds ago when it was made."""
        from doma.auth.issuer import Issuer

        kept = self._issuer
        issuer = Issuer(
            kept.url, kept.vo, kept.keys, clients=kept.clients, clock=lambda: time.time() - age,
            default_audience=kept.default_audience,
        )  # fmt: skip
        return issuer.issue(
            subject=subject, scopes=scope, audience=audience, groups=groups, lifetime=lifetime
        )

    def admin(self) -> str:
        """The system's own admin token."""
        return self.access.token()

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "httpx.Response":
        """One request over https; the token is ada's with all rights unless one, or None, is given."""
        import httpx

        with self._one:  # tests ask from several threads, and a client made twice is never closed
            if self._http is None:
                self._http = httpx.Client(base_url=self.run["https"], verify=self.access.tls(), timeout=60)
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self._usual}"
        return self._http.request(method, path, headers=sent, **options)

    def raw(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """One request whose target goes over the wire as it is: status and body."""
        place = self.run["https"].removeprefix("https://")
        connection = http.client.HTTPSConnection(place, context=self.access.tls(), timeout=60)
        try:
            connection.putrequest(method, target)
            for name, value in {"Authorization": f"Bearer {self._usual}", **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode("latin-1")
        finally:
            connection.close()

    def put(self, path: str, data: bytes) -> None:
        """Upload a file, which must work."""
        answer = self.ask("PUT", path, content=data)
        assert answer.status_code in {201, 204}, answer.text

    def deliver(self, url: str, columns: tuple[str, ...], tree: str = "") -> Any:
        """Columns of one file by the column service, as a user of func_adl asks for them."""
        import asyncio

        from doma.facility.delivered import Delivered

        names = ", ".join(f"'{c}': e.{c}" for c in columns)
        query = Delivered(self.access, [url], tree).Select(f"lambda e: {{{names}}}")
        return asyncio.run(query.value_async())

    def scan(self, path: str, columns: tuple[str, ...], tree: str | None = None) -> Any:
        """Columns of one file by the scan service."""
        from doma.scan.client import scan

        options = {"tree": tree} if tree else {}
        dataset = scan(self.run["services"]["flight"], path, self.token(), self.run["ca_file"], **options)
        return dataset.to_table(columns=list(columns))


@pytest.fixture
def program() -> Iterator[Callable[..., "subprocess.Popen[Any]"]]:
    """Starts programs, which are gone after the test with their pipes, whatever happened in it."""
    with ExitStack() as after:

        def start(command: list[Any], **options: Any) -> "subprocess.Popen[Any]":
            process = after.enter_context(subprocess.Popen(command, **options))
            after.callback(process.kill)
            return process

        yield start


Start = Callable[..., System]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts systems on homes of this test, and stops them after it."""
    begun: list[System] = []

    def one(name: str | Path = "home", *options: object) -> System:
        system = System(tmp_path / name, *options)
        begun.append(system)
        system.up()
        return system

    yield one
    for system in begun:
        system.down()


@pytest.fixture(scope="session")
def command() -> Callable[..., Said]:
    """Runs the real command; ``words`` is how it begins."""
    doma.words = COMMAND  # type: ignore[attr-defined]
    return doma


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One running system for every test that leaves it as it was; ``data`` serves a folder read-only."""
    base = tmp_path_factory.mktemp("shared")
    (base / "data").mkdir()
    (base / "data" / "kept.txt").write_bytes(b"kept")
    system = System(base / "home", "--data", base / "data")
    system.up()
    yield system
    code = system.down()
    assert code == 0, system.log
