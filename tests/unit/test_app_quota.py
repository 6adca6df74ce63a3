"""Quotas as the configuration says them."""

from pathlib import Path

import pytest

from doma.app.endpoints import quota_of
from doma.core.config import Endpoint
from doma.core.errors import DomaError


def test_the_whole_and_its_parts_have_limits():
    both = quota_of(Endpoint(store="memory:", quota=500, quotas={"/vo": 100}))
    assert both is not None
    assert both.prefixes == ("/", "/vo")
    space = both.space("/vo/f")
    assert space is not None
    assert space.available == 100


def test_without_limits_nothing_is_counted():
    assert quota_of(Endpoint(store=f"file://{Path.cwd()}")) is None


def test_a_prefix_must_be_a_path():
    with pytest.raises(DomaError):
        quota_of(Endpoint(store="memory:", quotas={"vo": 1}))
