"""A real XRootD as storage element: HTTPS, HTTP-TPC both ways, adler32, WLCG tokens of any issuer.

    with XRootD.beside(home) as other:   # trusts the issuer and the CA of the system that runs in this home
        url = other.url("a/b.root")      # https://127.0.0.1:<port>/vo/a/b.root
        other.put("a/b.root", data)      # behind its back; other.files is the folder exported as /vo
        other.environment                # for programs that must trust its certificate

A token of the home's issuer opens both: this server takes the audience of the system too.

Needs Debian's ``xrootd-server``, ``xrootd-server-plugins``, ``xrootd-plugins`` and, for tokens,
``xrootd-scitokens-plugins``. The server refuses to be root, so root starts it as the user ``xrootd``.

Its token library (scitokens-cpp 0.7) knows no CA file of an issuer, only the system's bundle; it is therefore
given the issuer's keys where it would look before it asks: in its own cache of keys, valid for a day.
"""

import json
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.tied import Tied

PACKAGES = "xrootd-server xrootd-server-plugins xrootd-plugins xrootd-scitokens-plugins"
PLUGINS = ("libXrdHttp-5.so", "libXrdHttpTPC-5.so", "libXrdAccSciTokens-5.so", "libXrdCksCalczcrc32-5.so")

CONFIG = """
all.role server
all.export {export}
all.adminpath {base}/admin
all.pidpath {base}/admin
oss.localroot {base}/files
xrd.port {port}
xrd.protocol http:{port} libXrdHttp.so
xrd.tls {base}/host.pem {base}/host.key
xrd.tlsca certdir {base}/cas
xrd.network nodnr norpipa
xrootd.chksum max 2 adler32
http.selfhttps2http no
http.listingdeny no
http.header2cgi Authorization authz
http.exthandler xrdtpc libXrdHttpTPC.so
{authorise}
"""
TOKENS = """
ofs.authorize 1
ofs.authlib libXrdAccSciTokens.so config={base}/scitokens.cfg
"""


