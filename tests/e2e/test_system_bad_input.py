"""Bad input over real sockets: one clear error with its thing, place and remedy, and nothing else happens."""

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doma.core.errors import CorruptFile, InvalidToken, NotFound, UnknownColumn
from doma.facility.sample import sample

MUONS = sample("nano_dimuon.root").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def inputs(shared: Any) -> None:
    """A good file, one of no bytes and one of something else."""
    shared.put("/site/bad/good.root", MUONS)
    shared.put("/site/bad/empty.root", b"")
    shared.put("/site/bad/text.root", b"<html>no data</html>\n" * 100)


@pytest.fixture(autouse=True)
def unharmed(shared: Any) -> Iterator[None]:
    """After every test: the server still serves, has logged no traceback and holds no half file."""
    before = visible(shared)
    yield
    assert "Traceback" not in shared.log
    assert shared.ask("GET", "/site/bad/good.root").content == MUONS
    assert visible(shared) == before
    assert temporaries(shared) == []


def visible(system: Any) -> dict[str, int]:
    site = system.home / "site"
    return {str(p): p.stat().st_size for p in site.rglob("*") if p.is_file() and ".doma" not in p.parts}


def temporaries(system: Any) -> list[Path]:
    """What is left of writes and deletes that did not end."""
    inner = system.home / "site" / ".doma"
    return [path for name in ("new", "gone") for path in (inner / name).rglob("*")]


