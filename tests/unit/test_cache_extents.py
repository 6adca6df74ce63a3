"""Extents: runs of pages, joined and cut; reading ahead only for those who read in order."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from doma.cache.extents import EXTENT, FLIGHT, GAP, PAGE, Stride, joined, pages_of, pieces, without
from doma.cache.record import Record, decode, encode

RUN = st.tuples(st.integers(0, 300), st.integers(0, 40)).map(lambda t: (t[0], t[0] + t[1]))


def _pages(runs):
    return {page for first, last in runs for page in range(first, last)}


@given(st.integers(0, 10**7), st.integers(0, 10**6))
def test_pages_cover_the_bytes_and_less_than_a_page_more_at_each_end(start, length):
    first, last = pages_of(start, start + length)
    if length:
        assert first * PAGE <= start < (first + 1) * PAGE
        assert (last - 1) * PAGE < start + length <= last * PAGE
    else:
        assert (last - first) * PAGE < 2 * PAGE


@given(st.lists(RUN, max_size=12))
def test_joined_runs_cover_the_same_pages_and_only_small_gaps_more(runs):
    out = joined(runs)
    assert _pages(out) >= _pages(runs)
    assert out == sorted(out)
    assert all((b[0] - a[1]) * PAGE >= GAP for a, b in pairwise(out))
    extra = _pages(out) - _pages(runs)
    assert len(extra) * PAGE < GAP * max(1, len(runs))


@given(RUN, st.lists(RUN, max_size=8))
def test_what_is_left_is_exactly_what_nobody_took(run, taken):
    left = without(run, taken)
    assert _pages(left) == _pages([run]) - _pages(taken)
    assert all(a[1] < b[0] for a, b in pairwise(left))


@given(RUN)
def test_pieces_are_small_and_whole(run):
    assert all((last - first) * PAGE <= FLIGHT for first, last in pieces(run))
    assert _pages(pieces(run)) == _pages([run])


def test_a_sequential_reader_is_read_ahead_for_up_to_the_cap_and_a_jump_ends_it():
    habit, at, seen = Stride(), 0, []
    for _ in range(12):
        seen.append(habit.ahead(at, at + 100_000, EXTENT * 2))
        at += 100_000
    assert seen[:2] == [0, 0]
    assert seen[2:5] == [200_000, 400_000, 800_000]
    assert seen[-1] == EXTENT
    assert habit.ahead(7, 8, EXTENT) == 0


def test_a_record_survives_its_own_encoding_and_no_flipped_bit():
    record = Record("site", "/a", 5, '"v"', 1.5, "g", 2.0, checksums={"adler32": "00000001"})
    data = encode(record)
    assert decode(data, record.key) == record
    assert decode(data, "0" * 64) is None
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 4
        assert decode(bytes(broken), record.key) is None
    assert all(decode(data[:n], record.key) is None for n in range(len(data)))
