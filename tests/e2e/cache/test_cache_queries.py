"""Queries at a cache: who asks is no part of the name; what may mean another file is refused."""

import http.client

import pytest

from doma.cache.query import telling
from doma.core.config import Cache
from tests.conftest import Start, System

IGNORED = Cache().ignore_query


@pytest.mark.parametrize(
    "query",
    ["", "&", "authz=Bearer%20x", "access_token=x", "X-Amz-Signature=a&x-amz-date=1", "Expires=1&Signature=b",
     "AWSAccessKeyId=k", "scitag.flow=65", "xrdcl.requuid=1", "%61uthz=x", "skipstat"],
)  # fmt: skip
def test_credentials_and_what_is_configured_away_say_nothing_of_the_content(query: str) -> None:
    assert telling(query, IGNORED) is None


@pytest.mark.parametrize(
    "query",
    ["version=1", "authz=x&version=1", "v", "=1", "authz.x=1", "ver%73ion=2", "X-Amz-Date=1&version=2"],
)
def test_everything_else_may_mean_another_file(query: str) -> None:
    assert telling(query, IGNORED) in {"version", "v", "", "authz.x"}


def test_a_query_is_refused_where_it_may_mean_another_file_and_never_dropped(start: Start, tmp_path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "f").write_bytes(b"the plain one")
    (tmp_path / "far.toml").write_text(
        f'[endpoints.o]\nstore = "file://{tmp_path}/site"\nwritable = false\npublic = true\n'
    )
    far = start("far", "--config", tmp_path / "far.toml", "--role", "storage", "--role", "issuer")
    place = far.run["url"].removeprefix("http://")
    (tmp_path / "near.toml").write_text(
        f'[cache]\nallow = ["http://{place}"]\n'
        f'[endpoints.cache]\nstore = "cache+http://{place}/o"\npublic = true\n'
        f'[endpoints.local]\nstore = "cache+file://{tmp_path}/site"\npublic = true\n'
    )
    near = start("near", "--config", tmp_path / "near.toml", "--role", "issuer", "--role", "storage",
                 "--role", "cache", "--role", "web")  # fmt: skip
    for path in ("/cache/f", f"/cache/http:/{place}/o/f", f"/http://{place}/o/f"):
        for method in ("GET", "HEAD"):
            assert get(near, method, path + "?X-Amz-Date=1&Signature=s")[0] == 200
            status, text = get(near, method, path + "?version=1")
            assert status == 400
            assert method == "HEAD" or b"cache.ignore_query" in text
    assert get(near, "GET", "/local/f?version=1") == (200, b"the plain one")  # a disk knows no queries


def get(near: System, method: str, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(near.run["url"].removeprefix("http://"), timeout=30)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
