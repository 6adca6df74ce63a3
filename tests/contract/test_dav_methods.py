"""The WebDAV door over every writable store: methods, rights and refusals."""

import json
from xml.etree import ElementTree

import pytest

from doma.core.errors import Forbidden, PartlyFailed, problem
from doma.store.wrap import Fault, Faulty

READ, MODIFY, CREATE = "storage.read:/", "storage.modify:/", "storage.create:/"


async def exists(door, path, store="site"):
    return (await door.ask("HEAD", f"/{store}{path}")).status == 200


async def test_options_tells_anybody_what_is_offered(door):
    for target in ("/site/x", "/nowhere", "*"):
        answer = await door.ask("OPTIONS", target, None)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["dav"] == "1"
        assert answer.headers["ms-author-via"] == "DAV"
        assert "PROPFIND" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "status"), [("LOCK", 405), ("UNLOCK", 405), ("POST", 405), ("PATCH", 405), ("BREW", 501)]
)
async def test_what_is_not_offered_is_said_so(door, method, status):
    answer = await door.ask(method, "/site/x")
    assert answer.status == status
    assert answer.text.count("\n") == 1
    assert "PROPFIND" in answer.text
    assert ("allow" in answer.headers) is (status == 405)


async def test_a_collection_is_made_once(door):
    assert (await door.ask("MKCOL", "/site/a")).status == 201
    assert (await door.stores["site"].stat("/a")).is_dir
    again = await door.ask("MKCOL", "/site/a/")
    assert (again.status, again.headers["x-error-code"]) == (405, "already-exists")
    assert (await door.ask("MKCOL", "/site/x/y")).status == 409
    await door.put("/file")
    assert (await door.ask("MKCOL", "/site/file")).status == 405
    assert (await door.ask("MKCOL", "/site/file/x")).status == 409
    assert (await door.ask("MKCOL", "/site/b", body=b"<x/>")).status == 415
    assert not await exists(door, "/b")
    assert [e.kind for e in door.events] == ["directory.made"]


async def test_a_file_is_deleted_and_told(door):
    await door.put("/a/f", b"12345")
    answer = await door.ask("DELETE", "/site/a/f")
    assert (answer.status, answer.body) == (204, b"")
    assert (await door.ask("DELETE", "/site/a/f")).status == 404
    (event,) = door.events
    assert (event.kind, event.subject, event.data["bytes"]) == ("file.deleted", "/site/a/f", 5)
    assert event.owner == "https://issuer.example/dv#ada"


