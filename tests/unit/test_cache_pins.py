"""The sums over pins, kept with every change, are those that counting all of them gives."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from doma.cache.index import Index, Pin

_FILES = st.integers(0, 3)
_OWNERS = st.sampled_from(("a", "b", "c"))
_PIN = st.tuples(st.just("pin"), _FILES, _OWNERS, st.integers(1, 9), st.integers(0, 50))
_UNPIN = st.tuples(st.just("unpin"), _FILES, st.none() | _OWNERS)
_WAIT = st.tuples(st.just("wait"), st.integers(1, 3))


def _counted(pins: Sequence[Pin], owner: str, but: str) -> tuple[int, int, int]:
    """The three sums by the plainest road."""
    rest = [pin for pin in pins if pin.path != but]
    mine = [pin.size for pin in rest if pin.owner == owner]
    files = {pin.path for pin in rest}
    return len(mine), sum(mine), sum(max(pin.size for pin in rest if pin.path == one) for one in files)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(_PIN, _UNPIN, _WAIT), max_size=25))
def test_pins_kept_sums_are_the_counted_ones(steps: list[tuple[object, ...]]) -> None:
    with TemporaryDirectory() as folder:
        index, now = Index(Path(folder) / "index.db"), 0.0
        for step in steps:
            match step:
                case ("pin", int(file), str(owner), int(ends), int(size)):
                    index.pin(Pin(f"/{file}", owner, now + ends, size), f"/{file}")
                case ("unpin", int(file), owner):
                    index.unpin(f"/{file}", owner if isinstance(owner, str) else None)
                case ("wait", int(passed)):
                    now += passed
                case _:
                    raise AssertionError(step)
            for owner in ("a", "b"):
                assert index.pinned_bytes(now, owner, "/0") == _counted(index.pins(now), owner, "/0")
        index.close(clean=True)


def test_a_pin_does_not_count_those_there_are(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    asked: list[str] = []
    for file in range(20):
        index.pin(Pin(f"/{file}", "a", 9.0, 1), f"/{file}")
    index._db.set_trace_callback(asked.append)
    assert index.pinned_bytes(1.0, "a", "/20") == (20, 20, 20)
    index.pin(Pin("/20", "a", 9.0, 1), "/20")
    index._db.set_trace_callback(None)
    reads = [sql for sql in asked if sql.startswith(("SELECT", "DELETE"))]
    plans = [row[3] for sql in reads for row in index._db.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert plans
    # each by a key; "SEARCH pins USING PRIMARY KEY" alone reads all of them, too
    assert not [plan for plan in plans if not plan.endswith("?)")], plans
    index.close(clean=True)


def test_a_file_of_two_owners_counts_once_until_both_have_let_go(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    index.pin(Pin("/f", "a", 9.0, 5), "/f")
    index.pin(Pin("/f", "b", 5.0, 7), "/f")
    assert index.pinned_bytes(1.0, "a", "/g") == (1, 5, 7)
    assert index.pinned_bytes(6.0, "a", "/g") == (1, 5, 5)
    index.unpin("/f", "a")
    assert index.pinned_bytes(6.0, "a", "/g") == (0, 0, 0)
    index.close(clean=True)
