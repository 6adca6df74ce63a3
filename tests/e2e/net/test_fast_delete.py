"""Small changes over real sockets: the quick road does what the whole one does, and leaves it the rest."""

import asyncio

import pytest

from doma.auth.gate import Gate
from doma.doors import webdav
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.store.file import FileStore


@pytest.fixture(params=[False, True], ids=["quick", "synced"])
def served(request, site, launch, tmp_path, token):
    """A server over a store of files, a connection to it, and what it has told."""
    store, told, counted = FileStore(tmp_path / "store", fsync=request.param), [], []
    gate = Gate({"https://issuer.example/doma": ["/"]})
    areas = Gate({"https://issuer.example/doma": ["/vo"]})
    mine = Site(
        site.verifier,
        {
            "site": Endpoint("site", store, gate),
            "area": Endpoint("area", store, areas),
            "fixed": Endpoint("fixed", store, gate, writable=False),
        },
        told.append,
    )
    with launch(webdav.app(mine), FastDoor(mine, count=lambda *args: counted.append(args))) as server:
        with server.dial() as wire:
            wire.told, wire.counted, wire.quick = told, counted, not request.param
            assert wire.ask("PUT", "/site/d/f", body=b"hello", token=token).status == 201
            told.clear()
            yield wire
        asyncio.run_coroutine_threadsafe(store.close(), server.loop).result(10)


def test_a_file_is_gone_and_that_is_told(served, token):
    etag = served.ask("GET", "/site/d/f", token=token).headers["etag"]
    assert served.ask("DELETE", "/site/d/f", token=token).status == 204
    assert served.ask("GET", "/site/d/f", token=token).status == 404
    assert served.ask("DELETE", "/site/d/f", token=token).status == 404
    (event,) = served.told
    assert (event.kind, event.subject, event.owner) == (
        "file.deleted", "/site/d/f", "https://issuer.example/doma#tester",
    )  # fmt: skip
    assert event.data["endpoint"] == "site"
    assert event.data["bytes"] == 5
    assert bool([one for one in served.counted if one[1] == "DELETE"]) == served.quick
    assert served.ask("PUT", "/site/d/f", body=b"again", token=token).headers["etag"] != etag


@pytest.mark.parametrize(
    ("target", "headers", "scope", "status"),
    [
        ("/site/d/f", {}, None, 401),
        ("/site/d/f", {}, "storage.read:/", 403),
        ("/site/d/f", {}, "storage.create:/", 403),
        ("/site/d/f", {}, "storage.modify:/d/f/", 403),
        ("/site/d/f", {}, "storage.modify:/e", 403),
        ("/site/d/f", {"If-Match": '"other"'}, "storage.modify:/", 412),
        ("/site/d/f", {"X-Upload-Id": "other"}, "storage.modify:/", 412),
        ("/site/d/f", {"If-None-Match": "*"}, "storage.modify:/", 412),
        ("/fixed/d/f", {}, "storage.modify:/", 405),
        ("/area/vo", {}, "storage.modify:/", 403),
        ("/site/d/../d/f", {}, "storage.modify:/", 400),
        ("/site/none", {}, "storage.modify:/", 404),
        ("/site/d/f/below", {}, "storage.modify:/", 404),
        ("/nowhere/f", {}, "storage.modify:/", 404),
    ],
)
def test_what_is_refused_stays(served, sign, token, target, headers, scope, status):
    known = scope and sign(scope)
    if known:  # the quick road knows tokens that were seen before
        served.ask("GET", "/site/d/f", token=known)
    for _ in range(2):
        assert served.ask("DELETE", target, headers, token=known).status == status
    assert served.ask("GET", "/site/d/f", token=token).body == b"hello"


def test_a_directory_is_left_to_the_whole_door(served, token):
    assert served.ask("DELETE", "/site/d", token=token).status == 204
    assert served.ask("GET", "/site/d/f", token=token).status == 404


