"""MOVE and COPY inside a server, over every writable store: where to, what may go, what stays."""

import asyncio
from xml.etree import ElementTree

import pytest

from doma.core.errors import Forbidden, Refused, StorageUnavailable
from doma.store.file import FileStore
from doma.store.quota import Quota
from doma.store.wrap import Counted, Fault, Faulty

READ, MODIFY, CREATE = "storage.read:/", "storage.modify:/", "storage.create:/"


async def exists(door, path, store="site"):
    return (await door.ask("HEAD", f"/{store}{path}")).status == 200


async def test_a_rename_is_a_move_and_may_replace(door):
    await door.put("/a", b"A")
    await door.put("/b", b"B")
    await door.put("/d/x")
    moved = await door.ask("MOVE", "/site/a", headers={"destination": "https://se.example/site/d/c%20c"})
    assert (moved.status, moved.headers["location"]) == (201, "/site/d/c%20c")
    assert await door.content("/d/c c") == b"A"
    kept = await door.ask("MOVE", "/site/b", headers={"destination": "/site/d/c%20c", "overwrite": "F"})
    assert kept.status == 412
    assert await door.content("/d/c c") == b"A"
    assert (await door.ask("MOVE", "/site/b", headers={"destination": "/site/d/c%20c"})).status == 204
    assert await door.content("/d/c c") == b"B"
    assert not await exists(door, "/b")
    assert [(e.kind, e.subject, e.data["source"]) for e in door.events] == [
        ("file.moved", "/site/d/c c", "/site/a"),
        ("file.moved", "/site/d/c c", "/site/b"),
    ]


async def test_a_directory_moves_with_its_content(door):
    await door.put("/a/b/f", b"F")
    assert (
        await door.ask("MOVE", "/site/a", headers={"destination": "davs://se.example/site/z"})
    ).status == 201
    assert await door.content("/z/b/f") == b"F"


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("/site/a", 403),
        ("/site/a/", 403),
        ("/site/a/below", 403),
        ("/site/none/x", 409),
        ("/site/plain/x", 409),
        ("/other/a", 502),
        ("https://elsewhere.example/site/b", 502),
        ("//elsewhere.example/site/b", 400),
        ("https://me:hush@se.example/site/b", 400),
        ("ftp://se.example/site/b", 400),
        ("https://[::1/x", 400),
        ("site/b", 400),
        ("", 400),
        ("/site/../b", 400),
        ("/site/a%2Fb", 400),
        ("/nowhere/b", 404),
        ("/site/" + "x" * 5000, 414),
    ],
)
async def test_a_move_to_a_wrong_place_changes_nothing(door, destination, status):
    await door.put("/a/f", b"A")
    await door.put("/plain", b"P")
    answer = await door.ask("MOVE", "/site/a", headers={"destination": destination})
    assert answer.status == status, answer.text
    assert "hush" not in answer.text
    assert await door.content("/a/f") == b"A"
    assert await door.content("/plain") == b"P"
    assert door.events == []


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("https://se.example/site/b", 201),
        ("http://se.example/site/b", 201),
        ("dav://SE.EXAMPLE:80/site/b", 201),
        ("https://alias.example:8443/site/b", 201),
        ("davs://alias.example:8443/site/b?copy_mode=push&authz=x", 201),
        ("https://[2001:db8::7]:8443/site/b", 201),
        ("https://alias.example/site/b", 502),
        ("https://se.example:8443/site/b", 502),  # another service of the same host
        ("https://se.example.evil.example/site/b", 502),
        ("https://se.example\\@evil.example/site/b", 400),
        ("https://evil.example#@se.example/site/b", 400),
        ("https://evil.example?@se.example/site/b", 502),
        ("/site/b\nX: y", 400),
        ("https://se.example/site/b\r", 400),
        ("/site/\xc3\xa9", 201),  # raw UTF-8, as careless clients send it
        ("/site/\xe9", 400),
    ],
)
async def test_a_destination_may_name_any_door_of_ours_and_no_other(door, destination, status):
    doors = frozenset({("alias.example", 8443), ("2001:db8::7", 8443)})
    object.__setattr__(door.site, "doors", doors)
    await door.put("/a", b"A")
    answer = await door.ask("MOVE", "/site/a", headers={"destination": destination})
    assert answer.status == status, answer.text
    assert await exists(door, "/a") is (status != 201)
    if status == 201:
        assert answer.headers["location"] in {"/site/b", "/site/%C3%A9"}