async def test_only_the_stated_version_is_deleted(door):
    old = await door.put("/f", b"old")
    new = await door.put("/f", b"new!")
    late = await door.ask("DELETE", "/site/f", headers={"if-match": f'"{old.version}"'})
    assert (late.status, late.headers["x-error-code"]) == (412, "precondition-failed")
    assert await door.content("/f") == b"new!"
    kept = await door.ask("DELETE", "/site/f", headers={"if-none-match": "*"})
    assert kept.status == 412
    early = {"if-unmodified-since": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert (await door.ask("DELETE", "/site/f", headers=early)).status == 412
    locked = await door.ask("DELETE", "/site/f", headers={"if": '(<urn:uuid:1> ["x"])'})
    assert (locked.status, "locks are not offered" in locked.text) == (412, True)
    right = await door.ask("DELETE", "/site/f", headers={"if-match": f'"other", "{new.version}"'})
    assert right.status == 204


@pytest.mark.parametrize("header", ["Depth", "Destination", "Overwrite", "Host", "Source"])
async def test_a_header_that_may_come_once_is_refused_when_it_comes_twice(door, header):
    await door.put("/d/f")
    name = header.lower()
    value = {"depth": "0", "destination": "/site/e", "host": "se.example"}.get(name, "F")
    for method in ("MOVE", "COPY", "PROPFIND", "DELETE", "GET", "PUT"):
        answer = await door.ask(method, "/site/d", headers={name: value, name.upper(): value})
        assert (answer.status, header in answer.text) == (400, True)
    assert await exists(door, "/d/f")


async def test_a_clean_up_removes_only_what_its_own_upload_published(door):
    upload = await door.stores["site"].create("/f", size=1)
    upload.tag("new")
    await upload.write(b"x")
    assert (await upload.commit()).upload == "new"
    late = await door.ask("DELETE", "/site/f", headers={"x-upload-id": "old"})
    assert (late.status, late.headers["x-error-code"]) == (412, "precondition-failed")
    assert (await door.ask("DELETE", "/site/f", headers={"x-upload-id": "new"})).status == 204
    await door.put("/g")
    assert (await door.ask("DELETE", "/site/g", headers={"x-upload-id": "new"})).status == 412


async def test_a_collection_is_deleted_with_all_that_is_in_it(door):
    await door.put("/a/b/f")
    assert (await door.ask("DELETE", "/site/a")).status == 204
    assert not await exists(door, "/a")


async def test_the_top_of_an_endpoint_stays(door):
    await door.put("/f")
    for target in ("/site", "/site/", "//site//."):
        assert (await door.ask("DELETE", target)).status == 403
    assert await exists(door, "/f")


async def test_the_top_of_an_issuers_area_stays(door):
    await door.put("/grid/vo/d/f")
    for method in ("DELETE", "MOVE"):
        answer = await door.ask(method, "/vo/grid/vo", headers={"destination": "/vo/grid/lab/x"})
        assert (answer.status, answer.headers["x-error-code"]) == (403, "refused"), method
    assert (await door.ask("DELETE", "/vo/grid")).status == 403
    assert await exists(door, "/grid/vo/d/f")
    assert (await door.ask("DELETE", "/vo/grid/vo/d")).status == 204


async def test_a_read_only_endpoint_says_so(door):
    await door.put("/f")
    for method, headers in [
        ("DELETE", {}), ("MKCOL", {}), ("MOVE", {"destination": "/data/g"}), ("PROPPATCH", {}),
        ("COPY", {"source": "https://a.org/x"}),
    ]:  # fmt: skip
        answer = await door.ask(method, "/data/f", headers=headers)
        assert (answer.status, "read-only" in answer.text) == (405, True), method
    copied = await door.ask("COPY", "/site/f", headers={"destination": "/data/g"})
    assert (copied.status, "'data' is read-only" in copied.text) == (405, True)


async def test_a_collection_that_loses_only_parts_says_which(door):
    await door.put("/d/x")
    parts = {"/d/x": problem(Forbidden("/d/x: locked away"))}
    fault = Fault("delete", error=PartlyFailed("/d: one part stays", parts=parts))
    object.__setattr__(door.site.endpoints["site"], "store", Faulty(door.stores["site"], fault))
    answer = await door.ask("DELETE", "/site/d")
    assert (answer.status, answer.headers["x-error-code"]) == (207, "partly-failed")
    (response,) = ElementTree.fromstring(answer.body)
    assert [e.text for e in response] == ["/site/d/x", "HTTP/1.1 403 Forbidden", "/d/x: locked away"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/site/../etc/passwd", 400),
        (b"/site/%2e%2e/x", 400),
        (b"/site/a%2Fb", 400),
        (b"/site/a%00b", 400),
        (b"/site/a%0d%0aX-Evil:%201", 400),
        (b"/site/a%ff", 400),
        (b"/site/a\xff%41", 400),
        (b"/site/" + b"n" * 256, 400),
        (b"/site/" + b"n/" * 3000, 414),
        (b"/site/.doma/x", 400),
        (b"site/x", 400),
        (b"/nowhere/x", 404),
        (b"/", 404),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "MKCOL", "PROPFIND", "MOVE", "COPY", "PUT"])
async def test_a_hostile_path_gets_one_clear_line(door, method, target, status):
    answer = await door.ask(method, target, headers={"destination": "/site/x", "depth": "0"})
    assert answer.status == status
    assert answer.headers["x-error-code"]
    assert answer.headers["content-type"].startswith("text/plain")
    if method != "HEAD":
        assert answer.text.count("\n") == 1
        assert answer.text.isprintable() or answer.text[:-1].isprintable()


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PROPFIND", "DELETE", "MKCOL", "MOVE", "COPY", "PROPPATCH"]
)
async def test_nobody_learns_what_exists_without_the_right_to(door, method):
    """A file that is there and one that is not give the same answer."""
    await door.put("/secret/there", b"S")
    headers = {"destination": "/site/secret/other", "depth": "0"}
    for scope, status in [(None, 401), ("storage.read:/public storage.modify:/public", 403)]:
        seen = [await door.ask(method, f"/site/secret/{name}", scope, headers) for name in ("there", "gone!")]
        assert [a.status for a in seen] == [status, status]
        assert seen[0].text == seen[1].text.replace("gone!", "there")
        assert seen[0].headers["www-authenticate"].startswith('Bearer realm="se.example"')
    assert await door.content("/secret/there") == b"S"


