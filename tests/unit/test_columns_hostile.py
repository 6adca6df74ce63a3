"""Crafted ntuples, all checksums right: a lie is told with file and place, soon and in little memory."""

import re
import struct
import zlib

import numpy as np
import pytest
import xxhash

from tests.unit.columns_hostile import (
    COUNTS,
    FOOTER,
    HEADER,
    PAGELIST,
    N,
    Ntuple,
    check,
    endless,
    outcomes,
    swapped,
)

ALL, NONE = ("r", "x", "y", "z"), ()


def flipped(kind, place):
    """A lie: another byte in one of the envelopes, which is sealed already."""

    def lie(data, of):
        return data[:place] + bytes([data[place] ^ 8]) + data[place:][1:] if of == kind else data

    return lie


def envelopes(made):
    size = len(made.crafted())
    found = {}
    for name, kind in (("header", HEADER), ("footer", FOOTER), ("page list", PAGELIST)):
        found |= {
            f"{name} of another size": (made.crafted(lie=flipped(kind, 3)), ALL, f"{name} has another size"),
            f"{name} of another kind": (made.crafted(lie=flipped(kind, 0)), ALL, f"{name} has another size"),
            f"{name} that changed": (made.crafted(lie=flipped(kind, 20)), ALL, f"the checksum of its {name}"),
        }
    for name, link in {
        "behind the end": (324, 324, size),
        "far behind the end": (324, 324, 2**64 - 1),
        "of nothing": (0, 0, 0),
        "of two gigabytes": (2**28, 2**31 - 1, 8),
    }.items():
        found[f"page list {name}"] = made.crafted(link=link), ALL, "its page list of .* is not in the file"
    for name, (anchor, text) in {
        "header behind the end": ({"fSeekHeader": 2**64 - 1}, "header of .* is not in the file"),
        "header of 2^40": ({"fLenHeader": 1 << 40}, "header has 1099511627776 bytes, at most"),
        "footer of 2^63": ({"fNBytesFooter": 1 << 63, "fLenFooter": 1 << 63}, "footer has .* bytes, at most"),
        "footer in the header's place": ({"fSeekFooter": 8}, "footer has another size"),
    }.items():
        found[name] = made.crafted(anchor=anchor), ALL, text
    found["page list of 2^62"] = made.crafted(link=(1 << 62, 324, size)), ALL, "page list has .* at most"
    return found


def pages(made):
    size, here = len(made.crafted()), len(made.stored)
    bomb = zlib.compress(bytes(1 << 24))
    block = b"ZL\x08" + len(bomb).to_bytes(3, "little") + (8 * N).to_bytes(3, "little") + bomb
    # The zeros at the end of a stream may be cut: what comes before them inflates all the same.
    short = b"ZL\x08" + (790).to_bytes(3, "little") + (8 * N).to_bytes(3, "little") + bomb[:790]
    wide = 8 * N
    _, long, start = made.pages["r", "a"]
    stored = made.stored[start : start + long]
    whole = stored + xxhash.xxh3_64(stored).digest()[::-1]
    wrong = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    return {
        "page of 2147483647": (made.page("y", 2**31 - 1), "y", "2147483647 values, too many"),
        "page of minus 2147483648": (made.page("y", -(2**31)), "y", "2147483648 values, too many"),
        "page of 99": (made.page("y", 99), "y", "a page is larger than its values"),
        "page of 101": (made.page("y", 101), "y", "101 values or lists for 100 entries"),
        "page of 0": (made.page("y", 0, 0), "y", "0 values or lists for 100 entries"),
        "page behind the end": (made.page("y", start=size), "y", "behind the end"),
        "page far behind the end": (made.page("y", start=2**64 - 1), "y", "behind the end"),
        "its checksum behind the end": (made.page("y", -N, start=size - wide), "y", "behind the end"),
        "a wrong checksum": (
            made.page("y", -N, extra=bytes(wide + 8), start=here),
            "y",
            "checksum of a page",
        ),
        "page of two gigabytes": (made.page("y", size=2**31 - 1), "y", "behind the end"),
        "page larger than its values": (made.page("x", size=401), "x", "larger than its values"),
        "page without bytes": (made.page("y", size=0), "y", "unpacks to 0 of 800 bytes"),
        "page of noise": (made.page("x", start=8), "x", "x' from entry 0: "),
        "page that inflates": (made.page("y", size=799, start=here, extra=short), "y", "y' from entry 0: "),
        "page larger than its values, by uproot": (
            made.page(("r", "a"), size=len(block), start=here, extra=block),
            "r",
            f"the page at byte {here} is larger than its values",
        ),
        "page with a checksum, by uproot": (
            made.page(("r", "a"), -N, start=here, extra=whole),
            NONE,
            "",
        ),
        "page with a wrong checksum, by uproot": (
            made.page(("r", "a"), -N, start=here, extra=wrong),
            "r",
            f"the checksum of the page at byte {here} differs",
        ),
        "page that inflates, by uproot": (
            made.page(("r", "a"), size=799, start=here, extra=short),
            "r",
            "a block of a basket has another size than it says",
        ),
    }


