"""``kill -9`` while files go to tape, come back, and are asked for: nothing lost, nothing twice."""

import random
import sqlite3
import threading
import time
from contextlib import suppress

import httpx
import pytest

RIGHTS = "storage.read:/ storage.modify:/ storage.stage:/"
FILES = 24

pytestmark = pytest.mark.fault


@pytest.fixture
def tape(start, tmp_path):
    """A system whose drives need some 50 ms for a file, with everything that clients do with it."""
    config = tmp_path / "doma.toml"
    config.write_text(
        f'[endpoints.tape]\nstore = "tape+file://{tmp_path}/tape"\n'
        "tape = { buffer = 0, drives = 2, mount_time = 0.02, bandwidth = 2000000, retry = 0.1,"
        " read_failures = 0.1, write_failures = 0.1, attempts = 50 }\n"
    )
    return start("home", "--config", config, "--role", "issuer", "--role", "storage")


def data_of(name):
    return random.Random(name).randbytes(50_000 + int(name) * 1000)


def names():
    return [f"{i:02d}" for i in range(FILES)]


def ask(system, method, path, body=None, **how):
    return system.ask(method, path, system.token(RIGHTS), json=body, **how)


def localities(system):
    body = {"paths": [f"/tape/d/{name}" for name in names()]}
    return [entry.get("locality") for entry in ask(system, "POST", "/api/v1/archiveinfo", body).json()]


def until(condition, seconds=45):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.1)


def status(system, ident):
    return ask(system, "GET", f"/api/v1/stage/{ident}").json()


def crash_some_times(system, rng, times, done):
    for _ in range(times):
        time.sleep(rng.uniform(0.05, 0.6))
        system.crash()
        system.up()
        if done():
            break


def on_cartridges(tmp_path):
    return sorted(path.name for path in (tmp_path / "tape" / "library").glob("V*/*"))


def put_all(system):
    token = system.token(RIGHTS)
    for name in names():
        assert system.ask("PUT", f"/tape/d/{name}", token, content=data_of(name)).status_code == 201


def test_killed_while_archiving_loses_nothing_and_writes_nothing_twice(tape, tmp_path):
    put_all(tape)
    crash_some_times(tape, random.Random(7), 3, lambda: set(localities(tape)) == {"TAPE"})
    until(lambda: set(localities(tape)) == {"TAPE"})
    written = on_cartridges(tmp_path)
    assert len(written) == FILES
    assert not any(name.startswith("new.") for name in written)


def test_killed_while_recalling_goes_on_with_the_request(tape, tmp_path):
    put_all(tape)
    versions = [ask(tape, "HEAD", f"/tape/d/{name}").headers["etag"] for name in names()]
    until(lambda: set(localities(tape)) == {"TAPE"})
    written = on_cartridges(tmp_path)
    files = [{"path": f"/tape/d/{name}", "diskLifetime": "PT1H"} for name in names()]
    answer = ask(tape, "POST", "/api/v1/stage", {"files": files})
    assert answer.status_code == 201
    ident = answer.json()["requestId"]
    crash_some_times(tape, random.Random(5), 3, lambda: "completedAt" in status(tape, ident))
    until(lambda: "completedAt" in status(tape, ident))
    assert {file["state"] for file in status(tape, ident)["files"]} == {"COMPLETED"}
    for name, version in zip(names(), versions, strict=True):
        answer = tape.ask("GET", f"/tape/d/{name}", tape.token(RIGHTS))
        assert answer.content == data_of(name)
        assert answer.headers["etag"] == version
    assert on_cartridges(tmp_path) == written
    assert localities(tape) == ["DISK_AND_TAPE"] * FILES


def test_a_request_is_taken_whole_or_not_at_all(tape, tmp_path):
    rng, taken = random.Random(11), []
    files = [{"path": f"/tape/none/{i}"} for i in range(3000)]
    for _ in range(2):
        end = threading.Event()
        place, token = tape.run["https"] + "/api/v1/stage", tape.token(RIGHTS, lifetime=3600)

        def submit(end=end, place=place, token=token):
            with suppress(httpx.HTTPError), httpx.Client(verify=tape.access.tls()) as client:
                head = {"Authorization": f"Bearer {token}"}
                while not end.is_set():
                    answer = client.post(place, json={"files": files}, headers=head, timeout=30)
                    taken.append(answer.json()["requestId"])

        client = threading.Thread(target=submit)
        client.start()
        time.sleep(rng.uniform(0.2, 1.0))
        tape.crash()
        end.set()
        client.join()
        tape.up()
    rows = sqlite3.connect(f"file:{tmp_path}/home/doma.db?mode=ro", uri=True)
    count = "SELECT request, count(*) FROM tape_request_files GROUP BY request"
    held = dict(rows.execute(count).fetchall())
    known = dict(rows.execute("SELECT id, files FROM tape_requests").fetchall())
    rows.close()
    assert held == known
    assert set(held.values()) == {len(files)}
    assert set(taken) <= set(known)
    for ident in known:
        until(lambda ident=ident: "completedAt" in status(tape, ident))
        assert {file["state"] for file in status(tape, ident)["files"]} == {"FAILED"}


def test_a_deleted_file_stays_deleted_whenever_the_system_is_killed(tape, tmp_path):
    rng = random.Random(3)
    put_all(tape)
    gone = []
    for turn in range(3):
        token, place = tape.token(RIGHTS), tape.run["https"]

        def remove(token=token, place=place, turn=turn):
            with suppress(httpx.HTTPError), httpx.Client(verify=tape.access.tls()) as client:
                for name in names()[turn::3]:
                    url, head = f"{place}/tape/d/{name}", {"Authorization": f"Bearer {token}"}
                    if client.delete(url, headers=head).status_code == 204:
                        gone.append(name)

        client = threading.Thread(target=remove)
        client.start()
        time.sleep(rng.uniform(0.01, 0.15))
        tape.crash()
        client.join()
        tape.up()
        for name in gone:
            assert tape.ask("HEAD", f"/tape/d/{name}", tape.token(RIGHTS)).status_code == 404
    left = [name for name in names() if ask(tape, "HEAD", f"/tape/d/{name}").status_code == 200]
    until(lambda: len(on_cartridges(tmp_path)) == len(left))
    until(lambda: {x for x in localities(tape) if x} <= {"TAPE"})
