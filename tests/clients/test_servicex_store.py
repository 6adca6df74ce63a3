"""Results in somebody else's S3 store: users reach them through this server, with keys of one request."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import boto3
import httpx
import pytest

from tests.clients.servicex_session import ZMUMU, User, refresh_token
from tests.conftest import Start, System

pytest.importorskip("servicex", reason="the package is: servicex")
pytestmark = pytest.mark.client


@pytest.fixture
def store() -> Iterator[str]:
    """The URL of an S3 server with the bucket ``kept``."""
    servers = pytest.importorskip("moto.server", reason="the package is: moto[s3]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = servers.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    assert httpx.put(f"http://{host}:{port}/kept").status_code == 200
    yield f"http://{host}:{port}"
    server.stop()


def at(store: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store,
        aws_access_key_id="ours",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )


def names(store: str) -> list[str]:
    return [entry["Key"] for entry in at(store).list_objects_v2(Bucket="kept").get("Contents", [])]


@pytest.fixture
def system(start: Start, tmp_path: Path, store: str) -> System:
    config = tmp_path / "doma.toml"
    config.write_text(
        f'[columns]\nworkers = 1\nbuckets = ["s3://kept/inputs?endpoint={store}"]\nresults = "s3://kept/{tmp_path.name}?endpoint={store}"\n'
        '[s3.buckets.kept]\naccess_key = "ours"\nsecret_key = "secret"\n'
    )
    running = start("home", "--config", config)
    running.put("/site/z.root", ZMUMU.read_bytes())
    return running


@pytest.mark.parametrize("delivery", ["LocalCache", "URLs"])
def test_results_in_another_store_reach_the_client_and_go_with_the_request(system, store, tmp_path, delivery):
    user = User(tmp_path / "user", system, refresh_token(system, "--subject", "eve"))
    found = user.python(
        f"""
run([{{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": momenta()}}],
    {{"OutputFormat": "parquet", "Delivery": "{delivery}"}})
""",
        one=[f"{system.run['https']}/site/z.root"],
    )
    assert isinstance(found["z"], list), found
    (place,) = found["z"]
    if delivery == "URLs":
        assert place.startswith(system.run["url"])
        assert "ours" not in place
        (tmp_path / "z.parquet").write_bytes(httpx.get(place).content)
        place = str(tmp_path / "z.parquet")
    assert len(ak.from_parquet(place)) == 2304
    (name,) = [name for name in names(store) if name.startswith(f"{tmp_path.name}/")]
    id_ = name.split("/")[1]
    user.command("transforms", "delete", "-c", str(user.config), id_)  # exits 1 after its work
    assert not [kept for kept in names(store) if id_ in kept]


def test_objects_of_a_named_prefix_are_inputs_and_no_others_of_the_bucket(system, store):
    for key in ("inputs/z.root", "secrets/z.root"):
        at(store).put_object(Bucket="kept", Key=key, Body=ZMUMU.read_bytes())
    query = "(call Count (call EventDataset 'f' 'events'))"
    ask = {"selection": query, "file-list": ["s3://kept/inputs/z.root", "s3://kept/secrets/z.root"],
           "codegen": "uproot", "result-format": "parquet"}  # fmt: skip
    id_ = system.ask("POST", "/servicex/transformation", json=ask).json()["request_id"]
    while (found := system.ask("GET", f"/servicex/transformation/{id_}").json())["status"] != "Complete":
        assert found["status"] in {"Submitted", "Running"}
    rows = system.ask("GET", f"/servicex/transformation/{id_}/results").json()["results"]
    states = {row["file-path"]: (row["transform_status"], row["input-bytes"] > 0) for row in rows}
    assert states == {
        "s3://kept/inputs/z.root": ("success", True),
        "s3://kept/secrets/z.root": ("failure", False),
    }
