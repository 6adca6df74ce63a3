"""Two storage elements of each kind for the benchmark, ours and XRootD's, under one CA and one issuer.

Every server runs as its users run it: ``doma up`` with the roles of a storage element, and XRootD with
XrdHttp, HTTP-TPC and SciTokens. One token opens all four.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from doma.app.child import Child
from doma.app.home import Home
from doma.app.identity import issuer_of
from doma.core import config
from doma.net import tls
from tests.clients.xrootd_server import XRootD

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Site:
    """One server.

    Args:
        kind: ``doma`` or ``xrootd``.
        url: Prefix of its files.
        pid: Its first process.
        files: Folder of its files.
    """

    kind: str
    url: str
    pid: int
    files: Path


@dataclass(frozen=True)
class Sites:
    """Two of each kind, and what opens them."""

    doma: tuple[Site, Site]
    xrootd: tuple[Site, Site]
    token: str
    ca: Path

    def pair(self, kind: str) -> tuple[Site, Site]:
        """Source and destination: ``doma``, ``xrootd`` or both joined by ``to``."""
        first, _, second = kind.partition(" to ")
        return getattr(self, first)[0], getattr(self, second or first)[1]


@contextmanager
def sites(folder: Path, workers: int = 1) -> Iterator[Sites]:
    """Start all four; everything lies below ``folder``, which others can enter."""
    with ExitStack() as stack:
        authority = folder / "authority"
        tls.ensure(authority)
        ours = []
        issuer = ""
        for name in ("a", "b"):
            home = Home(folder / f"doma-{name}")
            (home / "tls").mkdir(parents=True, mode=0o700)
            for part in ("ca.pem", "ca.key"):
                shutil.copy(authority / part, home / "tls" / part)
            settings = folder / f"doma-{name}.toml"
            settings.write_text(_settings(home, authority / "ca.pem", issuer, workers))
            child = Child(home, ["--config", str(settings), "--role", "issuer", "--role", "storage"])
            run = child.start()
            stack.callback(child.stop)
            issuer = issuer or str(run["services"]["issuer"])
            ours.append(Site("doma", run["https"] + "/site", child.pid, home / "site"))
        signer = issuer_of(Home(folder / "doma-a"))
        theirs = []
        for _ in range(2):
            server = XRootD(
                {signer.url: signer.keys.jwks()}, authority / "ca.pem", authority / "ca.key", place=folder
            )
            stack.enter_context(server)
            theirs.append(Site("xrootd", server.url().rstrip("/"), server.pid, server.files))
        token = signer.issue(
            subject="bench", scopes="storage.read:/ storage.modify:/", lifetime=86400, alg="ES256",
            audience=("https://wlcg.cern.ch/jwt/v1/any",),
        )  # fmt: skip
        yield Sites((ours[0], ours[1]), (theirs[0], theirs[1]), token, authority / "ca.pem")


def _settings(home: Home, ca: Path, issuer: str, workers: int) -> str:
    """The configuration of one of ours; XRootD never syncs a file, so ours does not either."""
    lines = ["[listen]", f"workers = {workers}"] if workers > 1 else []
    lines += ["[tpc]", 'allow = ["loopback"]']
    if "ca_file" in config.Tpc.model_fields:
        lines.append(f'ca_file = "{ca}"')
    lines += ["[endpoints.site]", f'store = "file://{home / "site"}"']
    if "fsync" in config.Endpoint.model_fields:
        lines.append("fsync = false")
    if issuer:
        lines += ["[[auth.issuers]]", f'issuer = "{issuer}"', 'vo = "doma"', f'ca_file = "{ca}"']
    return "\n".join(lines) + "\n"


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu(*servers: Site) -> float:
    """Seconds on a core of whole servers: every process, ended threads and ended children included."""
    return cpu_of(*(server.pid for server in servers))


def cpu_of(*first: int) -> float:
    """The same of the processes below these."""
    total = 0
    for pid in {pid for one in first for pid in tree(one)}:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(part) for part in fields[11:15])
    return total / TICK


def memory(server: Site) -> int:
    """Private bytes of a whole server."""
    return sum(memory_of(pid) for pid in tree(server.pid))


def memory_of(pid: int, field: str = "RssAnon") -> int:
    """Bytes that a process holds, by a field of its ``status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def quiet(seconds: float = 0.3) -> None:
    """Let servers finish what they do after an answer."""
    time.sleep(seconds)
