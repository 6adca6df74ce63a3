"""Crafted trees: whatever a basket says of itself, right values or one error with file and branch."""

import lzma
import struct
import zlib
from contextlib import closing

import cramjam
import pytest
import uproot

from doma.columns.remote import open_bytes
from doma.columns.source import open_source
from doma.core.errors import CorruptFile, LimitExceeded
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


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A tree with a branch that uproot reads; and where its basket is."""
    path = tmp_path_factory.mktemp("texts") / "texts.root"
    with uproot.recreate(path, compression=None) as made:
        tree = made.mktree("T", {"s": "string", "x": "int32"})
        tree.extend({"s": ["a" * 99] * 50, "x": range(50)})
    with uproot.open(path) as file:
        return path, int(file["T"]["s"].member("fBasketSeek")[0])


BOMBS = {
    "ZL\x08": zlib.compress(bytes(1 << 22), 9),
    "ZS\x01": bytes(cramjam.zstd.compress(bytes(1 << 26))),
    "XZ\0": lzma.compress(bytes(1 << 24)),
}


@pytest.mark.parametrize("method", BOMBS)
@pytest.mark.parametrize(
    ("claim", "blocks", "text"),
    [
        (5000, 1, r"another size than it says|failed to write whole buffer"),
        (1 << 20, 1, r"another size than it says|failed to write whole buffer"),
        ((1 << 24) - 1, 100, r"texts\d+/bomb.root: packed bytes at \d+: what is read at once would unpack"),
        ((1 << 24) - 1, 128, r"texts\d+/bomb.root: packed bytes at \d+: what is read at once would unpack"),
    ],
)
def test_what_uproot_unpacks_is_bounded_before_it_is_unpacked(texts, method, claim, blocks, text):
    path, at = texts
    stored = bytearray(path.read_bytes())
    key = list(Tree.KEY.unpack_from(stored, at))
    body, begin = BOMBS[method], at + key[4]
    packed = method.encode() + len(body).to_bytes(3, "little") + claim.to_bytes(3, "little") + body
    packed = packed[: key[0] - key[4]]
    key[2] = min(claim * blocks, 2**31 - 1)
    stored[at : at + Tree.KEY.size] = Tree.KEY.pack(*key)
    stored[begin : begin + len(packed)] = packed
    bomb = path.with_name("bomb.root")
    bomb.write_bytes(stored)
    with closing(open_bytes(bomb.as_uri(), allow=("file://",))) as data:
        source = open_source(data, "T")
        with pytest.raises((CorruptFile, LimitExceeded), match=text):
            source.read(("s",), 0, 50)
        assert source.read(("x",), 0, 50)["x"].to_list() == list(range(50))


def test_many_baskets_unpack_together_to_no_more_than_one_reading_may_take(texts, monkeypatch):
    with uproot.recreate(texts[0].with_name("many.root"), compression=uproot.ZSTD(1)) as made:
        tree = made.mktree("T", {"s": "string"})
        for _ in range(8):
            tree.extend({"s": ["a" * 10_000] * 10})
    with closing(open_bytes(texts[0].with_name("many.root").as_uri(), allow=("file://",))) as data:
        source = open_source(data, "T")
        monkeypatch.setattr("doma.columns.source_uproot.ROOM", 300_000)
        assert len(source.read(("s",), 0, 20)["s"]) == len(source.read(("s",), 20, 40)["s"]) == 20
        with pytest.raises(LimitExceeded, match="more than 300000 bytes"):
            source.read(("s",), 0, 80)
