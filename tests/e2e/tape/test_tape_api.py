"""The Tape REST API over real sockets, row by row of the contract (W80-W96)."""

import json
import time

import httpx
import pytest

from tests.e2e.tape.conftest import RIGHTS, Staging

GHOST = "8c5cbb6e-0c5b-4f3e-9f4e-0d6c1f0a7a11"


def test_anybody_learns_where_the_api_is(staging):
    answer = staging.ask("GET", "/.well-known/wlcg-tape-rest-api", token=None)
    assert answer.status_code == 200
    about = answer.json()
    assert about["sitename"] == "127.0.0.1"
    (here,) = about["endpoints"]
    assert here["uri"] == staging.system.run["https"] + "/api/v1"
    assert here["version"] == "v1"
    assert isinstance(here["metadata"], dict)


def test_a_slash_at_the_end_changes_nothing_and_leads_nowhere(staging):
    bare, slash = (
        staging.ask("POST", f"/api/v1/archiveinfo{end}", {"paths": ["/tape/none"]}) for end in ("", "/")
    )
    assert (slash.status_code, slash.json(), slash.history) == (200, bare.json(), [])
    assert staging.ask("GET", "/api/v1/nothing/").status_code == 404
    assert staging.ask("POST", "/api/v1/archiveinfo/", {"paths": []}, token=None).status_code == 401


def test_a_file_goes_to_tape_and_comes_back_the_same(staging):
    data = bytes(range(256)) * 500
    staging.put("/tape/round/f", data)
    before = staging.ask("HEAD", "/tape/round/f").headers
    staging.until(lambda: staging.locality("/tape/round/f") == ["TAPE"])
    head = staging.ask("HEAD", "/tape/round/f").headers
    for name in ("etag", "last-modified", "digest", "content-length"):
        assert head[name] == before[name]
    refused = staging.ask("GET", "/tape/round/f")
    assert (refused.status_code, refused.headers["x-locality"]) == (409, "TAPE")
    assert "stage it first" in refused.text
    found = staging.ask("PROPFIND", "/tape/round/f", headers={"Depth": "0"}).text
    assert "NEARLINE" in found
    assert f">{len(data)}<" in found
    ident = staging.stage("/tape/round/f", diskLifetime="PT1H")
    assert staging.done(ident) == {"/tape/round/f": "COMPLETED"}
    answer = staging.ask("GET", "/tape/round/f")
    assert answer.content == data
    assert answer.headers["etag"] == before["etag"]
    assert staging.locality("/tape/round/f") == ["DISK_AND_TAPE"]
    status = staging.poll(ident)
    (file,) = status["files"]
    assert "error" not in file
    assert "onDisk" not in file
    for moment in (status["createdAt"], status["startedAt"], status["completedAt"], file["finishedAt"]):
        assert isinstance(moment, int)
    answer = staging.ask("POST", f"/api/v1/release/{ident}", {"paths": ["/tape/round/f"]})
    assert (answer.status_code, answer.content) == (200, b"")
    staging.until(lambda: staging.locality("/tape/round/f") == ["TAPE"])


def test_each_file_of_a_request_has_its_own_fate(staging):
    staging.on_tape("/tape/mixed/good", b"good")
    staging.put("/tape/mixed/empty", b"")
    staging.put("/site/disk", b"disk")
    paths = [
        "/tape/mixed/good", "/tape//mixed///good", "/tape/mixed", "/tape/mixed/empty", "/tape/mixed/none",
        "/nowhere/x", "/tape/../site/disk", "/site/disk", "/tape/.doma/x",
    ]  # fmt: skip
    ident = staging.stage(*paths)
    states = staging.done(ident)
    assert states == {
        "/tape/mixed/good": "COMPLETED", "/tape/mixed": "FAILED", "/tape/mixed/empty": "FAILED",
        "/tape/mixed/none": "FAILED", "/nowhere/x": "FAILED", "/tape/../site/disk": "FAILED",
        "/site/disk": "COMPLETED", "/tape/.doma/x": "FAILED",
    }  # fmt: skip
    for file in staging.poll(ident)["files"]:
        assert ("error" in file) == (file["state"] == "FAILED")
        assert file.get("error", "x")


def test_archiveinfo_says_of_each_file_where_it_is(staging):
    staging.on_tape("/tape/info/f", b"there")
    staging.put("/tape/info/empty", b"")
    staging.put("/site/info", b"disk")
    answers = staging.locality("/tape/info//f", "/tape/info/empty", "/site/info", "/tape/info/gone")
    assert answers[:3] == ["TAPE", "NONE", "DISK"]
    assert "no such file" in answers[3]


def test_pins_of_several_requests_count_each(staging):
    staging.on_tape("/tape/pins/f", b"pinned twice")
    one, two = staging.stage("/tape/pins/f"), staging.stage("/tape/pins/f")
    staging.done(one)
    staging.done(two)
    staging.ask("POST", f"/api/v1/release/{one}", {"paths": ["/tape/pins/f"]})
    staging.on_tape("/tape/pins/later", b"evicted while the first is still pinned")
    assert staging.locality("/tape/pins/f") == ["DISK_AND_TAPE"]
    assert staging.ask("DELETE", f"/api/v1/stage/{two}").status_code == 200
    staging.until(lambda: staging.locality("/tape/pins/f") == ["TAPE"])
    assert staging.ask("GET", f"/api/v1/stage/{two}").status_code == 404
    assert staging.poll(one)["files"][0]["state"] == "COMPLETED"