async def test_a_bad_token_is_refused_also_where_none_is_needed(door):
    await door.put("/f")
    stale = {"authorization": "Bearer " + door.token(READ, exp=1)}
    answer = await door.ask("PROPFIND", "/open/f", None, {**stale, "depth": "0"})
    assert (answer.status, 'error="invalid_token"' in answer.headers["www-authenticate"]) == (401, True)
    two = {"authorization": "Bearer " + door.token(READ)}
    answer = await door.ask("PROPFIND", "/site/f?authz=Bearer%20other", None, two)
    assert answer.status == 400


async def test_a_token_in_the_query_counts(door):
    await door.put("/f")
    answer = await door.ask("PROPFIND", f"/site/f?authz={door.token(READ)}", None, {"depth": "0"})
    assert answer.status == 207


async def test_a_directory_scope_does_not_cover_a_file_of_that_name(door):
    await door.put("/d/f")
    await door.put("/plain")
    scope = "storage.modify:/plain/ storage.modify:/d/"
    assert (await door.ask("DELETE", "/site/plain", scope)).status == 403
    assert (await door.ask("DELETE", "/site/d", scope)).status == 204


async def test_an_error_is_an_object_where_json_is_accepted(door):
    answer = await door.ask("DELETE", "/site/none", headers={"accept": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert (problem["code"], problem["status"]) == ("not-found", 404)


async def test_a_listing_is_a_page_or_json(door):
    await door.put('/d/<b>&"x".root', b"12345")
    await door.put("/d/sub/f")
    page = await door.ask("GET", "/site/d", headers={"accept": "text/html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<b>" not in page.text.partition("<table>")[2]
    assert '/site/d/%3Cb%3E&amp;%22x%22.root"' in page.text
    assert 'href="/site/d/sub/"' in page.text
    assert '<a href="/site/" rel="up">' in page.text
    assert '<span title="5 bytes">5 B</span>' in page.text
    assert "1 file (5 B), 1 folder<" in page.text
    listed = json.loads((await door.ask("GET", "/site/d/", headers={"accept": "application/json"})).body)
    assert listed["path"] == "/site/d"
    assert [(e["name"], e["bytes"], e["is_dir"]) for e in listed["entries"]] == [
        ('<b>&"x".root', 5, False),
        ("sub", 0, True),
    ]
    empty = await door.ask("GET", "/other/", headers={"accept": "application/json"})
    assert json.loads(empty.body)["entries"] == []
    head = await door.ask("HEAD", "/site/d")
    assert (head.status, head.body, "content-length" in head.headers) == (200, b"", False)


async def test_listing_needs_read_and_an_ancestor_is_only_looked_at(door):
    await door.put("/a/b/f")
    scope = "storage.read:/a/b"
    assert (await door.ask("PROPFIND", "/site/a", scope, {"depth": "0"})).status == 207
    assert (await door.ask("PROPFIND", "/site/a", scope, {"depth": "1"})).status == 403
    assert (await door.ask("GET", "/site/a", scope)).status == 403
    assert (await door.ask("PROPFIND", "/site/a/b", scope, {"depth": "1"})).status == 207
    assert (await door.ask("PROPFIND", "/site/a/b", "storage.modify:/a/b", {"depth": "1"})).status == 403


async def test_a_public_endpoint_is_read_by_anybody_and_changed_by_nobody(door):
    await door.put("/d/f")
    assert (await door.ask("GET", "/open/d", None)).status == 200
    assert (await door.ask("PROPFIND", "/open/d", None, {"depth": "1"})).status == 207
    assert (await door.ask("DELETE", "/open/d/f", None)).status == 405


async def test_a_refusal_names_the_path_with_its_endpoint(door):
    missing = await door.ask("GET", "/site/no/such")
    assert missing.text.startswith("/site/no/such: ")
    refused = await door.ask("DELETE", "/site/no/such", READ)
    assert (refused.status, refused.text.startswith("/site/no/such: the token of ")) == (403, True)


async def test_directories_on_the_way_to_a_grant_may_be_made_but_never_moved(door):
    mine = "storage.modify:/user/alice storage.modify:/group/x"
    assert (await door.ask("MKCOL", "/site/user", mine)).status == 201
    await door.put("/user/bob/f", b"bob's")
    moved = await door.ask("MOVE", "/site/user", mine, {"Destination": "/site/group"})
    assert moved.status == 403
    assert await exists(door, "/user/bob/f")
