"""A system that is killed while it looks a dataset up goes on with it, and no request waits for ever."""

import threading
import time

import pytest

from tests.e2e.columns.rucio_server import RucioServer, replica

pytestmark = pytest.mark.fault

COUNT = "(call Count (call EventDataset 'x' 'Events'))"


class Slow(RucioServer):
    """Answers about replicas only while its gate is open."""

    def __init__(self):
        super().__init__()
        self.gate, self.reached = threading.Event(), threading.Event()

    def post(self, h):
        self.reached.set()
        self.gate.wait(60)
        super().post(h)


@pytest.fixture
def rucio():
    made = Slow()
    yield made
    made.gate.set()
    made.close()


def submit(system):
    body = {"did": "rucio://user.ada:hists", "selection": COUNT, "codegen": "uproot"}
    return system.ask("POST", "/servicex/transformation", json=body).json()["request_id"]


def state(system, id_):
    return system.ask("GET", f"/servicex/transformation/{id_}").json()


def test_a_look_up_outlives_its_process_and_serves_everybody_who_waits(start, rucio, tmp_path):
    config = tmp_path / "doma.toml"
    config.write_text(f'[datasets]\nrucio = "{rucio.url}"\nrucio_user = "ada"\nrucio_password = "hush"\n')
    system = start("home", "--config", config)
    place = system.run["https"]
    rucio.dids["user.ada:hists"] = [replica("a", {f"{place}/site/none.root": {}})]
    first = submit(system)
    assert rucio.reached.wait(30)
    second = submit(system)
    assert (state(system, first)["status"], state(system, second)["status"]) == ("Lookup", "Pending Lookup")
    system.crash()
    rucio.gate.set()
    system.up()
    ends = time.monotonic() + 90
    while {state(system, i)["finish-time"] for i in (first, second)} >= {"None"}:
        assert time.monotonic() < ends, state(system, first)
    found = [state(system, i) for i in (first, second)]
    # looked up once more, and both have the one file, which is not there
    assert [(f["status"], f["files"], f["files-failed"]) for f in found] == [("Fatal", 1, 1)] * 2
    assert found[0]["did_id"] == found[1]["did_id"]
    assert "none.root" in found[0]["failure-info"]