async def test_a_move_needs_a_source_a_destination_and_a_sensible_overwrite(door):
    await door.put("/a")
    assert (await door.ask("MOVE", "/site/none", headers={"destination": "/site/b"})).status == 404
    assert (await door.ask("MOVE", "/site/a")).status == 400
    wrong = {"destination": "/site/a2", "overwrite": "perhaps"}
    assert (await door.ask("MOVE", "/site/a", headers=wrong)).status == 400
    stale = {"destination": "/site/a2", "if-match": '"gone"'}
    assert (await door.ask("MOVE", "/site/a", headers=stale)).status == 412
    assert await exists(door, "/a")


async def test_rights_of_a_move(door):
    await door.put("/in/a", b"A")
    await door.put("/in/b", b"B")
    move = {"destination": "/site/in/c"}
    assert (await door.ask("MOVE", "/site/in/a", "storage.read:/", move)).status == 403
    assert (await door.ask("MOVE", "/site/in/a", "storage.create:/in/a storage.read:/", move)).status == 403
    assert (await door.ask("MOVE", "/site/in/a", "storage.create:/in", move)).status == 201
    onto = await door.ask("MOVE", "/site/in/c", "storage.create:/in", {"destination": "/site/in/b"})
    assert (onto.status, "storage.modify" in onto.headers["www-authenticate"]) == (403, True)
    assert await door.content("/in/b") == b"B"
    assert (await door.ask("MOVE", "/site/in/c", MODIFY, {"destination": "/site/in/b"})).status == 204


async def test_a_file_is_copied_whole_also_to_another_endpoint(door):
    data = bytes(range(256)) * 12_000  # more than one piece
    await door.put("/a", data)
    for target, store, path in [("/site/b", "site", "/b"), ("/other/b", "other", "/b")]:
        answer = await door.ask("COPY", "/site/a", headers={"destination": target})
        assert (answer.status, answer.headers["location"]) == (201, target)
        assert await door.content(path, store) == data
        assert (await door.stores[store].stat(path)).checksums["adler32"]
    again = await door.ask("COPY", "/site/a", headers={"destination": "/other/b", "overwrite": "F"})
    assert again.status == 412
    assert (await door.ask("COPY", "/site/a", headers={"destination": "/other/b"})).status == 204
    assert await door.content("/a") == data


async def test_an_empty_file_is_copied(door):
    await door.put("/empty", b"")
    assert (await door.ask("COPY", "/site/empty", headers={"destination": "/site/e2"})).status == 201
    assert await door.content("/e2") == b""


async def test_a_file_copied_onto_itself_stays(door):
    await door.put("/a", b"A")
    assert (await door.ask("COPY", "/site/a", headers={"destination": "/site/./a"})).status == 403
    assert await door.content("/a") == b"A"


async def test_a_collection_is_copied_deep_or_empty(door):
    await door.put("/a/x", b"X")
    await door.put("/a/b/y", b"Y")
    assert (await door.ask("COPY", "/site/a", headers={"destination": "/site/deep"})).status == 201
    assert await door.content("/deep/b/y") == b"Y"
    assert await door.content("/deep/x") == b"X"
    shallow = {"destination": "/site/flat", "depth": "0"}
    assert (await door.ask("COPY", "/site/a", headers=shallow)).status == 201
    assert not await exists(door, "/flat/x")
    whole = await door.ask("COPY", "/site/", headers={"destination": "/other/all"})
    assert whole.status == 201
    assert await door.content("/all/a/b/y", "other") == b"Y"
    into = await door.ask("COPY", "/site/a", headers={"destination": "/site/a/c"})
    assert into.status == 403


async def test_a_copy_into_itself_through_another_endpoint_ends(door):
    await door.put("/a/x", b"X")
    answer = await door.ask("COPY", "/data/a", headers={"destination": "/site/a/b"})
    assert answer.status == 201
    assert await door.content("/a/b/x") == b"X"
    assert not await exists(door, "/a/b/b")


