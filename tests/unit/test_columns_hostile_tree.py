"""Crafted trees: whatever a basket says of itself, right values or one error with file and branch."""

import struct
import zlib

import pytest

from tests.unit.columns_hostile import Tree, check, outcomes

NAMES = ("x", "y", "z", "nz")
NUMBERS = (-1, 0, 1, 2**31 - 1, -(2**31))


def baskets(made):
    """What the headers of baskets can say."""
    for name in ("x", "z", "nz"):
        for number in NUMBERS:
            yield f"{name} has {number} bytes", made.key(name, bytes=number)
            yield f"{name} unpacks to {number}", made.key(name, size=max(number, 0))
            yield f"{name} has {number} entries", made.basket(name, entries=number)
            yield f"{name} ends at {number}", made.basket(name, last=number)
            yield f"{name} has room for {number}", made.basket(name, most=number)
        for number in (-1, 0, 20, 64, 67, 2**15 - 1, -(2**15)):
            yield f"{name} begins at {number}", made.key(name, header=number)
        for step in (-4, -2, -1, 1, 2, 4):
            yield f"{name} ends {step} further", made.basket(name, last=made.last[name] + step)
            yield f"{name} begins {step} further", made.key(name, header=made.headers[name] + step)


def offsets(made):
    """What the offsets of lists can be."""

    def put(place, number):
        def edit(found):
            found[place] = number

        return edit

    def add(number):
        def edit(found):
            found += number

        return edit

    def swap(found):
        found[[10, 90]] = found[[90, 10]]

    def flat(found):
        found[:] = found[0]

    yield "offsets backwards", made.offsets(swap)
    yield "offsets of one place", made.offsets(flat)
    for place in (0, 1, 50, 99):
        for number in (-(2**31), 2**31 - 1, -1, 0, 64, 66, 68, 69, made.last["z"] + 4):
            yield f"offset {place} is {number}", made.offsets(put(place, number))
    for number in (-65, -4, -1, 1, 4, 2**30):
        yield f"offsets {number} further", made.offsets(add(number))
    for number in (-1, 0, 7, 2**31 - 1):
        yield f"a count of {number}", made.value("nz", 3, struct.pack(">i", number))


def blocks(made):
    """Baskets that say they are compressed."""
    room = len(made.stored) - made.places["z"] - made.headers["z"]
    for size in (1172 + 1, 1 << 24, (1 << 31) - 1):
        for method in (b"ZL\x08", b"XZ\0", b"L4\1", b"ZS\1", b"CS\x08", b"??\0"):
            body = zlib.compress(bytes(1 << 20))[: room - 9]
            head = method + len(body).to_bytes(3, "little") + min(size, (1 << 24) - 1).to_bytes(3, "little")
            place = made.places["z"] + made.headers["z"]
            key = made.KEY.pack(*_told(made, size))
            yield f"{method} of {size}", made.crafted([(made.places["z"], key), (place, head + body)])


def _told(made, size):
    held = list(made.KEY.unpack_from(made.stored, made.places["z"]))
    held[2] = size
    return held


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """What each file is; and what comes of it."""
    folder = tmp_path_factory.mktemp("hostile")
    made = Tree(folder / "base")
    files = {"as it was": made.crafted()}
    for group in (baskets, offsets, blocks):
        files |= dict(group(made))
    files["entries below zero"] = made.entries(-1)
    return files, outcomes(folder, files.values(), NAMES)


def test_a_crafted_tree_gives_right_values_or_one_error_that_names_it(read):
    files, found = read
    check(list(files), found)
    words = [word for word, _ in found.values()]
    assert {"same", "CorruptFile", "LimitExceeded"} <= set(words)
    assert words.count("same") > words.count("CorruptFile") > 150
    assert words.count("referred") < 10


def test_a_lie_of_one_branch_spares_the_others(read):
    files, found = read
    for number, what in enumerate(files):
        if what == "entries below zero":
            assert {found[number, name][0] for name in NAMES} == {"CorruptFile"}
            continue
        damaged = next((n for n in ("nz", "x") if what.startswith(n) or (n == "nz" and "count" in what)), "z")
        assert all(found[number, name][0] == "same" for name in NAMES if name != damaged), what