def test_a_pin_ends_with_its_lifetime(staging):
    staging.on_tape("/tape/short/f", b"short")
    staging.done(staging.stage("/tape/short/f", diskLifetime="PT0.5S"))
    staging.until(lambda: staging.locality("/tape/short/f") == ["TAPE"])


def test_a_release_without_the_right_id_gives_up_ones_own_pins(staging):
    staging.on_tape("/tape/ghost/f", b"gfal2 forgot the id")
    staging.done(staging.stage("/tape/ghost/f"))
    body = {"paths": ["/tape/ghost/f"]}
    other = staging.token(subject="bob")
    assert staging.ask("POST", "/api/v1/release/gfal2-placeholder-id", body, other).status_code == 200
    staging.on_tape("/tape/ghost/later", b"evicted meanwhile")
    assert staging.locality("/tape/ghost/f") == ["DISK_AND_TAPE"]
    assert staging.ask("POST", "/api/v1/release/gfal2-placeholder-id", body).status_code == 200
    staging.until(lambda: staging.locality("/tape/ghost/f") == ["TAPE"])


def test_cancelling_a_stranger_path_changes_nothing(staging):
    staging.on_tape("/tape/cancel/f", b"x")
    ident = staging.stage("/tape/cancel/f", "/tape/cancel/none")
    staging.done(ident)
    place = f"/api/v1/stage/{ident}/cancel"
    refused = staging.ask("POST", place, {"paths": ["/tape/cancel/f", "/tape/cancel/other"]})
    assert refused.status_code == 400
    assert "/tape/cancel/other" in refused.json()["detail"]
    assert staging.states(ident)["/tape/cancel/f"] == "COMPLETED"
    done = staging.ask("POST", place, {"paths": ["/tape/cancel/f"]})
    assert (done.status_code, done.content) == (200, b"")