def told(answer: Any) -> tuple[int, str, str]:
    """Status, code and text of a problem answer; the same in its JSON and its text form."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    assert answer.headers["x-error-code"] == body["code"]
    assert "\n" not in body["detail"]
    return answer.status_code, body["code"], body["detail"]


def test_a_missing_file_is_named_by_every_door(shared):
    for name in ("site", "cache", "data"):
        status, code, text = told(
            shared.ask("GET", f"/{name}/bad/none.root", headers={"Accept": "application/json"})
        )
        assert (status, code) == (404, "not-found")
        assert f"/{name}/bad/none.root" in text
    with pytest.raises(NotFound, match=r"/bad/none\.root"):
        shared.scan("/site/bad/none.root", ("Muon_pt",))
    with pytest.raises(CorruptFile, match=r"/site/bad/none\.root.* 404 .*no such file"):
        shared.deliver(shared.run["https"] + "/site/bad/none.root", ("Muon_pt",))


def test_a_missing_endpoint_is_answered_with_those_there_are(shared):
    for method in ("GET", "PUT", "PROPFIND", "DELETE"):
        status, code, text = told(shared.ask(method, "/sit/x", headers={"Accept": "application/json"}))
        assert (status, code) == (404, "not-found")
        assert "'sit'" in text
        assert "cache, data, results, site" in text
    with pytest.raises(NotFound, match=r"'sit'.*cache, data, site"):
        shared.scan("/sit/bad/good.root", ("Muon_pt",))


@pytest.mark.parametrize("road", ["delivered", "scanned"])
@pytest.mark.parametrize(
    ("tree", "column", "wrong", "near"),
    [("Event", "Muon_pt", "Event", "Events"), ("Events", "Muon_ptt", "Muon_ptt", "Muon_pt")],
    ids=["tree", "branch"],
)
def test_a_missing_tree_or_branch_is_refused_with_the_nearest_names(shared, road, tree, column, wrong, near):
    place = (shared.run["https"] if road == "delivered" else "") + "/site/bad/good.root"
    ask = shared.deliver if road == "delivered" else shared.scan
    with pytest.raises(UnknownColumn) as caught:
        ask(place, (column,), tree)
    assert (caught.value.http, caught.value.exit) == (400, 65)
    text = caught.value.message
    assert f"'{wrong}'" in text
    assert near in text.replace(f"'{wrong}'", "")
    assert "/site/bad/good.root" in text or "query/columns/0" in text


def test_a_token_without_the_scope_is_told_which_one_would_do(shared):
    token = shared.token("storage.read:/bad/other")
    answer = shared.ask("GET", "/site/bad/good.root", token, {"Accept": "application/json"})
    status, code, text = told(answer)
    assert (status, code) == (403, "forbidden")
    assert "storage.read:/bad/good.root" in text
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert 'scope="storage.read:/bad/good.root"' in answer.headers["www-authenticate"]
    answer = shared.ask("PUT", "/site/bad/new", token, content=b"x")
    assert (answer.status_code, answer.headers["x-error-code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"age": 7200}, "expired"),
        ({"audience": ("https://else.example",)}, "aud is https://else.example, this is https://127.0.0.1:"),
    ],
    ids=["expired", "audience"],
)
def test_a_token_that_is_not_valid_here_is_refused_by_every_service(shared, claims, words):
    token = shared.token(**claims)
    paths = ("/site/bad/good.root", "/cache/bad/good.root", "/data/kept.txt", "/events", "/servicex")
    for path in (*paths, "/api/v1/cache/stats", "/servicex/transformation", "/results/x"):
        answer = shared.ask("GET", path, token, {"Accept": "application/json"})
        status, code, text = told(answer)
        assert (status, code) == (401, "invalid-token"), path
        assert words in text
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert token.rpartition(".")[2] not in answer.text
    assert shared.ask("PUT", "/site/bad/new", token, content=b"x").status_code == 401
    assert token.rpartition(".")[2] not in shared.log
    from doma.scan.client import scan

    with pytest.raises(InvalidToken, match=words):
        scan(
            shared.run["services"]["flight"], "/site/bad/good.root", token, shared.run["ca_file"]
        ).count_rows()


def test_without_a_token_only_what_is_public_answers(shared):
    for path in (
        "/site/bad/good.root",
        "/cache/bad/good.root",
        "/events",
        "/servicex",
        "/api/v1/cache/stats",
    ):
        answer = shared.ask("GET", path, None, {"Accept": "application/json"})
        assert told(answer)[:2] == (401, "unauthenticated"), path
        assert answer.headers["www-authenticate"].startswith('Bearer realm="127.0.0.1"')
    for path in ("/health", "/doma/jwks", "/doma/.well-known/openid-configuration"):
        assert shared.ask("GET", path, None).status_code == 200, path


@pytest.mark.parametrize("name", ["site", "cache"])
def test_a_range_beyond_the_end_names_the_size_and_one_that_is_none_is_ignored(shared, name):
    path = f"/{name}/bad/good.root"
    answer = shared.ask("GET", path, headers={"Range": f"bytes={len(MUONS)}-"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(MUONS)}"
    assert str(len(MUONS)) in answer.text
    for odd in ("bytes=abc", "bytes=5-1", "lines=1-2", "bytes=--1"):
        answer = shared.ask("GET", path, headers={"Range": odd})
        assert (answer.status_code, answer.content == MUONS) == (200, True), odd


@pytest.mark.parametrize(
    "target",
    [
        "/site/../lock", "/site/bad/../../token", "/site/%2e%2e/token", "/site/.%2e/token",
        "/site/%2E./token", "/site/bad%2f..%2f..%2ftoken",
        "/site/..%2ftoken", "/site/%2e%2e%2ftoken", "/../token", "/%2e%2e/token",
        "/site/%c0%ae%c0%ae/token", "/site/x%00y", "/data/../home/token",
        "/site/bad/..", "/site/%2e%2e",
    ],
)  # fmt: skip
def test_a_path_that_climbs_is_refused_before_anything_is_touched(shared, target):
    secret = (shared.home / "token").read_text().strip()
    for method in ("GET", "PUT", "DELETE", "PROPFIND", "MKCOL", "HEAD"):
        status, body = shared.raw(method, target, {"Content-Length": "0"} if method == "PUT" else None)
        assert status == 400, (method, body)
        assert secret not in body
    for header in ("Destination",):
        for method in ("COPY", "MOVE"):
            status, body = shared.raw(method, "/site/bad/good.root", {header: target, "Overwrite": "T"})
            assert status == 400, (method, body)


@pytest.mark.parametrize(
    "target",
    [
        "/site/%252e%252e/token",
        "/site/%u002e%u002e/token",
        "/site/..%5ctoken",
        "/site/..;/token",
        "/site/.../x",
    ],
)
def test_names_that_only_look_like_climbing_are_plain_names(shared, target):
    status, body = shared.raw("GET", target)
    assert status == 404
    assert "no such file" in body


@pytest.mark.parametrize("name", ["empty", "text"])
def test_a_file_that_is_no_data_is_served_as_it_is_and_refused_by_name_where_it_is_read(shared, name):
    kept = (shared.home / "site" / "bad" / f"{name}.root").read_bytes()
    why = "empty" if name == "empty" else "neither a"
    for endpoint in ("site", "cache", "cache"):
        answer = shared.ask("GET", f"/{endpoint}/bad/{name}.root")
        assert (answer.status_code, answer.content) == (200, kept)
        assert answer.headers["content-length"] == str(len(kept))
    url = f"{shared.run['https']}/site/bad/{name}.root"
    for ask in (
        lambda: shared.deliver(url, ("Muon_pt",)),
        lambda: shared.deliver(url.replace("/site/", "/cache/"), ("Muon_pt",)),
        lambda: shared.scan(f"/site/bad/{name}.root", ("Muon_pt",)),
        lambda: shared.scan(f"/cache/bad/{name}.root", ("Muon_pt",)),
    ):
        with pytest.raises(CorruptFile, match=f"bad/{name}.root.*{why}") as caught:
            ask()
        assert (caught.value.http, caught.value.exit) == (422, 65)


def test_an_upload_of_wrong_size_or_checksum_leaves_nothing(shared):
    wrong = {"Digest": "adler32=00000001", "Accept": "application/json"}
    answer = shared.ask("PUT", "/site/bad/wrong", headers=wrong, content=b"some bytes")
    status, code, text = told(answer)
    assert (status, code) == (400, "checksum-mismatch")
    assert "adler32 is " in text
    assert "expected 00000001" in text
    host, port = shared.run["https"].removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        shared.access.tls().wrap_socket(plain, server_hostname=host) as tls,
    ):
        head = f"PUT /site/bad/short HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shared.token()}\r\n"
        tls.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + bytes(500_000))
        tls.unwrap()
    assert shared.ask("GET", "/site/bad/wrong").status_code == 404
    assert shared.ask("GET", "/site/bad/short").status_code == 404


def test_questions_that_make_no_sense_are_answered_as_such(shared):
    def submit(**body: Any) -> tuple[int, str, str]:
        return told(shared.ask("POST", "/servicex/transformation", json=body))

    assert submit(selection="(call Nonsense", **{"file-list": []})[:2] == (400, "bad-query")
    good = "(call Select (call EventDataset 'x' 'Events') (lambda (list e) (attr e 'nMuon')))"
    assert submit(selection=good, **{"file-list": ["ftp://a/b"]})[:2] == (400, "bad-request")
    assert submit(selection=good, **{"file-list": [1]})[:2] == (400, "bad-request")
    assert submit(**{"file-list": []})[:2] == (400, "bad-request")
    answer = shared.ask("POST", "/servicex/transformation", content=b"{not json")
    assert told(answer)[:2] == (400, "bad-request")
    answer = shared.ask("GET", "/nowhere/at/all", headers={"Accept": "application/json"})
    assert told(answer)[:2] == (404, "not-found")
    answer = shared.ask("POST", "/health", headers={"Accept": "application/json"})
    assert told(answer)[:2] == (405, "method-not-allowed")


@pytest.mark.parametrize("piece", [1 << 12, 100_000, 1 << 20])
def test_an_upload_in_chunks_lands_whole_whatever_their_size(shared, piece):
    data = os.urandom(1 << 20) * 4
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    answer = shared.ask("PUT", "/site/chunked", content=pieces)
    assert answer.status_code in {201, 204}, answer.text
    assert shared.ask("GET", "/site/chunked").content == data
    shared.ask("DELETE", "/site/chunked")


# A full disk.


def check_full(system: Any, limit: int) -> None:
    """What is too large is refused whole; the rest goes on."""
    small, large = b"small" * 1000, bytes(limit + (1 << 20))

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 1 << 18):
            yield large[start : start + (1 << 18)]

    system.put("/site/small", small)
    for body in (large, chunks()):
        answer = system.ask("PUT", "/site/large", headers={"Accept": "application/json"}, content=body)
        assert told(answer)[:2] == (507, "storage-full")
        assert "/large" in answer.json()["detail"]
    assert system.ask("GET", "/site/large").status_code == 404
    assert temporaries(system) == []
    for name in ("site", "cache"):
        assert system.ask("GET", f"/{name}/small").content == small
    system.put("/site/small", small[::-1])
    assert system.ask("GET", "/site/small").content == small[::-1]


def test_a_file_beyond_what_a_process_may_write_is_refused_and_nothing_of_it_stays(start):
    system = start("home", "--role", "issuer", "--role", "storage", "--role", "cache")
    big = os.urandom(12 << 20)
    (system.home / "site" / "big").write_bytes(big)
    resource.prlimit(system.pid, resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
    check_full(system, 8 << 20)
    for _ in range(2):  # what the cache cannot keep, it passes on
        assert system.ask("GET", "/cache/big").content == big
    assert "Traceback" not in system.log
