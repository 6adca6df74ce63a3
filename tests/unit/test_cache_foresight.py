"""Foresight: the same columns of the next clusters, after two neighbouring ones, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.cache.foresight import Sight
from doma.cache.layout import compose

COLUMNS, CLUSTERS, LENGTH = 200, 12, 10_000


def extent(column, cluster):
    start = 1000 + (cluster * COLUMNS + column) * LENGTH
    return start, start + LENGTH


SIZE = extent(COLUMNS - 1, CLUSTERS - 1)[1] + 1000
ROWS = [(extent(c, k)[0], LENGTH, c, k) for c in range(COLUMNS) for k in range(CLUSTERS)]
LAYOUT = compose(SIZE, [("Events", f"c{n}") for n in range(COLUMNS)], np.array(ROWS))


@pytest.fixture
def sight():
    sight = Sight(SIZE)
    sight.learn(LAYOUT)
    return sight


def cells(spans):
    """The columns and clusters of whole extents; anything else fails."""
    found = set()
    for start, stop in spans:
        assert (start - 1000) % LENGTH == (stop - 1000) % LENGTH == 0
        found |= {divmod(n, COLUMNS)[::-1] for n in range((start - 1000) // LENGTH, (stop - 1000) // LENGTH)}
    return found


def test_nothing_is_foreseen_before_two_neighbouring_clusters_were_read(sight):
    assert not sight.seen(*extent(5, 0))
    assert not sight.seen(*extent(6, 1))
    assert not sight.seen(*extent(5, 2))
    assert cells(sight.seen(*extent(5, 3))) == {(5, 4)}


def test_two_clusters_ahead_once_the_habit_is_steady(sight):
    given = [cells(sight.seen(*extent(7, k))) for k in range(CLUSTERS)]
    assert given[:5] == [set(), {(7, 2)}, {(7, 3)}, {(7, 4), (7, 5)}, {(7, 6)}]
    assert set().union(*given) == {(7, k) for k in range(2, CLUSTERS)}
    assert sum(map(len, given)) == CLUSTERS - 2


def test_only_the_columns_that_were_read_are_fetched(sight):
    for k in (3, 4):
        wanted = [sight.seen(*extent(c, k)) for c in (3, 4, 90)]
    assert set().union(*map(cells, wanted)) == {(3, 5), (4, 5), (90, 5)}


def test_one_read_over_several_columns_is_a_read_of_each(sight):
    assert not sight.seen(extent(10, 0)[0], extent(12, 0)[1])
    wanted = sight.seen(extent(10, 1)[0], extent(12, 1)[1])
    assert cells(wanted) == {(10, 2), (11, 2), (12, 2)}
    assert len(wanted) == 1


def test_the_rim_of_a_rounded_range_is_no_read_of_the_neighbour(sight):
    for k in (0, 1):
        start, stop = extent(20, k)
        wanted = sight.seen(start // 4096 * 4096, -(-stop // 4096) * 4096)
    assert cells(wanted) == {(20, 2)}


def test_two_clients_at_two_ends_of_a_file_do_not_disturb_each_other(sight):
    sight.seen(*extent(1, 0))
    sight.seen(*extent(1, 8))
    assert cells(sight.seen(*extent(1, 1))) == {(1, 2)}
    assert cells(sight.seen(*extent(1, 9))) == {(1, 10)}


def test_nothing_is_given_twice_nor_what_was_read_already(sight):
    sight.seen(*extent(2, 2))
    sight.seen(*extent(2, 0))
    assert not sight.seen(*extent(2, 1))  # 2 was read before
    assert cells(sight.seen(*extent(2, 2))) == {(2, 3)}
    assert not sight.seen(*extent(2, 2))


def test_a_copy_of_the_whole_file_is_left_to_plain_read_ahead(sight):
    piece = 1 << 20
    for start in range(0, SIZE, piece):
        assert not sight.seen(start, min(start + piece, SIZE))
    assert sight.reach(SIZE // 2) == SIZE


def test_plain_read_ahead_ends_where_the_column_ends(sight):
    start, stop = extent(30, 4)
    sight.seen(start, start + 100)
    assert sight.reach(start + 100) == stop
    assert sight.reach(stop) == stop
    assert sight.reach(500) == 500  # metadata: what follows is not known


def test_reads_before_the_layout_was_known_count():
    sight = Sight(SIZE)
    assert not sight.seen(*extent(9, 0))
    assert not sight.seen(*extent(9, 1))
    assert sight.reach(1000) == SIZE
    sight.learn(LAYOUT)
    assert cells(sight.seen(*extent(9, 2))) == {(9, 3)}


def test_a_forgotten_layout_is_silence():
    sight = Sight(SIZE)
    sight.learn(LAYOUT)
    sight.seen(*extent(9, 0))
    sight.learn(None)
    assert not sight.seen(*extent(9, 1))


def test_a_large_cluster_is_not_fetched_beyond_the_bound():
    rows = [(k * 10_000_000, 10_000_000, 0, k) for k in range(5)]
    sight = Sight(50_000_000)
    sight.learn(compose(50_000_000, [("", "a")], np.array(rows)))
    assert not [span for k in range(5) for span in sight.seen(k * 10_000_000, (k + 1) * 10_000_000)]


def test_a_cluster_that_was_fetched_ahead_counts_as_read(sight):
    for k in (0, 1):
        sight.seen(*extent(8, k))
    assert cells(sight.seen(*extent(8, 3))) == {(8, 4), (8, 5)}  # 2 was read warm, by another process


def test_the_last_cluster_has_no_next_one_in_another_column(sight):
    sight.seen(*extent(40, CLUSTERS - 2))
    assert cells(sight.seen(*extent(40, CLUSTERS - 1))) == set()


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 100_000)), max_size=60))
def test_any_reads_foresee_whole_extents_of_columns_that_were_read_and_no_byte_twice(reads):
    sight = Sight(SIZE)
    sight.learn(LAYOUT)
    touched, given = set(), []
    for start, length in reads:
        stop = min(start + length, SIZE)
        touched |= {int(LAYOUT.columns[n]) for n in range(*LAYOUT.touched(start, stop))}
        given += sight.seen(start, stop)
    assert {column for column, _ in cells(given)} <= touched
    assert len(cells(given)) * LENGTH == sum(stop - start for start, stop in given)