def authorities(folder: Path, *cas: Path) -> dict[str, str]:
    """Make a folder of hashed CAs; what makes davix, gfal2, curl and XRootD's clients trust these alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ca in enumerate(cas):
        shutil.copy(ca, folder / f"{number}.pem")
    bundle = folder.with_suffix(".bundle.pem")
    bundle.write_bytes(b"".join(ca.read_bytes() for ca in cas))
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    return {
        "X509_CERT_DIR": str(folder), "XrdSecGSICADIR": str(folder), "SSL_CERT_FILE": str(bundle),
        "CURL_CA_BUNDLE": str(bundle),
    }  # fmt: skip


def missing() -> str:
    """Debian packages without which it cannot run; empty when all are there."""
    if shutil.which("xrootd") is None:
        return PACKAGES
    folders = [Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu")]
    absent = [name for name in PLUGINS if not any((folder / name).exists() for folder in folders)]
    return PACKAGES if absent else ""


class XRootD:
    """A running server; a context that starts and stops it.

    Args:
        jwks: Keys of each trusted issuer by its ``iss``; empty: everybody may do everything.
        ca, ca_key: The authority that signs its certificate and that it trusts as a client.
        audience: What the tokens' ``aud`` must hold, besides its own URL.
        export: First component of every path.
        more: Further lines of its configuration.
        trust: Further CA files that it trusts as a client.
        place: Where its folder is made; others must be able to enter.
    """

    def __init__(
        self,
        jwks: Mapping[str, Mapping[str, Any]],
        ca: Path,
        ca_key: Path,
        *,
        audience: Sequence[str] = (),
        export: str = "/vo",
        more: str = "",
        trust: Sequence[Path] = (),
        place: Path | None = None,
    ) -> None:
        self._jwks, self._audience, self._more = jwks, audience, more
        self._ca, self._ca_key, self._trust = ca, ca_key, trust
        self.export = export
        self.port = _free_port()
        # not below pytest's own folder, which only its owner can enter
        self.base = Path(tempfile.mkdtemp(prefix="doma-xrootd-", dir=place))
        self.files = self.base / "files" / export.strip("/")
        self.log = self.base / "xrootd.log"
        self.environment: dict[str, str] = {}
        self._process: Tied | None = None

    @classmethod
    def beside(cls, home: Path, **options: Any) -> Self:
        """One that trusts the issuer and the CA of the system in a home, which has run once."""
        from doma.app.home import Home
        from doma.app.identity import issuer_of

        issuer = issuer_of(Home(home))
        return cls(
            {issuer.url: issuer.keys.jwks()}, home / "tls" / "ca.pem", home / "tls" / "ca.key",
            audience=[issuer.default_audience], **options,
        )  # fmt: skip

    @property
    def https(self) -> str:
        """``https://127.0.0.1:<port>``, without a path."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, path: str = "") -> str:
        """The address of a file that stands at ``path`` below :attr:`files`."""
        return f"{self.https}{self.export}/{path.lstrip('/')}"

    def put(self, path: str, data: bytes) -> Path:
        """Place a file behind its back."""
        file = self.files / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self._give(self.files)
        return file

    @property
    def died(self) -> bool:
        """Whether it has ended by itself: version 5.5.3 now and then crashes when a connection closes."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Prepare its folder, start it, wait until it answers; again, with its files, where it has died."""
        self.base.chmod(0o755)
        for name in ("admin", "cas", "cache/scitokens"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        self.files.mkdir(parents=True, exist_ok=True)
        self._certificates()
        self._tokens()
        authorise = TOKENS.format(base=self.base) if self._jwks else ""
        text = CONFIG.format(base=self.base, port=self.port, export=self.export, authorise=authorise)
        (self.base / "xrootd.cfg").write_text(text + self._more + "\n")
        self._give(self.base)
        user = ["-R", _user()] if os.getuid() == 0 else []
        environment = (
            os.environ
            | self.environment
            | {"XDG_CACHE_HOME": str(self.base / "cache"), "HOME": str(self.base)}
        )
        self._process = Tied(
            ["xrootd", "-c", str(self.base / "xrootd.cfg"), "-l", str(self.log), "-n", "doma", *user],
            cwd=self.base, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._wait()

    def stop(self) -> None:
        """End it and remove its folder. Idempotent."""
        self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    def kill(self) -> None:
        """End it at once; its files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def words(self) -> str:
        """Everything it has logged."""
        found = sorted(self.base.glob("**/xrootd.log"))
        return "".join(file.read_text(errors="replace") for file in found)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _certificates(self) -> None:
        """Its own certificate, and the folder of hashed CAs that its copies verify the other side with."""
        from doma.net import tls

        made = self.base / "made"
        made.mkdir(exist_ok=True)
        shutil.copy(self._ca, made / "ca.pem")
        shutil.copy(self._ca_key, made / "ca.key")
        leaf = tls.ensure(made)
        shutil.copy(leaf.certificate, self.base / "host.pem")
        shutil.copy(leaf.key, self.base / "host.key")
        shutil.rmtree(made)
        self.environment = authorities(self.base / "cas", self._ca, *self._trust)

    def _tokens(self) -> None:
        audience = ", ".join(
            [self.https, "127.0.0.1", *self._audience, "https://wlcg.cern.ch/jwt/v1/any", "ANY"]
        )
        lines = ["[Global]", f"audience = {audience}"]
        cache = sqlite3.connect(self.base / "cache" / "scitokens" / "scitokens_cpp.sqllite")
        with cache:
            cache.execute(
                "CREATE TABLE IF NOT EXISTS keycache"
                " (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)"
            )
            for number, (issuer, keys) in enumerate(self._jwks.items()):
                lines += [f"[Issuer {number}]", f"issuer = {issuer}", f"base_path = {self.export}"]
                day = int(time.time()) + 86400
                held = {"expires": day, "next_update": day, "jwks": keys}
                cache.execute("INSERT OR REPLACE INTO keycache VALUES (?, ?)", (issuer, json.dumps(held)))
        cache.close()
        (self.base / "scitokens.cfg").write_text("\n".join(lines) + "\n")

    def _give(self, place: Path) -> None:
        """Make everything there its user's."""
        if os.getuid() != 0:
            return
        entry = pwd.getpwnam(_user())
        for path in (place, *place.rglob("*")):
            if not path.is_symlink():
                os.chown(path, entry.pw_uid, entry.pw_gid)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"xrootd did not start:\n{self.words()[-3000:]}")


def _user() -> str:
    for name in ("xrootd", "daemon"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("no user that xrootd could run as")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
