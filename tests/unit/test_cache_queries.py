"""Which parameters of a query may mean another file, and which only say who asks."""

import pytest

from doma.cache.query import telling
from doma.core.config import Cache

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