def test_events_tell_what_a_poll_would(staging):
    staging.on_tape("/tape/events/f", b"told")
    ident = staging.stage("/tape/events/f")
    answer = staging.ask("GET", f"/api/v1/stage/{ident}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in answer.text.strip().split("\n\n") if frame.startswith("event")]
    assert frames[0][0] == "event: status"
    assert frames[-1][0] == "event: completed"
    assert json.loads(frames[-1][1].removeprefix("data: ")) == {"id": ident, "files": 1, "open": 0}


def test_a_replaced_file_is_the_new_one_on_tape_too(staging):
    staging.on_tape("/tape/new/f", b"old old old")
    ident = staging.stage("/tape/new/f")
    staging.put("/tape/new/f", b"new")
    staging.done(ident)  # before the new file came, or with it on the disk and pinned there
    staging.ask("POST", f"/api/v1/release/{ident}", {"paths": ["/tape/new/f"]})
    staging.until(lambda: staging.locality("/tape/new/f") == ["TAPE"])
    assert staging.done(staging.stage("/tape/new/f")) == {"/tape/new/f": "COMPLETED"}
    assert staging.ask("GET", "/tape/new/f").content == b"new"


def test_names_and_directories_move_with_what_is_on_tape(staging):
    staging.on_tape("/tape/moved/a/f", b"moves")
    target = staging.system.run["https"] + "/tape/moved/b"
    assert staging.ask("MOVE", "/tape/moved/a", headers={"Destination": target}).status_code == 201
    assert staging.locality("/tape/moved/b/f", "/tape/moved/a/f")[0] == "TAPE"
    staging.done(staging.stage("/tape/moved/b/f"))
    assert staging.ask("GET", "/tape/moved/b/f").content == b"moves"
    assert staging.ask("DELETE", "/tape/moved").status_code == 204
    assert staging.ask("GET", "/tape/moved/b/f").status_code == 404


@pytest.mark.parametrize("call", ["", "/cancel", "/events"])
def test_requests_of_others_and_made_up_ones_look_alike(staging, call):
    staging.on_tape("/tape/mine/f", b"mine")
    ident = staging.stage("/tape/mine/f")
    method = "POST" if call == "/cancel" else "GET"
    body = {"paths": ["/tape/elsewhere"]} if call == "/cancel" else None
    narrow = staging.token("storage.stage:/elsewhere", subject="bob")
    asked = [staging.ask(method, f"/api/v1/stage/{i}{call}", body, narrow) for i in (ident, GHOST)]
    if call != "/cancel":
        assert [a.status_code for a in asked] == [404, 404]
    else:  # the path is judged first, by what the token says, whatever the id
        body = {"paths": ["/tape/mine/f"]}
        asked = [staging.ask(method, f"/api/v1/stage/{i}{call}", body, narrow) for i in (ident, GHOST)]
        assert [a.status_code for a in asked] == [403, 403]


def test_scopes_decide_about_each_call(staging):
    staging.on_tape("/tape/scope/f", b"scoped")
    ident = staging.stage("/tape/scope/f")
    body, files = {"paths": ["/tape/scope/f"]}, {"files": [{"path": "/tape/scope/f"}]}
    poll, read = staging.token("storage.poll:/"), staging.token("storage.read:/")
    other = staging.token("storage.stage:/other")
    ask = staging.ask
    assert ask("GET", f"/api/v1/stage/{ident}", token=poll).status_code == 200
    assert ask("POST", "/api/v1/archiveinfo", body, poll).json()[0].get("locality")
    assert ask("POST", "/api/v1/archiveinfo", body, read).json()[0].get("locality")
    assert "error" in ask("POST", "/api/v1/archiveinfo", body, other).json()[0]
    for token in (poll, read, other):
        answer = ask("POST", "/api/v1/stage", files, token)
        assert answer.status_code == 403
        assert "storage.stage:/scope/f" in answer.headers["www-authenticate"]
        assert ask("POST", f"/api/v1/stage/{ident}/cancel", body, token).status_code == 403
        assert ask("POST", f"/api/v1/release/{ident}", body, token).status_code == 403
        assert ask("DELETE", f"/api/v1/stage/{ident}", token=token).status_code == 404
    assert ask("GET", f"/api/v1/stage/{ident}", token=read).status_code == 404
    assert ask("GET", f"/api/v1/stage/{ident}", token=None).status_code == 401
    assert ask("GET", f"/api/v1/stage/{ident}", token="x.y.z").status_code == 401
    mixed = {"files": [{"path": "/tape/scope/f"}, {"path": "/tape/other/g"}]}
    answer = ask("POST", "/api/v1/stage", mixed, other)
    assert answer.status_code == 201
    place = f"/api/v1/stage/{answer.json()['requestId']}"
    own = {file["path"]: file.get("error", "") for file in ask("GET", place, token=other).json()["files"]}
    assert "does not allow" in own["/tape/scope/f"]
    bob = staging.token("storage.poll:/other", subject="bob")
    assert [f["path"] for f in ask("GET", place, token=bob).json()["files"]] == ["/tape/other/g"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"{}", b'{"files":[]}', b'{"files":{}}', b'{"files":[1]}', b'{"files":[{}]}',
        b'{"files":[{"path":7}]}', b'{"files":[{"path":"relative"}]}', b'{"files":[{"path":"/a\\u0000b"}]}',
        b'{"files":[{"path":"/a","diskLifetime":"soon"}]}', b'{"files":[{"path":"/a","diskLifetime":9}]}',
        b"[" * 100_000, b'{"files":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b"\xff\xfe", b'{"files":NaN}',
        b'{"files":[{"path":"/' + b"a" * 5000 + b'"}]}', b"9" * 5000, b'{"files":[{"path":"/\\ud800"}]}',
    ],
    ids=range(20),
)  # fmt: skip
def test_a_bad_body_is_refused_in_the_words_of_the_api(staging, body):
    answer = staging.ask("POST", "/api/v1/stage", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert (said["status"], said["title"]) == (400, "JSON Validation error")
    assert said["detail"]


def test_a_million_paths_are_too_many(staging):
    body = b'{"files":[' + b'{"path":"/t"},' * 1_000_000 + b"{}]}"
    began = time.monotonic()
    assert staging.ask("POST", "/api/v1/stage", content=body).status_code == 413
    assert time.monotonic() - began < 30
    assert staging.ask("GET", "/health", token=None).status_code == 200


def test_unknown_words_are_ignored(staging):
    staging.put("/site/extra", b"here")
    odd = {"someone.else": {"activity": 7}, "127.0.0.1": {"activity": ["x"], "more": {"a": [1]}}}
    ident = staging.stage("/site/extra", targetedMetadata=odd, colour="blue", diskLifetime=None)
    assert staging.done(ident) == {"/site/extra": "COMPLETED"}


SLOW = """
[listen]
drain = 5
[endpoints.tape]
store = "tape+file://{base}/tape"
tape = {{ buffer = 0, read_failures = 1 }}
"""


def test_a_stream_of_events_ends_when_its_server_stops(shared, tmp_path):
    (tmp_path / "doma.toml").write_text(SLOW.format(base=tmp_path))
    options = ("--config", tmp_path / "doma.toml", "--role", "issuer", "--role", "storage")
    system = type(shared)(tmp_path / "home", *options)
    system.everything = RIGHTS
    system.up()
    try:
        staging = Staging(system)
        staging.on_tape("/tape/f", b"is not read soon")
        ident = staging.stage("/tape/f")
        headers = {"Authorization": f"Bearer {staging.token()}"}
        url = f"{system.run['https']}/api/v1/stage/{ident}/events"
        with httpx.stream("GET", url, headers=headers, verify=system.access.tls(), timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: status"
            assert system.down() == 0
            list(lines)  # its end is told: a connection that is cut raises
    finally:
        system.down()
