"""A whole column service on loopback: real workers, a real store, inputs behind a real https server."""

import http.server
import re
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI, Request, Response

from doma.auth.clients import Clients
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.columns.client import ColumnClient
from doma.columns.model import Grant, Outcome, Task
from doma.columns.routes import router
from doma.columns.service import ColumnService
from doma.columns.worker import Tell, WorkerPool
from doma.core import config
from doma.net import problem, tls
from doma.store.file import FileStore
from tests.conftest import migrated

TOKEN = "input-token"
REPO = Path(__file__).parents[3]


class Inputs:
    """Files behind https with ranges, ETags and a bearer token; those for muons.root can be held back."""

    def __init__(self, folder: Path, files: tls.Files) -> None:
        self.folder, self.ca = folder, files.ca
        self.asked: list[str] = []
        self.fail: set[str] = set()
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()
        inputs = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                inputs.answer(self)

            def do_HEAD(self) -> None:
                inputs.described(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a killed worker breaks its connection

        self._server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.origin = f"https://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def url(self, name: str) -> str:
        return f"{self.origin}/{name}"

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, h: http.server.BaseHTTPRequestHandler) -> None:
        name = h.path.lstrip("/")
        self.asked.append(name)
        self._hold(name)
        path = self.folder / name
        if h.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(h, 401, b"no token\n")
        if not path.is_file():
            return self._send(h, 404, b"no such file\n")
        if name in self.fail:
            return self._send(h, 500, b"broken\n")
        data = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", h.headers.get("Range", ""))
        assert match
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            return self._send(h, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
        etag = f'"{path.stat().st_mtime_ns:x}"'
        extra = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", "ETag": etag}
        return self._send(h, 206, data[start:stop], extra)

    def described(self, h: http.server.BaseHTTPRequestHandler) -> None:
        """What a HEAD tells: size and version, of whoever may read."""
        name = h.path.lstrip("/")
        self._hold(name)
        path = self.folder / name
        if h.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(h, 401, b"")
        if not path.is_file():
            return self._send(h, 404, b"")
        found = path.stat()
        h.send_response(200)
        for key, value in (("Content-Length", str(found.st_size)), ("ETag", f'"{found.st_mtime_ns:x}"')):
            h.send_header(key, value)
        h.send_header("Accept-Ranges", "bytes")
        return h.end_headers()

    def _hold(self, name: str) -> None:
        if name == "muons.root" and not self.open.is_set():
            self.held.set()
            self.open.wait(30)

    @staticmethod
    def _send(
        h: http.server.BaseHTTPRequestHandler, status: int, body: bytes, extra: dict[str, str] | None = None
    ) -> None:
        h.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(extra or {})}.items():
            h.send_header(key, value)
        h.end_headers()
        h.wfile.write(body)


class Tokens:
    """Gives the input token to the owner called alice, nothing to others."""

    async def token(self, owner: Grant, url: str) -> str:
        return TOKEN if owner.subject == "alice" else ""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tls.Files:
    return tls.ensure(tmp_path_factory.mktemp("tls"))


def serve(home: Path, certificates: tls.Files) -> Inputs:
    """The samples and some broken files, served."""
    folder = home / "inputs"
    folder.mkdir()
    sample = REPO / "src/doma/facility/data/cms_doublemuparked_100k.root"
    (folder / "muons.root").symlink_to(sample)
    (folder / "adl.parquet").symlink_to(REPO / "tests/data/Run2012B_SingleMu-1000.parquet")
    (folder / "empty.root").write_bytes(b"")
    (folder / "text.root").write_bytes(b"<html>not a file</html>")
    (folder / "torn.root").write_bytes(sample.read_bytes()[:200_000])
    return Inputs(folder, certificates)


@pytest.fixture
def inputs(tmp_path: Path, certificates: tls.Files) -> Iterator[Inputs]:
    served = serve(tmp_path, certificates)
    yield served
    served.close()


class Recorder(WorkerPool):
    """The pool, remembering what came out of it."""

    def __init__(self, *arguments: float) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.outcomes: list[Outcome] = []

    async def run(self, task: Task, tell: Tell | None = None) -> Outcome:
        outcome = await super().run(task, tell)
        if task.output:
            self.outcomes.append(outcome)
        return outcome


class House:
    """A service with its parts, as the application wires them."""

    def __init__(self, home: Path, inputs: Inputs, issuer: Issuer, **columns: float) -> None:
        self.db = migrated(home / "columns.db")
        self.results = home / "results"
        self.store = FileStore(self.results, fsync=False)
        settings = config.Columns(workers=1, **columns)  # type: ignore[arg-type]
        self.pool = Recorder(1, settings.worker_memory, settings.lease)
        self.service = ColumnService(
            self.db,
            self.store,
            "https://results.test/results",
            self.pool,
            Tokens(),
            lambda owner, path, expires: f"{owner}-{path}".encode().hex(),
            settings,
            work_dir=home / "work",
            ca_file=str(inputs.ca),
            allow=(inputs.origin,),
        )
        self.issuer = issuer
        verifier = Verifier(
            [config.Issuer(issuer=issuer.url)],
            ["https://results.test"],
            local={issuer.url: issuer.keys.jwks()},
        )
        self.app = FastAPI()
        problem.install(self.app)
        self.app.include_router(
            router(
                self.service,
                verifier,
                log_url="https://results.test/requests",
                results_url="https://results.test/results",
            )
        )
        self.app.add_api_route("/results/{id_}/{name:path}", self._result)

    async def _result(self, id_: str, name: str, authz: str, request: Request) -> Response:
        """What the https door does: the URL's own token opens exactly this path."""
        assert bytes.fromhex(authz).decode().endswith(f"-/{id_}/{name}")
        reader = await self.store.open(f"/{id_}/{name}")
        data = bytes(await reader.read(0, reader.stat.size))
        await reader.close()
        return Response(data)

    def http(self, subject: str = "alice") -> httpx.AsyncClient:
        token = self.issuer.issue(subject=subject, scopes="storage.read:/", audience=["https://results.test"])
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="https://results.test",
            headers={"Authorization": f"Bearer {token}"},
        )

    async def close(self) -> None:
        await self.service.stop()
        await self.store.close()
        self.db.close()


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    keys = KeySet.load_or_make(tmp_path_factory.mktemp("keys") / "k")
    return Issuer(
        "https://results.test/vo", "vo", keys, clients=Clients(tmp_path_factory.mktemp("clients") / "c.json")
    )


@pytest.fixture
async def house(tmp_path: Path, inputs: Inputs, issuer: Issuer) -> AsyncIterator[House]:
    made = House(tmp_path, inputs, issuer)
    await made.service.start()
    yield made
    await made.close()


@pytest.fixture
async def client(house: House) -> AsyncIterator[ColumnClient]:
    async with house.http() as http:
        yield ColumnClient(http)


@pytest.fixture(scope="module")
def shared_inputs(tmp_path_factory: pytest.TempPathFactory, certificates: tls.Files) -> Iterator[Inputs]:
    served = serve(tmp_path_factory.mktemp("shared"), certificates)
    yield served
    served.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_house(shared_inputs: Inputs, issuer: Issuer) -> AsyncIterator[House]:
    made = House(shared_inputs.folder.parent, shared_inputs, issuer)
    await made.service.start()
    yield made
    await made.close()
