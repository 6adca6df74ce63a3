"""Layouts: a byte's column and cluster, a column's bytes, and nothing that a lying file claims."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from doma.cache.layout import LARGEST, MOST_EXTENTS, compose, decode, encode, joined
from doma.cache.layout_names import chosen
from doma.core.errors import BadQuery, CorruptFile, UnknownColumn

SIZE = 4000


@st.composite
def tables(draw):
    """Columns by clusters of disjoint extents in any order in the file, some groups in several pieces."""
    columns, clusters = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = [(c, k) for c in range(columns) for k in range(clusters) for _ in range(draw(st.integers(0, 2)))]
    at, rows = draw(st.integers(0, 50)), []
    for column, cluster in draw(st.permutations(cells)):
        at += draw(st.integers(0, 3))
        length = draw(st.integers(1, 40))
        rows.append((at, length, column, cluster))
        at += length
    return [("Events", f"c{n}") for n in range(columns)], draw(st.permutations(rows))


def made(names, rows, size=SIZE):
    return compose(size, names, np.array(rows, np.int64).reshape(-1, 4), [(0, 10)])


@given(tables(), st.data())
def test_a_byte_is_found_as_brute_force_finds_it(table, data):
    names, rows = table
    layout = made(names, rows)
    for _ in range(10):
        at = data.draw(st.integers(0, SIZE))
        there = [(c, k) for start, length, c, k in rows if start <= at < start + length]
        assert layout.find(at) == (there[0] if there else None)
        stop = data.draw(st.integers(at + 1, SIZE + 1))
        first, last = layout.touched(at, stop)
        overlapping = sorted(start for start, length, _, _ in rows if start < stop and at < start + length)
        assert layout.starts[first:last].tolist() == overlapping


@given(tables(), st.data())
def test_the_ranges_of_columns_are_exactly_their_extents(table, data):
    names, rows = table
    columns = data.draw(st.sets(st.integers(0, len(names) - 1)))
    clusters = data.draw(st.none() | st.sets(st.integers(0, 6)))
    wanted = [
        (start, start + length)
        for start, length, c, k in rows
        if c in columns and (clusters is None or k in clusters)
    ]
    found = made(names, rows).ranges(columns, clusters)
    assert {n for a, b in found for n in range(a, b)} == {n for a, b in wanted for n in range(a, b)}
    assert all(b < c for (_, b), (c, _) in pairwise(found))


@given(tables())
def test_groups_are_the_extents_of_one_column_in_one_cluster(table):
    names, rows = table
    layout = made(names, rows)
    cells = [(c, k) for _, _, c, k in rows]
    assert len(layout.group_columns) == len(set(cells))
    seen = []
    for group, column in enumerate(layout.group_columns):
        members = layout.extents_of(group)
        assert {int(layout.groups[n]) for n in members} == {group}
        (cell,) = {(int(layout.columns[n]), int(layout.clusters[n])) for n in members}
        assert cell[0] == column
        seen.append(cell)
    assert seen == sorted(set(cells))


@given(tables())
def test_what_is_written_is_read_again(table):
    layout = made(*table)
    again = decode(encode(layout), SIZE)
    assert (again.names, again.metadata, again.waits) == (layout.names, layout.metadata, layout.waits)
    for part in ("starts", "stops", "columns", "clusters", "groups"):
        assert np.array_equal(getattr(again, part), getattr(layout, part))


@given(st.data())
def test_damaged_bytes_are_no_layout(data):
    whole = bytearray(encode(made([("", "a")], [(20, 5, 0, 0), (30, 5, 0, 1)])))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptFile):
        decode(bytes(whole), SIZE)
    with pytest.raises(CorruptFile):
        decode(bytes(whole[:at]), SIZE)


def sealed(plain):
    body = zlib.compress(plain)
    return b"doma-layout-1 %08x\n" % crc32c(body) + body


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"[]\n",
        b'{"size": 4000}\n',
        b'{"size": 4001, "extents": 0, "names": [], "metadata": [], "waits": []}\n',
        b'{"size": 4000, "extents": 1, "names": [], "metadata": [], "waits": []}\n',
        b'{"size": 4000, "extents": -1, "names": [], "metadata": [], "waits": []}\n',
        b'{"size": 4000, "extents": 0, "names": [], "metadata": [[0, 9999]], "waits": []}\n',
        b'{"size": 4000, "extents": %d, "names": [], "metadata": [], "waits": []}\n' % (MOST_EXTENTS + 1),
        b"[" * 100_000,
        bytes(LARGEST + 10),
    ],
)
def test_a_helper_that_lies_about_a_layout_is_not_believed(plain):
    with pytest.raises(CorruptFile):
        decode(sealed(plain), SIZE)


def test_extents_outside_the_file_or_over_another_are_left_out():
    rows = [
        (100, 50, 0, 0),
        (120, 10, 1, 0),  # within the first
        (3990, 20, 0, 1),  # beyond the end
        (-5, 10, 0, 1),
        (1 << 62, 1 << 62, 0, 1),
        (200, 0, 0, 1),
        (300, 10, 7, 0),  # no such column
        (400, 10, 1, -1),
        (500, 10, 1, 1 << 40),
        (600, 10, 1, 1),
    ]
    layout = made([("", "a"), ("", "b")], rows)
    assert list(zip(layout.starts, layout.stops, layout.columns, strict=True)) == [
        (100, 150, 0),
        (600, 610, 1),
    ]


def test_pages_that_two_columns_share_belong_to_both():
    layout = made([("", "a"), ("", "b")], [(50, 10, 0, 0), (50, 10, 1, 0), (55, 5, 1, 0), (60, 4, 1, 1)])
    assert layout.touched(52, 53) == (0, 2)
    assert layout.ranges([1]) == [(50, 64)]
    assert layout.ranges([0]) == [(50, 60)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda t: (min(t), max(t)))))
def test_joined_spans_cover_the_same_bytes(spans):
    out = joined(spans)
    assert {n for a, b in out for n in range(a, b)} == {n for a, b in spans for n in range(a, b)}
    assert out == sorted(out)


NAMES = [
    ("Events", "nMuon"),
    ("Events", "Muon_pt"),
    ("Events", "Muon_eta.list.element"),
    ("Events", "Jet#0/Jet#0.momentum.x"),
    ("Runs", "run"),
]


@pytest.mark.parametrize(
    ("globs", "tree", "found"),
    [
        (["Muon_pt"], None, [1]),
        (["Muon_*"], None, [1, 2]),
        (["Muon_eta"], "Events", [2]),
        (["Muon_eta.list"], None, [2]),
        (["Jet#0"], None, [3]),
        (["Jet#0.momentum"], None, [3]),
        (["Jet#0/Jet#0.momentum.x"], None, [3]),
        (["run", "nMuon"], None, [0, 4]),
        (["*"], "Runs", [4]),
    ],
)
def test_globs_name_columns_by_any_leading_part(globs, tree, found):
    assert chosen(NAMES, globs, tree, "/f.root") == found


@pytest.mark.parametrize(
    ("globs", "tree", "error", "says"),
    [
        (["Muon_pT"], None, UnknownColumn, "nearest: Muon_pt"),
        (["Muon_pt", "Muon_ets"], None, UnknownColumn, "/f.root: no column 'Muon_ets'; nearest: Muon_eta"),
        (["run"], "Events", UnknownColumn, "no column 'run'"),
        (["run"], "events", UnknownColumn, "no tree 'events'; nearest: Events"),
        (["zzzzzzzz"], None, UnknownColumn, "it has"),
        ([], None, BadQuery, "name some"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_the_nearest(globs, tree, error, says):
    with pytest.raises(error, match=says.replace("*", r"\*")):
        chosen(NAMES, globs, tree, "/f.root")
