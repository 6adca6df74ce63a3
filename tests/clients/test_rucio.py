"""Rucio 41's own RSE protocols (PyPI: rucio-clients) over our endpoint, as its clients use them."""

import importlib.util
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.clients.conftest import Spot

pytestmark = pytest.mark.client

DATA = {"a": os.urandom(100_000), "b": os.urandom(5000), "c": b"c"}
PROTOCOLS = [
    pytest.param(("rucio.rse.protocols.gfal.Default", "davs"), id="gfal"),
    pytest.param(("rucio.rse.protocols.webdav.Default", "https"), id="webdav"),
]


def importable(module: str) -> bool:
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.append('/usr/lib/python3/dist-packages'); import {module}",
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(params=PROTOCOLS, scope="module")
def said(request, grid, tmp_path_factory):
    """What a whole session with one protocol gave."""
    impl, scheme = request.param
    spot = Spot(grid, f"rucio-{scheme}", tmp_path_factory.mktemp("rucio"))
    if importlib.util.find_spec("rucio") is None:
        pytest.skip("Rucio is not installed (PyPI: rucio-clients)")
    if "gfal" in impl and not importable("gfal2"):
        pytest.skip(
            "the gfal2 module is not installed for this Python (Debian: python3-gfal2 gfal2-plugin-http)"
        )
    for name, data in DATA.items():
        spot.file(name, data)
    spot.put("keep", b"")  # the prefix of an RSE exists
    job = {
        "url": spot.ours(), "token": spot.grid.system.token(lifetime=3600), "folder": str(spot.local),
        "impl": impl, "scheme": scheme, "names": list(DATA),
    }  # fmt: skip
    program = Path(__file__).with_name("rucio_session.py")
    done = subprocess.run(
        [sys.executable, program], input=json.dumps(job), capture_output=True, text=True, timeout=120,
        env=spot.grid.environment(token=None), cwd=spot.local, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert lines, done.stderr[-3000:]
    return impl, json.loads(lines[0].removeprefix("SAID ")), spot


def test_an_rse_is_written_read_renamed_and_deleted(said):
    impl, steps, spot = said
    assert steps["upload"] is True
    assert steps["upload again"].startswith("FileReplicaAlreadyExists")
    assert steps["exists"] == {
        "user.ada:a": True, "user.ada:b": True, "user.ada:c": True, "user.ada:missing": False,
        "user.ada:wrong": False,
    }  # fmt: skip
    assert int(steps["stat"]["filesize"]) == len(DATA["a"])
    if "gfal" in impl:
        assert steps["stat"]["adler32"] == f"{zlib.adler32(DATA['a']):08x}"
    assert "corrupted" in steps["upload of something else"], steps["upload of something else"]
    assert steps["get"] is None
    assert (spot.local / "back").read_bytes() == DATA["a"]
    assert steps["get what is missing"].startswith("SourceNotFound"), steps["get what is missing"]
    assert not (spot.local / "nothing").exists()
    assert steps["rename"] is True
    assert steps["delete"] == {
        "user.ada:renamed": True, "user.ada:b": True, "user.ada:c": True, "user.ada:missing": False
    }  # fmt: skip
    assert not any(steps["exists after"].values())


def test_a_bad_token_is_refused_with_an_exception_of_rucios(said):
    _, steps, _ = said
    kind = steps["without a right"].split(":")[0]
    assert kind in {"ServiceUnavailable", "RSEAccessDenied"}, steps["without a right"]


def test_webdav_knows_the_space_that_is_left(said):
    impl, steps, _ = said
    if "webdav" not in impl:
        assert "Space token is not defined" in steps["space"]  # gfal asks for SRM's space tokens only
        return
    total, free = steps["space"]
    assert total >= free > 0
