"""Macaroons and other programs: curl, davix and gfal2 use them, libmacaroons reads and narrows them."""

import json
import textwrap
from pathlib import Path

import pytest

from tests.clients.conftest import DEBIAN_PYTHON, Spot, need

pytestmark = pytest.mark.client

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libmacaroons.so.0")

NARROW = """
    import ctypes, sys
    lib = ctypes.CDLL(sys.argv[1])
    for name in ("macaroon_create", "macaroon_deserialize", "macaroon_add_first_party_caveat"):
        getattr(lib, name).restype = ctypes.c_void_p
    size = ctypes.c_size_t
    for name in ("macaroon_serialize_size_hint",):
        getattr(lib, name).restype = size
    wrong = ctypes.c_int(0)
    def first(text):
        m = lib.macaroon_deserialize(text.encode(), ctypes.byref(wrong))
        assert m, wrong.value
        return ctypes.c_void_p(m)
    def narrowed(m, caveat):
        data = caveat.encode()
        m = lib.macaroon_add_first_party_caveat(m, data, size(len(data)), ctypes.byref(wrong))
        assert m, wrong.value
        return ctypes.c_void_p(m)
    def text(m):
        room = lib.macaroon_serialize_size_hint(m)
        buffer = ctypes.create_string_buffer(room)
        assert lib.macaroon_serialize(m, buffer, size(room), ctypes.byref(wrong)) == 0, wrong.value
        return buffer.value.decode()
    if sys.argv[2] == "create":
        key, identifier = b"k" * 32, b"identifier"
        m = lib.macaroon_create(b"se", size(2), key, size(32), identifier, size(10), ctypes.byref(wrong))
        print(text(narrowed(ctypes.c_void_p(m), "path:/a")))
    else:
        print(text(narrowed(first(sys.argv[2]), sys.argv[3])))
"""


def library(spot: Spot, *words: str) -> str:
    """What libmacaroons makes of it."""
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is not installed (Debian: libmacaroons0)")
    said = spot.grid.run(DEBIAN_PYTHON, "-c", textwrap.dedent(NARROW), LIBRARY, *words)
    assert said.code == 0, said.why
    return said.out.strip()


def by_curl(spot: Spot, path: str, activities: str) -> str:
    need("curl", package="curl")
    said = spot.grid.run(
        "curl", "-sS", "--fail", "--cacert", spot.grid.ca, "-H", spot.grid.bearer(), "-H",
        "Content-Type: application/macaroon-request", "-d",
        json.dumps({"caveats": [f"activity:{activities}"], "validity": "PT10M"}), spot.ours(path),
    )  # fmt: skip
    assert said.code == 0, said.why
    return str(json.loads(said.out)["macaroon"])


def get(spot: Spot, path: str, macaroon: str) -> int:
    said = spot.grid.run(
        "curl", "-sS", "--cacert", spot.grid.ca, "-o", "/dev/null", "-w", "%{http_code}", "-H",
        f"Authorization: Bearer {macaroon}", spot.ours(path), token=None,
    )  # fmt: skip
    return int(said.out)


def test_libmacaroons_makes_the_same_packets_from_the_same_secret(spot):
    from doma.auth.macaroon import parsed, serialised

    ours, theirs = serialised("se", b"identifier", [b"path:/a"], b"k" * 32), library(spot, "create")
    assert parsed(theirs) == parsed(ours)
    assert theirs.rstrip("=") == ours


def test_libmacaroons_narrows_one_of_ours_and_we_honour_it(spot):
    spot.put("a/x", b"1")
    spot.put("b/x", b"1")
    whole = by_curl(spot, "", "DOWNLOAD,LIST")
    narrow = library(spot, whole, f"path:/site/{spot.name}/a")
    assert [get(spot, path, whole) for path in ("a/x", "b/x")] == [200, 200]
    assert [get(spot, path, narrow) for path in ("a/x", "b/x")] == [200, 403]
    assert get(spot, "a/x", library(spot, whole, "ip:127.0.0.1")) == 401
    assert get(spot, "a/x", library(spot, whole, "before:2020-01-01T00:00:00Z")) == 401


def test_davix_reads_and_writes_with_one(spot):
    need("davix-get", "davix-put", package="davix")
    spot.put("x", b"hello")
    macaroon = by_curl(spot, "", "DOWNLOAD,UPLOAD,LIST")
    header = ("--capath", str(Path(spot.grid.ca).parent), "-k", "-H", f"Authorization: Bearer {macaroon}")
    said = spot.grid.run("davix-get", *header, spot.ours("x"), token=None)
    assert said.out == "hello", said.why
    said = spot.grid.run("davix-put", *header, spot.file("f", b"new"), spot.ours("d/y"), token=None)
    assert said.code == 0, said.why
    assert spot.get("d/y") == b"new"
    assert spot.grid.run("davix-rm", *header, spot.ours("d/y"), token=None).code != 0
    assert spot.get("d/y") == b"new"


GFAL = """
    import gfal2, sys
    url, token, where = sys.argv[1:4]
    context = gfal2.creat_context()
    context.set_opt_boolean("HTTP PLUGIN", "INSECURE", True)
    macaroon = context.token_retrieve(f"{url}?authz={token}", "", 30, ["DOWNLOAD", "LIST"])
    context.cred_set(url, context.cred_new("BEARER", macaroon))
    file = context.open(where, "r")
    print(macaroon, file.read(100))
"""


def test_gfal2_asks_for_one_and_reads_with_it(spot):
    """Without X.509 gfal2 proves itself by the token in the URL; its OAuth form sends no credential then."""
    spot.put("x", b"hello")
    url = spot.ours().replace("https://", "davs://")
    said = spot.grid.run(
        DEBIAN_PYTHON, "-c", textwrap.dedent(GFAL), url, spot.grid.system.token(), f"{url}/x", token=None
    )
    if "No module named 'gfal2'" in said.err:
        pytest.skip("gfal2's Python module is not installed (Debian: python3-gfal2 gfal2-plugin-http)")
    assert said.code == 0, said.why
    macaroon, content = said.out.split()
    assert content == "hello"
    assert get(spot, "x", macaroon) == 200
