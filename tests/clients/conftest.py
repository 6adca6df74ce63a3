"""Ours and a real XRootD side by side, for every client; one pair for all tests that clean up behind them."""

import inspect
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.clients.xrootd_server import XRootD, authorities, missing
from tests.conftest import System

DEBIAN_PYTHON = "/usr/bin/python3"
"""The interpreter that Debian's Python packages (gfal2, gfal2-util) are for."""


def settings(home: Path) -> str:
    """A configuration under which loopback may be copied from and to; both servers have the home's CA."""
    return f'[tpc]\nallow = ["loopback"]\nca_file = "{home / "tls" / "ca.pem"}"\n'


@dataclass
class Said:
    """What a program said."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err

    @property
    def why(self) -> str:
        """The end of what it said, for a failed assertion."""
        return self.all[-600:]


def need(*programs: str, package: str) -> None:
    """Skip, naming the Debian package, where one of the programs is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: {package})")


@dataclass
class Grid:
    """Two storage elements that trust each other's certificates and the same issuer.

    ``ours`` and ``other`` are URL prefixes; a token of ``system.token()`` is good for both.
    """

    system: System
    scratch: Path
    trust: dict[str, str]
    server: XRootD | None

    @property
    def xrootd(self) -> XRootD:
        """The other server; where there is none, the test is skipped."""
        if self.server is None:
            pytest.skip(f"XRootD is not installed (Debian: {missing()})")
        if self.server.died:
            self.server.start()
        return self.server

    @property
    def ours(self) -> str:
        return str(self.system.run["https"]) + "/site"

    @property
    def other(self) -> str:
        return self.xrootd.https + self.xrootd.export

    @property
    def ca(self) -> str:
        return str(self.system.run["ca_file"])

    def bearer(self, token: str = "") -> str:
        """A header line with ada's usual token, or another."""
        return f"Authorization: Bearer {token or self.system.token(lifetime=3600)}"

    def environment(self, token: str | None = "") -> dict[str, str]:
        """Of a client: CA and token (ada's with all rights unless one is given) where programs look."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BEARER", "X509", "XRD"))}
        kept |= self.trust
        if token is not None:
            kept["BEARER_TOKEN"] = token or self.system.token(lifetime=3600)
        return kept

    def run(
        self,
        *command: object,
        token: str | None = "",
        env: Mapping[str, str] | None = None,
        limit: float = 45,
    ) -> Said:
        """Run a program as a user would; one that hangs fails its own test, not the whole run."""
        try:
            done = subprocess.run(
                [str(word) for word in command],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                env=self.environment(token) | dict(env or {}),
                cwd=self.scratch,
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            told = b"".join(part for part in (e.stdout, e.stderr) if isinstance(part, bytes))
            pytest.fail(f"{command}: not over after {limit:.0f} s; it said: {told.decode(errors='replace')}")
        return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Ours, beside XRootD where that is installed."""
    need("openssl", package="openssl")
    base = tmp_path_factory.mktemp("grid")
    (base / "doma.toml").write_text(settings(base / "home"))
    (base / "scratch").mkdir()
    system = System(base / "home", "--config", base / "doma.toml")
    system.up()
    try:
        with ExitStack() as stack:
            other = None if missing() else stack.enter_context(XRootD.beside(base / "home"))
            trust = authorities(base / "cas", base / "home" / "tls" / "ca.pem")
            yield Grid(system, base / "scratch", trust, other)
    finally:
        code = system.down()
    assert code == 0, system.log


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test again, once, during which the other end has crashed: that says nothing of ours."""
    held = pyfuncitem.funcargs
    spot = held.get("spot")
    grid = spot.grid if isinstance(spot, Spot) else held.get("grid")
    if not isinstance(grid, Grid) or grid.server is None or inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames  # as pytest's own caller chooses them
    arguments = {name: held[name] for name in names}
    try:
        pyfuncitem.obj(**arguments)
    except Exception:
        time.sleep(1)  # until one that is crashing has
        if not grid.server.died:
            raise
        writer = pyfuncitem.config.get_terminal_writer()
        writer.line(f"\nXRootD crashed during {pyfuncitem.name}, which is tried again")
        pyfuncitem.obj(**arguments)
    return True


@dataclass
class Spot:
    """A folder of one test on both servers, and on the local disk."""

    grid: Grid
    name: str
    local: Path

    def ours(self, path: str = "") -> str:
        return f"{self.grid.ours}/{self.name}/{path}".rstrip("/")

    def other(self, path: str = "") -> str:
        return f"{self.grid.other}/{self.name}/{path}".rstrip("/")

    def put(self, path: str, data: bytes) -> str:
        """Place a file on ours; its URL."""
        self.grid.system.put(f"/site/{self.name}/{path}", data)
        return self.ours(path)

    def put_other(self, path: str, data: bytes) -> str:
        """Place a file on XRootD; its URL."""
        self.grid.xrootd.put(f"{self.name}/{path}", data)
        return self.other(path)

    def get(self, path: str) -> bytes | None:
        """What ours holds; None: nothing."""
        answer = self.grid.system.ask("GET", f"/site/{self.name}/{path}")
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        return answer.content

    def get_other(self, path: str) -> bytes | None:
        """What XRootD holds; None: nothing."""
        file = self.grid.xrootd.files / self.name / path
        return file.read_bytes() if file.exists() else None

    def file(self, name: str, data: bytes) -> Path:
        """A file of the local disk."""
        (self.local / name).write_bytes(data)
        return self.local / name


@pytest.fixture
def spot(grid: Grid, tmp_path: Path) -> Iterator[Spot]:
    """A fresh folder name that exists nowhere yet."""
    one = Spot(grid, f"t{secrets.token_hex(4)}", tmp_path)
    yield one
    grid.system.ask("DELETE", f"/site/{one.name}")