def test_a_head_counts_with_its_own_token_only(served, token, tools):
    """Requests for one target come at once, with two tokens: what is remembered of them is not mixed up."""
    weak = "x" * len(token)
    good = tools.request("PUT", "/site/mixed", body=b"12345", token=token)
    bad = tools.request("PUT", "/site/mixed", body=b"12345", token=weak)
    for pair in ((good, bad), (bad, good), (good, good, bad), (bad, bad, good)):
        for _ in range(2):
            served.send(b"".join(pair))
            said = [served.answer("PUT").status for _ in pair]
            assert [status == 401 for status in said] == [one is bad for one in pair]
        for one in (*pair, *pair):
            served.send(one)
            assert (served.answer("PUT").status == 401) == (one is bad)


def test_small_files_come_one_after_the_other_and_stay_what_they_are(served, token):
    names = [f"/site/many/{number}" for number in range(12)]
    for turn in range(2):
        for number, name in enumerate(names):
            body = bytes([turn, number]) * (number + 1 + turn)
            assert served.ask("PUT", name, body=body, token=token).status == (204 if turn else 201)
        for number, name in enumerate(names):
            assert served.ask("GET", name, token=token).body == bytes([turn, number]) * (number + 1 + turn)
    for name in names:
        assert served.ask("DELETE", name, token=token).status == 204
        assert served.ask("GET", name, token=token).status == 404


def test_tokens_in_one_packet_keep_their_rights(served, token, sign, tools):
    """What is remembered of a head is never joined to another one's token."""
    narrow = sign(scope="storage.read:/d/f")
    assert served.ask("PUT", "/site/d/secret", body=b"hidden", token=token).status == 201
    for who in (narrow, token, narrow, token):  # both tokens are known, the file is hot
        assert served.ask("GET", "/site/d/f", token=who).status == 200
    pair = [tools.request("GET", "/site/d/f", token=who) for who in (narrow, token)]
    for _ in range(3):
        served.send(b"".join(pair))
        assert [served.answer().status for _ in pair] == [200, 200]
    assert served.ask("GET", "/site/d/secret", token=token).status == 200
    served.send(b"".join(pair))
    assert [served.answer().status for _ in pair] == [200, 200]
    assert served.ask("GET", "/site/d/secret", token=narrow).status == 403


def test_an_upload_to_no_endpoint_is_left_to_the_application(served, token):
    assert served.ask("PUT", "/api/v1/cache/pins/x", body=b"{}", token=token).status == 404
    assert served.ask("PUT", "/%73ite/d/g", body=b"12", token=token).status == 201
    assert served.ask("GET", "/site/d/g", token=token).body == b"12"
    assert not [one for one in served.counted if one[1] == "PUT" and one[0] != "site"]


def test_rights_of_a_directory_are_those_of_one_token_alone(served, token, sign):
    """What is remembered of a directory helps nobody else there, and no name beside the allowed one."""
    one, reader = sign(scope="storage.modify:/d/one"), sign(scope="storage.read:/")
    creator = sign(scope="storage.create:/d")
    for who in (token, one, reader, creator):
        served.ask("GET", "/site/d/f", token=who)  # from now on it is known
    for turn in range(2):
        for name in ("one", "two"):
            assert served.ask("PUT", f"/site/d/{name}", body=b"1", token=reader).status == 403
            assert served.ask("PUT", f"/site/d/{name}", body=b"1", token=creator).status == 201
            for who in (reader, creator):
                assert served.ask("DELETE", f"/site/d/{name}", token=who).status == 403
        assert served.ask("DELETE", "/site/d/two", token=one).status == 403
        assert served.ask("DELETE", "/site/d/one", token=one).status == 204
        assert served.ask("DELETE", "/site/d/two", token=token).status == 204
        assert served.ask("PUT", "/site/d/three", body=b"1", token=one).status == 403, turn
