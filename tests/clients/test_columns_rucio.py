"""Rucio's own client (PyPI: rucio-clients) and our finder see the same at the server of our tests."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from doma.columns.finder_rucio import RucioFinder
from doma.columns.model import Grant
from doma.core import config
from tests.e2e.columns.rucio_server import RucioServer, replica

pytestmark = pytest.mark.client

PROGRAM = """
import json, sys
from rucio.client import Client
from rucio.common.exception import DataIdentifierNotFound
host = sys.argv[1]
client = Client(rucio_host=host, auth_host=host, account="ada", auth_type="userpass",
                creds={"username": "ada", "password": "hush"})
dids = [{"scope": "user.ada", "name": "hists"}]
schemes = ["root", "davs", "https", "http"]
found = list(client.list_replicas(dids, schemes=schemes))
kind = client.get_did("user.ada", "hists")["type"]
try:
    client.get_did("user.ada", "none")
except DataIdentifierNotFound:
    print(json.dumps({"found": found, "type": kind}))
"""


async def test_rucios_client_and_ours_see_the_same_replicas(tmp_path):
    if importlib.util.find_spec("rucio") is None:
        pytest.skip("Rucio is not installed (PyPI: rucio-clients)")
    server = RucioServer()
    finder = RucioFinder(config.Datasets(rucio=server.url, rucio_user="ada", rucio_password="hush"))
    try:
        server.dids["user.ada:hists"] = [
            replica("a", {"root://x.org:1094//a": {}, "davs://x.org:443/a": {"priority": 2}}),
            replica("b", {"davs://x.org:443/b": {}}),
        ]
        (tmp_path / "rucio.cfg").write_text(f"[client]\nauth_token_file_path = {tmp_path}/token\n")
        env = {**os.environ, "RUCIO_CONFIG": str(tmp_path / "rucio.cfg"), "RUCIO_CLIENT_MODE": "1"}
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, server.url]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        theirs = json.loads(done.stdout)
        asked = server.bodies[-1]
        ours = await finder.find("user.ada:hists", Grant("i", "ada"))
    finally:
        await finder.close()
        server.close()
    assert theirs["type"] == "DATASET"
    assert [
        (f"{r['scope']}:{r['name']}", set(r["pfns"]), r["bytes"], r["adler32"]) for r in theirs["found"]
    ] == [(f.name, {u.replace("https:", "davs:") for u in f.replicas}, f.bytes, f.adler32) for f in ours]
    # ours asks for less than theirs: replicas at sites that are switched off are none
    assert server.bodies[-1] == {k: v for k, v in asked.items() if k != "ignore_availability"}
