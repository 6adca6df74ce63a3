"""The WebDAV door behind the real listener, and the standard library's HTTP client as somebody else's."""

import http.client

import pytest

from doma.store.file import FileStore
from doma.store.memory import MemoryStore
from tests.e2e.served import Served


class Server(Served):
    """A folder, and a store that fails."""

    def __init__(self, folder):
        self._folder, self.broken = folder, BrokenListing()
        super().__init__({"site": FileStore(folder), "broken": self.broken})

    def exists(self, name):
        """Whether something lies in the served folder."""
        return (self._folder / name).exists()

    def dial(self):
        return http.client.HTTPConnection(*self.address, timeout=20)


class BrokenListing(MemoryStore):
    """A store whose disk fails in the middle of a long listing."""

    async def list(self, path):
        from doma.core.errors import StorageUnavailable
        from doma.store.protocol import Stat

        for i in range(3000):
            yield Stat(f"/file{i}", 1, "v", 0.0)
        raise StorageUnavailable(f"{path}: the disk is gone")


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The folder above the served one, with something in it that nobody may see."""
    folder = tmp_path_factory.mktemp("dav")
    (folder / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module")
def server(outside):
    with Server(outside / "served") as running:
        yield running


@pytest.fixture
def ask(server):
    """Ask on one kept-alive connection: (status, headers, body)."""
    connection, token = server.dial(), server.token()

    def one(method, target, body=None, **headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, {"Authorization": f"Bearer {token}", **fields})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    one.connection = connection
    yield one
    connection.close()
