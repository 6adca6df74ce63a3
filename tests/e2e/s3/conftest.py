"""Keys for the s3 door of a running system, and boto3 with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Pair:
    """A key pair as the route gives it."""

    access: str
    secret: str
    token: str
    url: str


@pytest.fixture(scope="session")
def key(shared) -> Callable[..., Pair]:
    """Asks for a key pair with ada's token."""

    def ask(prefix: str = "/", verbs=("read", "create", "modify"), endpoint="site", token="", **more) -> Pair:
        asked = {"endpoint": endpoint, "prefix": prefix, "verbs": list(verbs), **more}
        answer = shared.ask("POST", "/api/v1/s3/keys", token, json=asked)
        assert answer.status_code == 200, answer.text
        got = answer.json()
        return Pair(got["access_key"], got["secret_key"], got["session_token"], got["endpoint_url"])

    return ask


@pytest.fixture(scope="session")
def boto(shared, key) -> Callable[..., Any]:
    """Makes a boto3 client of the door."""
    import boto3
    from botocore.config import Config

    def client(pair: Pair | None = None, *, url: str = "", signature: str = "s3v4", **config) -> Any:
        pair = pair or key()
        how = Config(
            s3={"addressing_style": "path", **config.pop("s3", {})},
            signature_version=signature,
            retries={"total_max_attempts": 1},
            **config,
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=url or pair.url,
            region_name="us-east-1",
            aws_access_key_id=pair.access,
            aws_secret_access_key=pair.secret,
            aws_session_token=pair.token or None,
            verify=shared.run["ca_file"],
            config=how,
        )

    return client


@pytest.fixture(scope="session")
def s3(boto):
    """A client with every right on the endpoint ``site``."""
    return boto()


@pytest.fixture(scope="session")
def s3_server():
    """The URL of moto's S3 server, with the bucket ``doma-test`` in it."""
    import logging

    import httpx

    server_of = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    assert httpx.put(f"http://{host}:{port}/doma-test").status_code == 200
    yield f"http://{host}:{port}"
    server.stop()
