"""Rows of the range table (R1-R24) and the conditions of RFC 9110, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core import ranges
from doma.core.errors import BadRequest, PreconditionFailed, RangeNotSatisfiable

S = 1000


@pytest.mark.parametrize(
    ("row", "header", "spans"),
    [
        ("R2", "bytes=0-0", [(0, 1)]),
        ("R3", "bytes=10-19", [(10, 20)]),
        ("R4", "bytes=990-5000", [(990, S)]),
        ("R5", "bytes=990-", [(990, S)]),
        ("R6", "bytes=-10", [(990, S)]),
        ("R7", "bytes=-5000", [(0, S)]),
        ("R7", "bytes=-" + "9" * 5000, [(0, S)]),
        ("R10", "bytes=9-5", None),
        ("R10", "bytes=x-y", None),
        ("R10", "bytes=", None),
        ("R10", "bytes=-", None),
        ("R10", "bytes=1-2,", [(1, 3)]),
        ("R10", "items=0-1", None),
        ("R10", "bytes 0-1", None),
        ("R10", "bytes=0-1-2", None),
        ("R10", "bytes=0-1;2-3", None),
        ("R10", "bytes=\u0661-\u0662", None),
        ("R11", "bytes=0-1,5-6", [(0, 2), (5, 7)]),
        ("R11", "bytes=0-1,  5-6", [(0, 2), (5, 7)]),
        ("R12", "bytes=0-1,5000-", [(0, 2)]),
        ("R14", "bytes=0-0,-1", [(0, 1), (S - 1, S)]),
        ("R15", "bytes=5-9,0-6,5-9", [(5, 10), (0, 7), (5, 10)]),
        ("unit", "Bytes=0-0", [(0, 1)]),
    ],
)
def test_a_range_header_becomes_spans_or_is_ignored(row, header, spans):
    assert ranges.parse(header, S) == spans, row


@pytest.mark.parametrize(
    "header",
    ["bytes=-0", "bytes=1000-", "bytes=5000-6000", "bytes=1000-,2000-", "bytes=99" + "9" * 4500 + "-"],
)
def test_ranges_beyond_the_end_are_refused_with_the_size(header):
    with pytest.raises(RangeNotSatisfiable) as caught:
        ranges.parse(header, S)
    assert caught.value.detail["size"] == S


def test_an_empty_file_satisfies_only_a_suffix_and_cannot_say_it():
    with pytest.raises(RangeNotSatisfiable):
        ranges.parse("bytes=0-", 0)
    assert ranges.parse("bytes=-5", 0) is None
    with pytest.raises(RangeNotSatisfiable):
        ranges.parse("bytes=-0", 0)


def test_1024_ranges_are_served_and_one_more_is_refused():
    header = "bytes=" + ",".join(f"{i}-{i}" for i in range(1024))
    assert len(ranges.parse(header, 5000)) == 1024
    with pytest.raises(BadRequest, match="at most 1024"):
        ranges.parse(header + ",5-5", 5000)


def test_ranges_that_repeat_a_large_file_are_ignored():
    assert ranges.parse("bytes=0-,0-,0-", 10 << 20) is None
    assert len(ranges.parse("bytes=0-,0-", 10 << 20)) == 2


def test_ranges_across_2_to_the_32_are_exact():
    a = (1 << 32) - 5
    assert ranges.parse(f"bytes={a}-{a + 9}", 5 << 30) == [(a, a + 10)]


@given(st.text(max_size=40).map(lambda t: "bytes=" + t) | st.text(max_size=40), st.integers(0, 1 << 40))
def test_no_text_makes_the_parser_fail_and_spans_lie_in_the_file(header, size):
    try:
        spans = ranges.parse(header, size)
    except RangeNotSatisfiable:
        return
    assert all(0 <= start < stop <= size for start, stop in spans or ())


@given(st.lists(st.integers(0, 99), min_size=1, max_size=9))
def test_the_announced_multipart_length_is_the_true_one(starts):
    spans = [(s, s + 1 + s % 3) for s in starts]
    heads, tail, total = ranges.parts(spans, 200, "a/b", "BOUND")
    body = b"".join(h + b"x" * (b - a) for h, (a, b) in zip(heads, spans, strict=True)) + tail
    assert len(body) == total
    assert body.startswith(b"--BOUND\r\n")
    assert body.endswith(b"\r\n--BOUND--\r\n")


DATE = ranges.http_date(1_000_000)
LATER = ranges.http_date(1_000_060)
EARLIER = ranges.http_date(999_940)


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({}, False),
        ({"if-none-match": '"v"'}, True),
        ({"if-none-match": 'W/"v"'}, True),
        ({"if-none-match": '"u", "v"'}, True),
        ({"if-none-match": "*"}, True),
        ({"if-none-match": '"u"', "if-modified-since": LATER}, False),
        ({"if-none-match": "v"}, False),
        ({"if-modified-since": DATE}, True),
        ({"if-modified-since": LATER}, True),
        ({"if-modified-since": EARLIER}, False),
        ({"if-modified-since": "nonsense"}, False),
        ({"if-match": '"v"'}, False),
        ({"if-match": "*"}, False),
        ({"if-unmodified-since": DATE}, False),
    ],
)
def test_a_read_is_answered_304_when_the_client_has_it(headers, answer):
    assert ranges.not_modified(headers, "/f", "v", 1_000_000.7) is answer


@pytest.mark.parametrize(
    "headers",
    [{"if-match": '"u"'}, {"if-match": 'W/"v"'}, {"if-match": "v"}, {"if-unmodified-since": EARLIER}],
)
def test_a_read_whose_condition_fails_is_refused(headers):
    with pytest.raises(PreconditionFailed, match="/f"):
        ranges.not_modified(headers, "/f", "v", 1_000_000.0)


@pytest.mark.parametrize(
    ("headers", "version", "fine"),
    [
        ({"if-none-match": "*"}, None, True),
        ({"if-none-match": "*"}, "v", False),
        ({"if-none-match": '"u"'}, "v", True),
        ({"if-none-match": '"v"'}, "v", False),
        ({"if-match": "*"}, None, False),
        ({"if-match": '"v"'}, "v", True),
        ({"if-match": '"v"'}, None, False),
    ],
)
def test_a_write_with_a_condition_is_refused_unless_it_holds(headers, version, fine):
    if fine:
        ranges.check_write(headers, "/f", version, 0.0)
    else:
        with pytest.raises(PreconditionFailed):
            ranges.check_write(headers, "/f", version, 0.0)


@pytest.mark.parametrize(
    ("value", "applies"),
    [
        (None, True),
        ('"v"', True),
        ('"u"', False),
        ('W/"v"', False),
        (DATE, True),
        (LATER, False),
        ("v", False),
    ],
)
def test_if_range_counts_only_for_just_this_content(value, applies):
    assert ranges.range_applies(value, "v", 1_000_000.9) is applies
