"""Freshness: the table of F1-F4, F10, F14, F17 as pure decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.cache.freshness import FOREVER, Directives, fresh_until, may_serve_stale, parse


@pytest.mark.parametrize(
    ("header", "lifetime"),
    [
        ("", None),
        ("max-age=60", 60),
        ("MAX-AGE=60", 60),
        ('max-age="60"', 60),
        (" max-age=60 , public", 60),
        ("max-age=60, s-maxage=5", 5),
        ("s-maxage=5, max-age=60", 5),
        ("max-age=60, max-age=30", 30),
        ("max-age=-1", 0),
        ("max-age", 0),
        ("max-age=", 0),
        ("max-age=ten", 0),
        ("max-age=1.5", 0),
        ("max-age=99999999999999999999999", FOREVER),
        ("max-age=2147483649", FOREVER),
        ("max-age=٣", 0),
        (",,, ;;; =5, x=, max-age=7", 7),
        ('foo="a, max-age=1", max-age=9', 9),
    ],
)
def test_a_lifetime_is_read_as_rfc_9111_says(header, lifetime):
    assert parse(header).lifetime == lifetime


@pytest.mark.parametrize(
    ("header", "store", "check", "strict"),
    [
        ("No-Store", False, False, False),
        ("private", False, False, False),
        ('private="Set-Cookie"', False, False, False),
        ("no-cache", True, True, False),
        ("must-revalidate, max-age=1", True, False, True),
        ("no-storeX, unknown=3", True, False, False),
    ],
)
def test_directives_are_recognised_by_name_alone(header, store, check, strict):
    said = parse(header)
    assert (said.store, said.check, said.strict) == (store, check, strict)


@given(st.text(max_size=200))
def test_no_header_whatever_breaks_the_parser(header):
    lifetime = parse(header).lifetime
    assert lifetime is None or 0 <= lifetime <= FOREVER


def test_an_explicit_short_lifetime_is_kept_to_the_second_and_age_is_taken_off():
    assert fresh_until(parse("max-age=60"), 1000.0, 0.0, 9.0, "k") == 1060.0
    assert fresh_until(parse("max-age=60"), 1000.0, 20.0, 9.0, "k") == 1040.0
    assert fresh_until(parse("max-age=60"), 1000.0, 90.0, 9.0, "k") == 1000.0
    assert fresh_until(parse("no-cache, max-age=60"), 1000.0, 0.0, 9.0, "k") == 1000.0


@given(st.text(max_size=8), st.floats(0, 1e9))
def test_expiry_is_spread_but_a_promise_of_the_origin_is_never_exceeded(key, validated):
    default = fresh_until(Directives(), validated, 0.0, 1000.0, key) - validated
    promised = fresh_until(Directives(lifetime=1000.0), validated, 0.0, 5.0, key) - validated
    assert 899.9 <= default <= 1100.1
    assert 899.9 <= promised <= 1000.1


def test_objects_that_came_together_do_not_expire_together():
    assert len({fresh_until(Directives(), 0.0, 0.0, 1000.0, str(i)) for i in range(20)}) == 20


def test_stale_content_is_served_for_a_while_unless_the_origin_forbade_it():
    assert may_serve_stale(parse("max-age=1"), 100.0, 50.0, 60.0)
    assert not may_serve_stale(parse("max-age=1"), 111.0, 50.0, 60.0)
    assert not may_serve_stale(parse("max-age=1, must-revalidate"), 51.0, 50.0, 60.0)
    assert not may_serve_stale(parse("no-cache"), 51.0, 50.0, 60.0)
