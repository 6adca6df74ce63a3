"""Where inputs are read: here, through the cache, at their origin; over root:// and http alike."""

import http.server
import os
import threading
import time
from functools import partial

import numpy as np
import pytest
import uproot

from doma.columns.model import Task
from doma.columns.remote import open_input
from doma.core.errors import Forbidden, NotFound, Unauthenticated

COUNT = "(call Count (call EventDataset 'x' 'Events'))"
DATA = os.urandom(700_000)


def root(system, path):
    return f"root://{system.run['https'].removeprefix('https://')}//site{path}"


def task(system, url, *more, token=True, known=()):
    given = system.token() if token else ""
    origins = [system.run["https"], "root://" + system.run["https"].removeprefix("https://")]
    replicas = tuple((u, given) for u in more)
    return Task(url, "", "", given, replicas=replicas, known=known, ca_file=system.run["ca_file"],
                allow=tuple(origins))  # fmt: skip


@pytest.fixture(scope="module")
def here(shared):
    shared.put("/site/roads/f", DATA)
    return shared


def test_a_file_is_read_over_root_with_the_users_token(here):
    data = open_input(task(here, root(here, "/roads/f"), known=("x",)))
    assert (data.size, data.taken) == (len(DATA), 0)
    assert data.version
    for start, stop in ((0, 4), (5, 5), (131_000, 131_500), (10, 600_000)):
        assert data.read(start, stop) == DATA[start:stop]
    assert data.taken >= 600_000
    data.close()


def test_what_a_root_server_refuses_is_one_clear_error(here):
    with pytest.raises(NotFound, match="roads/none"):
        open_input(task(here, root(here, "/roads/none")))
    with pytest.raises(Unauthenticated):
        open_input(task(here, root(here, "/roads/f"), token=False))
    alone = Task(root(here, "/roads/f"), "", "", ca_file=here.run["ca_file"])
    with pytest.raises(Forbidden):
        open_input(alone)


def test_a_root_replica_takes_over_from_an_http_one_in_the_middle(here):
    site = f"{here.run['https']}/site/roads"
    here.put("/site/roads/moved", DATA)
    data = open_input(task(here, f"{site}/moved", root(here, "/roads/f")))
    assert data.read(0, 200_000) == DATA[:200_000]
    assert here.ask("DELETE", "/site/roads/moved").status_code == 204
    assert data.read(300_000, 600_000) == DATA[300_000:600_000]
    assert data.url.startswith("root://")
    data.close()


@pytest.fixture
def origin(tmp_path):
    """A foreign server of one file; counts what is asked of it."""
    (tmp_path / "www").mkdir()
    with uproot.recreate(tmp_path / "www" / "f.root") as file:
        file.mktree("Events", {"x": np.int64}).extend({"x": np.arange(50_000)})
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            super().do_GET()

        def log_message(self, format, *args):
            pass

    made = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))
    )
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}", asked
    made.shutdown()
    made.server_close()
    thread.join()


def deliver(system, url):
    body = {"file-list": [url], "selection": COUNT, "codegen": "uproot"}
    id_ = system.ask("POST", "/servicex/transformation", json=body).json()["request_id"]
    ends = time.monotonic() + 60
    while (found := system.ask("GET", f"/servicex/transformation/{id_}").json())["finish-time"] == "None":
        assert time.monotonic() < ends
    return found


def test_a_foreign_file_comes_through_the_cache_and_without_it_from_its_origin(start, origin, tmp_path):
    url, asked = origin
    config = tmp_path / "doma.toml"
    config.write_text(
        f'[columns]\ninputs = ["{url}"]\n[cache]\nallow = ["{url}"]\n'
        '[tpc]\nallow = ["loopback"]\nplain_http = true\n'
    )
    system = start("home", "--config", config)
    found = deliver(system, f"{url}/f.root")
    assert found["status"] == "Complete", found
    # what the origin is shown is good for this file in the cache and nothing else
    for token in {who.removeprefix("Bearer ") for _, _, who in asked if who}:
        for path in ("/site/", "/cache/", f"/cache/{url}/other.root"):
            assert system.ask("GET", path, token).status_code in {401, 403, 404}, path
        assert system.ask("GET", "/servicex/transformation", token).json() == {"requests": []}
    listing = system.ask("GET", f"/servicex/transformation/{found['request_id']}/results").json()["results"]
    assert listing[0]["transform_status"] == "success"
    here = [path for path in (system.home.path / "cache" / "cache").rglob("*") if path.is_file()]
    assert sum(p.stat().st_size for p in here) > 100_000
