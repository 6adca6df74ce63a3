"""Crafted ROOT files that lie, with right checksums; a child of bounded time and memory reads them."""

import json
import re
import struct
import subprocess
import sys

import awkward as ak
import numpy as np
import uproot
import xxhash
from hypothesis import strategies as st

ANCHOR = struct.Struct(">HHHHQQQQQQQ")
HEADER, FOOTER, PAGELIST = 1, 2, 3
N = 100
COUNTS = np.random.default_rng(1).poisson(2, N)
VALUES = {
    "x": np.arange(N, dtype="i4"),
    "y": np.random.default_rng(2).normal(size=N),
    "z": ak.unflatten(np.arange(COUNTS.sum(), dtype="f4"), COUNTS),
}
ORDER = (("r", "a"), ("r", "b"), "x", "y", "z ends", "z")
"""Columns of the ntuple."""
PROGRAM = """
import json, resource, signal, sys
from pathlib import Path
import awkward as ak
import uproot
from doma.columns.remote import open_bytes
from doma.columns.source import open_source
from doma.core.errors import DomaError
import doma.columns.source_ntuple, doma.columns.source_uproot
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (size, size))


def read(source, name):
    if isinstance(source, DomaError):
        raise source
    return str([x for w in source.windows((name,), 1 << 20) for x in ak.to_list(w.column(name))])


def opened(data):
    try:
        return open_source(data, "T")
    except DomaError as e:
        return e


def reference(file, name):
    with uproot.open({file: None}, object_cache=None, array_cache=None) as whole:
        return str(ak.to_list(whole["T"][name].array()))


expected = {}
for line in sys.stdin:
    file = Path(line.strip())
    signal.setitimer(signal.ITIMER_PROF, 15)
    data = open_bytes(file.as_uri(), allow=("file://",))
    source = opened(data)
    for name in sys.argv[1:]:
        signal.setitimer(signal.ITIMER_PROF, 15)
        word = text = ""
        try:
            got = read(source, name)
            word = "same" if got == expected.setdefault(name, got) else "changed"
            if word == "changed" and got == reference(file, name):
                word = "referred"
        except DomaError as e:
            word, text = type(e).__name__, e.message
        except Exception as e:
            word, text = "unsure" if word else "wrong", type(e).__name__
        print(json.dumps([int(file.stem), name, word, text]), flush=True)
    data.close()
"""


def sealed(payload, kind):
    """An envelope with its size and checksum."""
    out = struct.pack("<Q", (len(payload) + 8) << 16 | kind) + payload[8:]
    return out + struct.pack("<Q", xxhash.xxh3_64_intdigest(out))


def as_is(payload, kind=0):
    return payload


def frame(members):
    """A list frame."""
    body = b"".join(members)
    return struct.pack("<qI", -(len(body) + 12), len(members)) + body


def swapped(old, new):
    """An edit that replaces bytes which occur once."""

    def edit(payload):
        assert payload.count(old) == 1
        return payload.replace(old, new)

    return edit


