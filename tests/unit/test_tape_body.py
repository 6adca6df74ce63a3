"""Bodies of the Tape REST API."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core.config import Staging
from doma.core.errors import BadRequest, LimitExceeded, TooManyRequests
from doma.doors import tape_body
from doma.doors.tape import Pace

LIMITS = Staging(files=5, pin=10, longest_pin=100)


def stage(*files):
    return tape_body.stage(json.dumps({"files": files}).encode(), "here", LIMITS)


def test_a_path_comes_once_with_slashes_collapsed():
    assert [file.path for file in stage({"path": "//a//b"}, {"path": "/a/b"}, {"path": "/a/%41"})] == [
        "/a/b",
        "/a/%41",
    ]


def test_a_pin_has_the_usual_life_unless_the_client_says_and_never_more_than_the_site_allows():
    lives = stage(
        {"path": "/a"}, {"path": "/b", "diskLifetime": "PT5S"}, {"path": "/c", "diskLifetime": "P1Y"}
    )
    assert [file.lifetime for file in lives] == [10, 5, 100]


def test_only_metadata_for_this_site_counts():
    files = stage(
        {"path": "/a", "targetedMetadata": {"here": {"activity": "prod"}, "there": {"activity": "x"}}},
        {"path": "/b", "targetedMetadata": {"there": {"activity": "x"}}},
        {"path": "/c", "targetedMetadata": "?"},
        {"path": "/d", "targetedMetadata": {"here": {"activity": "a" * 1000}}},
        {"path": "/e", "targetedMetadata": {"here": {"activity": "a\nb"}}},
    )
    assert [file.activity for file in files] == ["prod", "", "", "a" * 64, ""]


def test_too_many_files_are_refused_or_left_out():
    body = json.dumps({"paths": [f"/{i}" for i in range(6)]}).encode()
    with pytest.raises(LimitExceeded):
        tape_body.paths(body, 5)
    assert tape_body.paths(body, 5, cut=True) == ["/0", "/1", "/2", "/3", "/4"]


def test_a_body_of_too_many_values_is_not_even_parsed():
    with pytest.raises(LimitExceeded):
        tape_body.stage(b'{"files":[' + b"[]," * 100_000 + b"[]]}", "here", LIMITS)


@pytest.mark.parametrize(
    "text", ["", "P", "PT", "1D", "P-1D", "P1H", "PT1D", "PT1.5M", "P1D ", "P٣D", "P9999999999D"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(BadRequest):
        tape_body.duration(text, "x")


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["files", "paths", "path"]), inner),
    max_leaves=20,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_body_is_taken_or_refused_clearly(data):
    for parse in (lambda: tape_body.stage(data, "here", LIMITS), lambda: tape_body.paths(data, 5)):
        with contextlib.suppress(BadRequest, LimitExceeded):
            parse()


def test_a_client_that_calls_too_fast_is_told_when_to_come_back():
    now = [0.0]
    pace = Pace(2, clock=lambda: now[0])
    for _ in range(20):
        pace.check("a")
    with pytest.raises(TooManyRequests) as caught:
        pace.check("a")
    assert 0 < caught.value.retry_after <= 1
    pace.check("b")
    now[0] += caught.value.retry_after
    pace.check("a")
