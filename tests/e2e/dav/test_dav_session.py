"""What grid clients do in a row, over a real socket and one connection."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.dav_reader import hrefs


def test_a_copy_client_makes_its_way_down_writes_checks_renames_and_cleans_up(ask):
    assert ask("PROPFIND", "/site/vo/run", Depth="0")[0] == 404
    assert ask("PROPFIND", "/site/vo", Depth="0")[0] == 404
    assert ask("MKCOL", "/site/vo/run")[0] == 409
    assert ask("MKCOL", "/site/vo")[0] == 201
    assert ask("MKCOL", "/site/vo/run")[0] == 201
    data = bytes(range(256)) * 1000
    status, headers, _ = ask("PUT", "/site/vo/run/f.part", data)
    assert (status, "adler32=" in headers["digest"]) == (201, True)
    assert ask("MOVE", "/site/vo/run/f.part", Destination="/site/vo/run/f%20final.root")[0] == 201
    status, headers, _ = ask("HEAD", "/site/vo/run/f%20final.root", Want_Digest="ADLER32")
    assert (status, headers["content-length"]) == (200, str(len(data)))
    status, _, body = ask("PROPFIND", "/site/vo/run", Depth="1")
    assert (status, hrefs(body)) == (207, ["/site/vo/run/", "/site/vo/run/f%20final.root"])
    assert ask("GET", "/site/vo/run/f%20final.root", Range="bytes=256-257")[2] == b"\x00\x01"
    listing = json.loads(ask("GET", "/site/vo/run/", Accept="application/json")[2])
    assert [e["bytes"] for e in listing["entries"]] == [len(data)]
    stale = ask("DELETE", "/site/vo/run/f%20final.root", If_Match='"other"')
    assert (stale[0], stale[1]["x-error-code"]) == (412, "precondition-failed")
    assert ask("DELETE", "/site/vo/run/f%20final.root", If_Match=headers["etag"])[0] == 204
    assert ask("DELETE", "/site/vo")[0] == 204
    assert ask("PROPFIND", "/site/vo", Depth="0")[0] == 404


def test_refusals_leave_the_connection_usable(ask):
    wrong = b"<!DOCTYPE x [<!ENTITY a 'b'>]><propfind xmlns='DAV:'/>"
    for method, target, body, status in [
        ("MKCOL", "/site/x", b"body", 415),
        ("PROPFIND", "/site/", wrong, 400),
        ("DELETE", "/site/none", None, 404),
        ("DELETE", "/site/%2e%2e/x", None, 400),
        ("LOCK", "/site/x", b"<lockinfo/>", 405),
        ("REPORT", "/site/x", None, 501),
        ("GET", "/nowhere/x", None, 404),
    ]:
        answer = ask(method, target, body, Depth="0")
        assert (answer[0], answer[2].count(b"\n")) == (status, 1), (method, answer)
    assert ask("OPTIONS", "/site/")[0] == 200
    assert ask.connection.sock is not None


def test_a_listing_that_breaks_off_is_no_whole_answer(ask):
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask("PROPFIND", "/broken/", Depth="1")
    assert b"file10" in caught.value.partial
    assert b"</D:multistatus>" not in caught.value.partial
    ask.connection.close()
    assert ask("OPTIONS", "/site/")[0] == 200  # the server goes on


def test_many_clients_make_and_remove_beside_each_other(server):
    def work(n):
        connection, token = server.dial(), {"Authorization": f"Bearer {server.token()}"}
        seen = []
        for method, target in [
            ("MKCOL", "/site/shared"),
            ("MKCOL", f"/site/own{n}"),
            ("PUT", f"/site/own{n}/f"),
            ("DELETE", f"/site/own{n}"),
        ]:
            connection.request(method, target, b"x" if method == "PUT" else None, token)
            response = connection.getresponse()
            response.read()
            seen.append(response.status)
        connection.close()
        return seen

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(8)))
    assert sorted(r[0] for r in results) == [201] + [405] * 7
    assert all(r[1:] == [201, 201, 204] for r in results)