class Ntuple:
    """A small ntuple whose description can be replaced.

    Its pages have no checksums: uproot writes none.
    """

    def __init__(self, path):
        values = VALUES | {"r": ak.zip({"a": np.arange(N), "b": np.arange(N) / 2})}
        with uproot.recreate(path) as made:
            made.mkrntuple("T", values)
        self.stored = path.read_bytes()
        with uproot.open(path) as file:
            model = file["T"]
            link = model.footer.cluster_group_records[0].page_list_link
            self.header = bytes(model.header and model._header_chunk.raw_data)[:-8]
            self.footer = bytes(model._footer_chunk.raw_data)[:-8]
            self.pagelist = bytes(model.read_locator(link.locator, link.env_uncomp_size)[0].raw_data)[:-8]
            self.link = struct.pack("<QiQ", link.env_uncomp_size, link.locator.num_bytes, link.locator.offset)
            self.anchor = dict(model._members)
            pages = [c.pages[0] for c in model.page_link_list[0]]
        self.pages = {
            name: (p.num_elements, p.locator.num_bytes, p.locator.offset)
            for name, p in zip(ORDER, pages, strict=True)
        }

    def crafted(
        self,
        header=as_is,
        pagelist=as_is,
        footer=as_is,
        lie=as_is,
        link=None,
        anchor=None,
        extra=b"",
        size=None,
    ):
        """The file with edited envelopes, sealed anew; ``lie`` edits what is sealed."""
        out = bytearray(self.stored) + extra

        def put(data):
            out.extend(data)
            return len(out) - len(data), len(data)

        head = lie(sealed(header(self.header), HEADER), HEADER)
        check = head[-8:]
        start, stored = put(head)
        pages = pagelist(self.pagelist)
        at, long = put(lie(sealed(pages[:8] + check + pages[16:], PAGELIST), PAGELIST))
        foot = self.footer.replace(self.link, struct.pack("<QiQ", *(link or (long, long, at))))
        foot = footer(foot[:16] + check + foot[24:])
        end, length = put(lie(sealed(foot, FOOTER), FOOTER))
        told = {"fSeekHeader": start, "fNBytesHeader": stored, "fLenHeader": stored}
        told |= {"fSeekFooter": end, "fNBytesFooter": length, "fLenFooter": length}
        new = ANCHOR.pack(*(self.anchor | told | (anchor or {})).values())
        place = out.index(ANCHOR.pack(*self.anchor.values()))
        out[place : place + len(new) + 8] = new + struct.pack(">Q", xxhash.xxh3_64_intdigest(new))
        return bytes(out)

    def page(self, name, count=None, size=None, start=None, **more):
        """The file with another entry for the page of a column."""
        held = self.pages[name]
        new = tuple(h if n is None else n for h, n in zip(held, (count, size, start), strict=True))
        edit = swapped(struct.pack("<iiQ", *held), struct.pack("<iiQ", *new))
        return self.crafted(pagelist=edit, **more)

    def ends(self, values, kind=None):
        """The file with other ends of lists, as they are stored."""
        header = swapped(struct.pack("<HHI", 15, 64, 5), struct.pack("<HHI", kind or 15, 64, 5))
        extra = np.array(values, "<u8").tobytes()
        return self.page("z ends", size=8 * N, start=len(self.stored), extra=extra, header=header)

    def parent(self, field, new):
        """The file with another parent of a field that is its own."""
        at = [i for i in range(len(self.header)) if self.header[i : i + 8] == struct.pack("<II", 0, field)]
        place = next(i + 4 for i in at if self.header[i + 8 : i + 10] in (b"\0\0", b"\1\0"))

        def edit(header):
            return header[:place] + struct.pack("<I", new) + header[place + 4 :]

        return edit

    def nested(self, depth):
        """A header with fields in fields."""
        at = described(self.header)
        size, _ = struct.unpack_from("<qI", self.header, at)
        record = struct.Struct("<qIIIHH")
        names = b"\1\0\0\0f" + bytes(12)
        members = [record.pack(41, 0, 0, max(0, i - 1), 2, 0) + names for i in range(depth)]
        assert all(len(m) == 41 for m in members)
        return self.header[:at] + frame(members) + self.header[at - size :]


def endless(header):
    """A header with four thousand million fields, none of which takes a byte."""
    at = described(header)
    return header[: at + 8] + b"\xff" * 4 + bytes(8) + header[at + 20 :]


def described(header):
    """Where the fields begin."""
    at = 16
    for _ in range(3):
        at += 4 + struct.unpack_from("<I", header, at)[0]
    return at


class Reader:
    """A child that reads columns of files, with a limit on time and memory; it is replaced when it dies."""

    def __init__(self, folder, names):
        self.folder, self.names, self.asked, self.whole = folder, names, 0, None
        self.errors = (folder / "errors").open("w+")
        self.start()

    def start(self):
        command = [sys.executable, "-W", "error", "-c", PROGRAM, *self.names]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def ask(self, data):
        """By number of the file and name of column what comes of it, and an error's message.

        ``same`` as the first file gives, ``referred``: other values, and uproot reads the same ones.
        """
        if self.whole is None:
            self.whole = data
        place = self.folder / f"{self.asked:04}.root"
        self.asked += 1
        place.write_bytes(data)
        self.child.stdin.write(f"{place}\n")
        self.child.stdin.flush()
        lines = [json.loads(self.child.stdout.readline() or "null") for _ in self.names]
        place.unlink()
        if None in lines:
            code = self.end()
            self.start()
            self.ask(self.whole)
            raise AssertionError(f"the child ended with {code}")
        return {(number, name): (word, text) for number, name, word, text in lines}

    def end(self):
        self.child.stdin.close()
        self.child.stdout.close()
        return self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()
        self.errors.seek(0)
        said = self.errors.read()
        self.errors.close()
        assert error[0] or not said, said