def lists(made):
    ends = np.cumsum(COUNTS)
    late = np.where(np.arange(N) == 50, 2**63, 0).astype("<u8")

    def split(values):
        return np.frombuffer(np.asarray(values, "<u8").view("u1").reshape(N, 8).T.tobytes(), "<u8")

    return {
        "ends as they were": (made.ends(ends), NONE, ""),
        "ends as they were, packed": (made.ends(split(COUNTS), 0x1B), NONE, ""),
        "lists of 2147483647": (made.page("z ends", 2**31 - 1), "z", "2147483647 values, too many"),
        "members of 2147483647": (made.page("z", 2**31 - 1), "z", "2147483647 values, too many"),
        "members one less": (made.page("z", made.pages["z"][0] - 1), "z", "z' from entry 0: "),
        "members one more": (made.page("z", made.pages["z"][0] + 1), "z", "z' from entry 0: "),
        "ends backwards": (made.ends(ends[::-1]), "z", "the ends of lists are not in order"),
        "ends beyond": (made.ends(ends + 1), "z", f"{ends[-1]} values where {ends[-1] + 1} belong"),
        "ends too large": (made.ends(late), "z", "not in order"),
        "all ends too large": (made.ends(np.full(N, 2**64 - 1)), "z", "not in order"),
        "ends that overflow": (made.ends(split(np.full(N, 1 << 63)), 0x1B), "z", "not in order"),
    }


def clusters(made):
    def summary(first, count):
        edit = swapped(struct.pack("<QQ", 0, N), struct.pack("<QQ", first, count))
        return made.crafted(pagelist=edit)

    return {
        "cluster of 2^55": (summary(0, 1 << 55), ALL, "100 values or lists for|less than size of form"),
        "cluster of 99": (summary(0, 99), ALL, "100 values or lists for 99 entries|^$"),
        "cluster of 0": (summary(0, 0), NONE, None),
        "cluster from 1": (summary(1, N), NONE, ""),
        "cluster from 2^64": (summary(2**64 - 1, N), ALL, "not readable as ROOT"),
        "cluster with flags": (summary(0, N | 255 << 56), ALL, "not readable as ROOT"),
        "summaries without end": (
            made.crafted(pagelist=lambda p: p[:24] + b"\xff" * 4 + bytes(8) + p[36:]),
            ALL,
            "a list in its description is damaged",
        ),
    }


def schemas(made):
    def column(type_, bits=64, field=4):
        return made.crafted(
            header=swapped(struct.pack("<HHI", 13, 64, 4), struct.pack("<HHI", type_, bits, field))
        )

    def circle(header):
        return made.parent(4, 3)(made.parent(3, 4)(header))

    return {
        "fields without end": (made.crafted(header=endless), ALL, "a list in its description is damaged"),
        "field in itself": (made.crafted(header=circle), ALL, "its field 3 lies in itself"),
        "field in nothing": (
            made.crafted(header=made.parent(3, 1000)),
            ALL,
            "refers to a field that it does",
        ),
        "deep fields": (made.crafted(header=lambda _: made.nested(10_000)), ALL, "more than 100 others"),
        "column of other bits": (column(13, 16), ALL, "column 3 of type 0xd has values of 16 bits"),
        "column of a narrow type": (column(12, 32), "y", "a page is larger than its values"),
        "column of a list's type": (column(15), "y", None),
        "column of no type": (column(99), "y", "not readable as ROOT"),
        "column of another field": (column(13, field=1000), "y", "not readable as ROOT"),
    }


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """What is wrong with each of many files; and what comes of it."""
    folder = tmp_path_factory.mktemp("hostile")
    made = Ntuple(folder / "base")
    files = {"as it was": (made.crafted(), NONE, "")}
    for group in (envelopes, pages, lists, clusters, schemas):
        files |= group(made)
    return files, outcomes(folder, [data for data, _, _ in files.values()], ALL)


def test_a_crafted_ntuple_gives_right_values_or_one_error_that_names_it(read):
    check(list(read[0]), read[1])


def test_a_lie_in_an_ntuple_is_told_where_it_is_and_spares_other_fields(read):
    files, found = read
    for number, (what, (_, names, text)) in enumerate(files.items()):
        for name in ALL:
            word, message = found[number, name]
            if name not in names and text is not None:
                assert word == "same", (what, name)
            elif text is not None:
                assert re.search(text, message), (what, name, word, message)