async def test_a_copy_of_too_much_is_refused_before_it_begins(door, monkeypatch):
    monkeypatch.setattr("doma.doors.dav_copy.MOST", 2)
    for name in "xyz":
        await door.put(f"/a/{name}")
    answer = await door.ask("COPY", "/site/a", headers={"destination": "/site/b"})
    assert (answer.status, answer.headers["x-error-code"]) == (413, "limit")
    assert not await exists(door, "/b")


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize("source", ["file", "tree"])
@pytest.mark.parametrize("target", ["old", "old/"])
async def test_a_tree_is_replaced_and_not_merged(door, method, source, target):
    """RFC 4918 §9.8.4, §9.9.3: afterwards there is what was copied and nothing else."""
    await door.put("/file", b"N")
    await door.put("/tree/new", b"N")
    await door.put("/old/y", b"O")
    onto = {"destination": f"/site/{target}"}
    assert (await door.ask(method, f"/site/{source}", headers={**onto, "overwrite": "F"})).status == 412
    # davix and gfal2 never say Overwrite: a slip of their users does not cost a tree.
    unsaid = await door.ask(method, f"/site/{source}", headers=onto)
    assert (unsaid.status, "say Overwrite: T" in unsaid.text) == (412, True)
    assert await door.content("/old/y") == b"O"
    answer = await door.ask(method, f"/site/{source}", headers={**onto, "overwrite": "T"})
    assert answer.status == 204, answer.text
    assert await door.content("/old" if source == "file" else "/old/new") == b"N"
    assert not await exists(door, "/old/y")
    here = {e.path async for e in door.stores["site"].list("/")}
    assert here == {"/file", "/tree", "/old"} - ({f"/{source}"} if method == "MOVE" else set())


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_a_file_is_replaced_by_a_tree(door, method):
    await door.put("/tree/new", b"N")
    await door.put("/old", b"O")
    assert (await door.ask(method, "/site/tree", headers={"destination": "/site/old"})).status == 204
    assert await door.content("/old/new") == b"N"


@pytest.mark.parametrize(("method", "fails"), [("COPY", "create"), ("COPY", "rename"), ("MOVE", "rename")])
async def test_a_tree_stays_when_the_new_one_cannot_come(door, method, fails):
    await door.put("/new/x", b"N")
    await door.put("/old/y", b"O")
    inner = door.stores["site"]
    # the first rename puts the old tree aside, the second would put the new one in its place
    at = {"create": 1, "rename": 2}[fails]
    fault = Fault(fails, at=at, error=StorageUnavailable("the disk is gone"))
    object.__setattr__(door.site.endpoints["site"], "store", Faulty(inner, fault))
    headers = {"destination": "/site/old", "overwrite": "T"}
    answer = await door.ask(method, "/site/new", headers=headers)
    assert answer.status == (207 if fails == "create" else 503)
    assert await door.content("/old/y") == b"O"
    assert await door.content("/new/x") == b"N"
    assert [e.path async for e in inner.list("/")] == ["/new", "/old"]
    assert door.events == []


async def test_a_client_that_goes_away_in_the_middle_leaves_one_whole_tree(door):
    await door.put("/new/x", b"N")
    await door.put("/old/y", b"O")
    inner = door.stores["site"]
    between, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Counted):
        async def rename(self, source, target, *, overwrite=True):
            replaced = await super().rename(source, target, overwrite=overwrite)
            between.set()
            await go_on.wait()
            return replaced

    object.__setattr__(door.site.endpoints["site"], "store", Slow(inner))
    headers = {"destination": "/site/old", "overwrite": "T"}
    asked = asyncio.create_task(door.ask("MOVE", "/site/new", headers=headers))
    await between.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    go_on.set()
    async with asyncio.timeout(20):
        while [e.path async for e in inner.list("/")] != ["/old"]:
            await asyncio.sleep(0)
    assert await door.content("/old/x") == b"N"


