"""Where inputs are read, and which objects of buckets may be."""

import pytest

from doma.columns.remote_places import Buckets, Road
from doma.core.errors import ConfigError
from doma.store.s3_signature import Credentials

HERE = ("https://here.org", "root://here.org", "roots://here.org:1094")
ROAD = Road(HERE, "https://here.org/cache", ("https://*.cern.ch", "root://*.cern.ch"))
FAR, FAR_ROOT = "https://eos.cern.ch/f", "root://eos.cern.ch//f"


@pytest.mark.parametrize(
    ("urls", "places"),
    [
        (["https://here.org/site/f"], ["https://here.org/site/f"]),
        ([FAR], [f"https://here.org/cache/{FAR}", FAR]),
        ([FAR_ROOT, FAR], [f"https://here.org/cache/{FAR_ROOT}", FAR_ROOT, FAR]),
        ([FAR, "https://here.org/site/f"], ["https://here.org/site/f", FAR]),
        ([FAR, "root://here.org//site/f"], ["root://here.org//site/f", FAR]),
        (["https://other.org/f", FAR], [f"https://here.org/cache/{FAR}", "https://other.org/f", FAR]),
        (["https://other.org/f"], ["https://other.org/f"]),
        ([f"{FAR}?x=1"], [f"{FAR}?x=1"]),
        (["file:///a", "nowhere:x", "s3://b/k"], ["file:///a", "nowhere:x", "s3://b/k"]),
        (["https://cern.ch.evil.org/f"], ["https://cern.ch.evil.org/f"]),
    ],
)
def test_own_places_go_first_and_the_cache_before_its_origins(urls, places):
    assert list(ROAD.places(urls)) == places


def test_without_a_cache_everything_is_read_where_it_lies():
    assert Road(HERE).places([FAR, FAR_ROOT]) == (FAR, FAR_ROOT)


ADDRESS = "s3://data/public?endpoint=https://s3.here.org:9000"
KEYS = Buckets({ADDRESS: Credentials("AK", "hush"), "s3://open?endpoint=https://s3.here.org": None})


def test_an_object_below_a_named_prefix_gets_a_signed_url():
    url = KEYS.signed("s3://data/public/a b.root", 1_700_000_000)
    assert url.startswith("https://s3.here.org:9000/data/public/a%20b.root?X-Amz-Algorithm=")
    assert "X-Amz-Signature=" in url
    assert "hush" not in url
    assert "hush" not in repr(KEYS)
    assert KEYS.signed("s3://open/k", 0) == "https://s3.here.org/open/k"


@pytest.mark.parametrize(
    "url",
    ["s3://data/private/a", "s3://data/publicity/a", "s3://data/public/../private/a", "s3://data", "s3://else/public/a",
     "s3://data/public/%2e%2e/x", "s3://open", "s3:///x"],
)  # fmt: skip
def test_other_objects_get_none(url):
    assert KEYS.signed(url, 0) == ""


def test_an_address_that_is_none_is_told_at_the_start():
    with pytest.raises(ConfigError):
        Buckets({"https://x": None})