def outcomes(folder, files, names):
    """What comes of each file."""
    found = {}
    with Reader(folder, names) as reader:
        for data in files:
            found |= reader.ask(data)
    return found


def changed(data, edits):
    """Bytes with some of them written over, put in between or taken out."""
    out = bytearray(data)
    for kind, place, new in edits:
        at = place % (len(out) + 1)
        match kind:
            case "write":
                out[at : at + len(new)] = new[: len(out) - at]
            case "insert":
                out[at:at] = new
            case _:
                del out[at : at + len(new)]
    return bytes(out)


def tried(reader, made, part, edits):
    """See that an edited file gives right values or an error; of ntuples a part may be sealed anew."""
    if part == "file":
        data = changed(made.crafted(), edits)
    else:
        data = made.crafted(**{part: lambda payload: payload[:8] + changed(payload[8:], edits)})
    found = reader.ask(data)
    # No checksum covers all of a file, and where uproot stumbles elsewhere nobody can say what is right.
    sure = {k: v for k, v in found.items() if part != "file" or v[0] != "unsure"}
    check({number: (part, edits) for number, _ in found}, sure)


def check(files, found):
    """Right values, or one error that names the file and more."""
    for (number, name), (word, text) in found.items():
        what = files[number], name, word, text
        if word not in ("same", "referred"):
            assert word in ("CorruptFile", "LimitExceeded", "UnknownColumn", "BadQuery"), what
            assert re.match(rf"file:///\S+/{number:04}\.root(, tree 'T'.*)?: .{{10}}", text, re.DOTALL), what


EDITS = st.lists(
    st.tuples(
        st.sampled_from(("write", "insert", "cut")),
        st.integers(0, 1 << 20),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((b"\xff" * 4, b"\x7f\xff\xff\xff"))),
    ),
    min_size=1,
    max_size=3,
)
PARTS = st.sampled_from(("file", "header", "pagelist", "footer"))


class Tree:
    """A small tree of uncompressed baskets, whose headers can be replaced."""

    KEY, BASKET = struct.Struct(">ihiIhh"), struct.Struct(">Hiiii")

    def __init__(self, path):
        with uproot.recreate(path, compression=None) as made:
            tree = made.mktree("T", {"x": "i4", "y": "f8", "z": "var * float32"})
            tree.extend(VALUES)
        self.stored = path.read_bytes()
        with uproot.open(path) as file:
            places = {b.name: int(b.member("fBasketSeek")[0]) for b in file["T"].branches}
        self.places = places
        self.headers = {n: self.KEY.unpack_from(self.stored, at)[4] for n, at in places.items()}
        self.last = {n: self.BASKET.unpack_from(self.stored, at)[4] for n, at in self._tails().items()}

    def _tails(self):
        return {n: at + self.headers[n] - self.BASKET.size - 1 for n, at in self.places.items()}

    def crafted(self, edits=()):
        """The file with other numbers: (place, bytes)."""
        out = bytearray(self.stored)
        for place, data in edits:
            out[place : place + len(data)] = data
        return bytes(out)

    def key(self, name, **told):
        """Another head of a basket."""
        fields = dict(zip(("bytes", "version", "size", "date", "header", "cycle"),
                          self.KEY.unpack_from(self.stored, self.places[name]), strict=True))  # fmt: skip
        return self.crafted([(self.places[name], self.KEY.pack(*(fields | told).values()))])

    def basket(self, name, **told):
        """Another tail of a basket's header."""
        place = self._tails()[name]
        fields = dict(zip(("version", "buffer", "most", "entries", "last"),
                          self.BASKET.unpack_from(self.stored, place), strict=True))  # fmt: skip
        return self.crafted([(place, self.BASKET.pack(*(fields | told).values()))])

    def offsets(self, edit):
        """Other offsets of the lists."""
        place = self.places["z"] + self.last["z"] + 4
        found = np.frombuffer(self.stored, ">i4", N, place).astype("i8")
        edit(found)
        return self.crafted([(place, found.astype(">i4").tobytes())])

    def entries(self, number):
        """Another number of entries of the tree."""
        told = (
            struct.pack(">d", 1.0) + struct.pack(">i", 0) + struct.pack(">i", 25)
        )  # fWeight and what follows
        return self.crafted([(self.stored.index(told) - 40, struct.pack(">q", number))])

    def value(self, name, number, data):
        """Another value of a branch."""
        return self.crafted([(self.places[name] + self.headers[name] + number * len(data), data)])