async def test_a_copy_says_which_parts_failed_and_brings_the_others(door):
    for path in ("/a/1", "/a/2", "/a/3", "/a/sub/4", "/a/sub/5"):
        await door.put(path)
    faults = [
        Fault("create", at=2, error=Refused("no luck")),
        Fault("make_dir", at=2, error=Forbidden("not there")),
    ]
    object.__setattr__(door.site.endpoints["site"], "store", Faulty(door.stores["site"], *faults))
    answer = await door.ask("COPY", "/site/a", headers={"destination": "/site/b"})
    assert (answer.status, answer.headers["content-type"]) == (207, 'application/xml; charset="utf-8"')
    told = {r[0].text: r[1].text.split()[1] for r in ElementTree.fromstring(answer.body)}
    assert sorted(told.values()) == ["403", "403"]
    assert "/site/a/sub" in told
    assert len([e async for e in door.stores["site"].list("/b")]) == 2
    assert [e.kind for e in door.events] == ["file.landed"] * 2
    assert all(e.subject.startswith("/site/b/") for e in door.events)


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_the_top_of_an_area_is_not_replaced(door, method):
    await door.put("/grid/vo/f")
    await door.put("/grid/lab/g")
    for target in ("/vo/grid/lab", "/vo/grid", "/vo/"):
        headers = {"destination": target, "overwrite": "T"}
        answer = await door.ask(method, "/vo/grid/vo/f", headers=headers)
        assert answer.status == 403, target
    assert await exists(door, "/grid/lab/g")


@pytest.mark.parametrize("depth", ["0", "1", "-1", "x"])
async def test_a_collection_is_removed_or_moved_whole_or_not_at_all(door, depth):
    await door.put("/d/f")
    for method in ("DELETE", "MOVE"):
        answer = await door.ask(method, "/site/d", headers={"depth": depth, "destination": "/site/e"})
        assert answer.status == 400
    assert (await door.ask("DELETE", "/site/d/f", headers={"depth": depth})).status == 204
    copied = await door.ask("COPY", "/site/d", headers={"depth": depth, "destination": "/site/e"})
    assert copied.status == (201 if depth == "0" else 400)


async def test_a_copy_needs_a_parent_to_be_there(door):
    await door.put("/a", b"A")
    assert (await door.ask("COPY", "/site/a", headers={"destination": "/site/no/b"})).status == 409


async def test_third_party_copies_are_refused_clearly_and_only_to_those_who_may(door):
    await door.put("/a", b"A")
    away = {"destination": "https://elsewhere.example/x"}
    for headers in (away, {"source": "https://elsewhere.example/x"},
                    {"destination": "/site/b", "transferheaderauthorization": "Bearer x"}):  # fmt: skip
        answer = await door.ask("COPY", "/site/a", headers=headers)
        assert (answer.status, "third-party copy is not offered" in answer.text) == (501, True)
        assert (await door.ask("COPY", "/site/a", None, headers)).status == 401
        assert (await door.ask("COPY", "/site/a", "storage.stage:/", headers)).status == 403
    both = {"source": "https://a.org/x", **away}
    assert (await door.ask("COPY", "/site/a", headers=both)).status == 400
    assert (await door.ask("COPY", "/site/a")).status == 400


async def test_rights_of_a_copy(door):
    await door.put("/in/a", b"A")
    await door.put("/in/old", b"O")
    new, old = {"destination": "/site/in/b"}, {"destination": "/site/in/old"}
    assert (await door.ask("COPY", "/site/in/a", MODIFY, new)).status == 403
    assert (await door.ask("COPY", "/site/in/a", READ, new)).status == 403
    assert (await door.ask("COPY", "/site/in/a", f"{READ} {CREATE}", old)).status == 403
    assert await door.content("/in/old") == b"O"
    assert (await door.ask("COPY", "/site/in/a", f"{READ} {CREATE}", new)).status == 201
    assert (await door.ask("COPY", "/site/in/a", f"{READ} {MODIFY}", old)).status == 204


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize("door", ["file"], indirect=True)
async def test_a_tree_that_is_too_large_for_a_quota_does_not_come_in_by_the_back_door(door, method, tmp_path):
    store = FileStore(tmp_path / "small", quota=Quota({"/vo": 100}))
    for path, data in (("/vo/old", b"o" * 90), ("/big/x", b"x" * 101)):
        upload = await store.create(path, size=len(data))
        await upload.write(data)
        await upload.commit()
    object.__setattr__(door.site.endpoints["site"], "store", store)
    headers = {"destination": "/site/vo", "overwrite": "T"}
    answer = await door.ask(method, "/site/big", headers=headers)
    assert (answer.status, answer.headers["x-error-code"]) == (507, "storage-full")
    assert [e.path async for e in store.list("/")] == ["/big", "/vo"]
    assert [e.path async for e in store.list("/vo")] == ["/vo/old"]
    assert (await store.space_at("/vo")).used == 90
    await store.close()
