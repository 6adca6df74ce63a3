"""The life of a system: started, looked at, refused a twin, killed, taken up again, stopped."""

import base64
import ctypes
import json
import os
import random
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

CREATED, MODIFIED, MOVED_IN, GONE = 0x100, 0x2, 0x80, 0x200


class Watch:
    """What happens to the names in a folder, in order (inotify)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, bytes(folder), CREATED | MODIFIED | MOVED_IN | GONE) > 0

    def events(self) -> list[tuple[str, int]]:
        data, found = os.read(self._fd, 1 << 20), []
        os.close(self._fd)
        while data:
            _, mask, _, size = struct.unpack_from("iIII", data)
            found.append((data[16 : 16 + size].rstrip(b"\0").decode(), mask))
            data = data[16 + size :]
        return found


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return decoded


def test_run_json_appears_in_one_rename_after_everything_it_names_and_all_of_it_answers(tmp_path, start):
    (tmp_path / "home").mkdir()
    watch = Watch(tmp_path / "home")
    system = start()
    events = watch.events()
    assert [mask for name, mask in events if name == "run.json"] == [MOVED_IN]
    order = [name for name, mask in events if mask == MOVED_IN]
    assert order.index("run.json") > max(order.index(name) for name in ("issuer", "port", "token"))
    # at the first try, the moment it is there
    services = system.run["services"]
    discovery = "/.well-known/openid-configuration"
    assert system.ask("GET", services["issuer"] + discovery).json()["issuer"] == services["issuer"]
    for name in ("dashboard", "metrics"):
        assert system.ask("GET", services[name], None).status_code == 200, name
    assert system.ask("GET", services["servicex"] + "/servicex").json()["app-version"]
    assert system.ask("GET", services["events"], None).status_code == 401
    for name in ("site", "cache", "results"):
        answer = system.ask("PROPFIND", f"/{name}/", system.admin(), {"Depth": "0"})
        assert answer.status_code == (403 if name == "results" else 207), name
    system.put("/site/a.parquet", Path("tests/data/Run2012B_SingleMu-1000.parquet").read_bytes())
    assert system.scan("/site/a.parquet", ()).num_rows == 1000


def test_run_json_has_the_keys_that_others_rely_on(shared):
    run, port = shared.run, shared.run["https"].rpartition(":")[2]
    assert set(run) == {"pid", "version", "url", "https", "ca_file", "token_file", "endpoints", "services"}
    assert (run["pid"], run["url"]) == (shared.pid, f"http://127.0.0.1:{port}")
    assert set(run["endpoints"]) == {"site", "cache", "data", "results"}
    assert set(run["services"]) >= {"issuer", "servicex", "flight", "dashboard", "metrics"}
    for name, doors in run["endpoints"].items():
        assert doors["https"] == f"https://127.0.0.1:{port}/{name}"
        assert doors["http"] == f"http://127.0.0.1:{port}/{name}"
    token = Path(run["token_file"]).read_text().strip()
    bearer = {"Authorization": f"Bearer {token}", "Depth": "0"}
    assert (
        httpx.request("PROPFIND", run["endpoints"]["site"]["http"] + "/", headers=bearer).status_code == 207
    )
    assert shared.ask("PROPFIND", "/site/", token, {"Depth": "0"}).status_code == 207
    assert claims(token)["scope"] == "storage.read:/ storage.modify:/ storage.stage:/ doma.admin"


def test_everything_in_the_home_is_its_owners_alone(shared):
    private = {"token", "run.json", "doma.db", "issuer", "ca.key", "server.key", "rs256.pem", "es256.pem"}
    shared.put("/site/mode/x", b"x")
    for path in [shared.home.path, *shared.home.path.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.name in private:
            assert mode == 0o600, path
        else:
            assert mode & 0o022 == 0, path
    assert {p.name for p in shared.home.path.rglob("*")} >= private


@pytest.mark.parametrize("as_json", [False, True])
def test_a_second_up_is_refused_with_the_pid_of_the_first(shared, command, as_json):
    refused = command("up", "--home", shared.home.path, *(["--json"] if as_json else []))
    assert (refused.code, refused.out) == (73, "")
    if as_json:
        told = json.loads(refused.line)
        assert (told["code"], told["facts"]) == ("already-running", {"pid": shared.pid})
    else:
        assert f"already running with pid {shared.pid}" in refused.line
    assert shared.ask("GET", "/health", None).json()["status"] == "ok"


def test_what_was_killed_comes_back_on_its_port_with_its_files_and_its_tokens_valid(start, said):
    system = start("home", "--role", "issuer", "--role", "storage", "--role", "columns")
    before, old, workers = system.run, system.token(), system.workers()
    admin = system.admin()
    system.put("/site/deep/kept.bin", b"kept" * 1000)
    assert workers
    system.crash()
    assert said("status", "--home", system.home.path)[0] == 75
    assert said("down", "--home", system.home.path) == (0, f"nothing runs in {system.home.path}\n", "")
    system.up()
    assert (system.run["https"], system.run["services"]["issuer"]) == (
        before["https"],
        before["services"]["issuer"],
    )
    assert system.run["pid"] != before["pid"]
    for token in (old, admin):
        assert system.ask("GET", "/site/deep/kept.bin", token).content == b"kept" * 1000
    for pid in workers:
        assert not Path(f"/proc/{pid}").exists() or "doma" not in Path(f"/proc/{pid}/cmdline").read_text()


def test_the_admin_token_is_renewed_and_down_waits_for_no_idle_connection_or_stream(tmp_path, start, said):
    (tmp_path / "home").mkdir(mode=0o700)
    # far beyond the patience of 'down': whoever is waited for makes it fail
    (tmp_path / "home" / "doma.toml").write_text(
        "[listen]\ndrain = 3600\nidle_timeout = 3600\n[auth]\nlifetime = 2\n"
    )
    system = start("home", "--role", "issuer", "--role", "web")
    assert system.run["endpoints"] == {}
    first = system.admin()
    host, port = system.run["https"].removeprefix("https://").split(":")
    silent = socket.create_connection((host, int(port)))
    assert system.ask("GET", "/health", None).status_code == 200  # and its connection stays open
    headers = {"Authorization": f"Bearer {system.token()}"}
    with (
        silent,
        httpx.Client(base_url=system.run["https"], verify=system.access.tls(), headers=headers) as http,
        http.stream("GET", "/events") as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("retry")
        while system.admin() == first:  # the admin token is renewed in place, before it expires
            time.sleep(0.05)
        assert system.ask("GET", "/events?last=x", system.admin()).status_code == 400, (
            "known, and told what is wrong"
        )
        assert said("down", "--home", system.home.path)[0] == 0
        assert not [line for line in lines if line.startswith("data")], "it ended, with nothing more to say"
    assert "Traceback" not in system.log


OWNER = """
import sys
from pathlib import Path
from doma.app.child import Child
from doma.app.home import Home
child = Child(Home(Path(sys.argv[1])), ["--role", "issuer", "--role", "storage"])
child.start()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_system_does_not_outlive_the_killed_program_that_started_it(tmp_path):
    home = tmp_path / "home"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        pid = int(owner.stdout.readline())
        ended = os.pidfd_open(pid)
        owner.kill()
    try:
        gone, _, _ = select.select([ended], [], [], 60)
        assert gone, "the system lives on"
        assert not (home / "run.json").exists()  # it ended in good order
    finally:
        if not gone:
            signal.pidfd_send_signal(ended, signal.SIGKILL)
        os.close(ended)


def test_down_lets_a_running_download_end_and_leaves_nothing_running(start, said):
    system = start("home", "--role", "issuer", "--role", "storage", "--role", "columns")
    size = 24 << 20  # more than the sockets of both sides hold
    content = random.Random(1).randbytes(1 << 20)
    with (system.home / "site" / "big.bin").open("wb") as file:
        for _ in range(size >> 20):
            file.write(content)
    workers = system.workers()
    place = system.run["https"].removeprefix("https://").split(":")
    with (
        socket.create_connection((place[0], int(place[1])), timeout=60) as plain,
        system.access.tls().wrap_socket(plain, server_hostname=place[0]) as tls,
    ):
        ask = f"GET /site/big.bin HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {system.token()}\r\n\r\n"
        tls.sendall(ask.encode())
        head, _, first = tls.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        stopped: list[tuple[int, str, str]] = []
        down = threading.Thread(target=lambda: stopped.append(said("down", "--home", system.home.path)))
        down.start()
        deadline = time.monotonic() + 30
        while "stopping" not in system.log:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        received, position = bytearray(first), 0
        while position + len(received) < size:
            data = tls.recv(1 << 20)
            assert data, "cut"
            received += data
            while len(received) >= 1 << 20:
                assert received[: 1 << 20] == content
                del received[: 1 << 20]
                position += 1 << 20
        down.join()
    assert stopped == [(0, f"stopped pid {system.pid}\n", "")]
    assert system.down() == 0
    assert not (system.home / "run.json").exists()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert said("down", "--home", system.home.path) == (0, f"nothing runs in {system.home.path}\n", "")
    assert "Traceback" not in system.log


def test_status_doctor_and_config_speak_json(shared, said):
    home = shared.home.path
    code, out, _ = said("status", "--home", home, "--json")
    found = json.loads(out)
    assert (code, found["pid"], found["health"]["status"]) == (0, shared.pid, "ok")
    assert found["cache"]["size"] == 20 << 30
    code, out, _ = said("doctor", "--home", home, "--json")
    checks = {check["check"]: check for check in json.loads(out)}
    assert code == 0
    assert checks["running system"]["state"] == checks["home"]["state"] == "ok"
    assert "admin token" in checks["running system"]["text"]
    code, out, _ = said("config", "--home", home, "--json")
    assert (code, json.loads(out)["listen"]["drain"]) == (0, 30)


def test_status_doctor_and_config_speak_to_people(shared, said):
    home = shared.home.path
    code, out, _ = said("status", "--home", home)
    assert code == 0
    assert shared.run["https"] in out
    assert said("doctor", "--home", home)[0] == 0
    code, out, _ = said("config", "--home", home)
    assert "listen.idle_timeout" in out


def test_doctor_names_what_is_wrong_and_exits_so(tmp_path, said):
    home = tmp_path / "open"
    home.mkdir(mode=0o755)
    (home / "doma.toml").write_text("[cache]\nsice = 1\n")
    code, out, err = said("doctor", "--home", home, "--json")
    states = {c["check"]: c for c in json.loads(out)}
    assert states["home"]["state"] == states["configuration"]["state"] == "problem"
    assert f"chmod 700 {home}" in states["home"]["text"]
    assert "did you mean size" in states["configuration"]["text"]
    assert code != 0
    assert json.loads(err)["detail"].startswith("doctor found a problem")


def test_doctor_names_a_home_that_cannot_be_and_one_that_is_not_yet(tmp_path, said):
    (tmp_path / "file").write_text("x")
    for home, state, words in (
        (tmp_path / "file" / "home", "problem", f"{tmp_path / 'file'} is no folder"),
        (tmp_path / "new", "ok", "'doma up' makes it"),
    ):
        code, out, _ = said("doctor", "--home", home, "--json")
        (found,) = [c for c in json.loads(out) if c["check"] == "home"]
        assert (found["state"], code == 0) == (state, state == "ok")
        assert words in found["text"]
    assert not (tmp_path / "new").exists()


def test_a_token_is_alone_on_its_line_and_is_what_was_asked_for(shared, said):
    code, out, err = said(
        "token", "--home", shared.home.path, "--scope", "storage.read:/ storage.modify:/x", "--audience",
        "https://se.example", "--audience", "https://other.example", "--group", "/cms/production", "--group",
        "/cms", "--lifetime", "10m", "--subject", "ada",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    found = claims(line)
    assert found["scope"] == "storage.read:/ storage.modify:/x"
    assert found["aud"] == ["https://se.example", "https://other.example"]
    assert found["wlcg.groups"] == ["/cms/production", "/cms"]
    assert (found["sub"], found["exp"] - found["iat"], found["wlcg.ver"]) == ("ada", 600, "1.0")
    assert found["iss"] == shared.run["services"]["issuer"]


def test_a_token_covers_its_path_and_no_other(shared, said):
    shared.put("/site/cover/x/1", b"1")
    shared.put("/site/cover/xy/1", b"1")
    code, out, _ = said("token", "--home", shared.home.path, "--scope", "storage.read:/cover/x")
    token = out.strip()
    assert code == 0
    assert claims(token)["aud"] == shared.run["https"]
    assert shared.ask("GET", "/site/cover/x/1", token).status_code == 200
    assert shared.ask("GET", "/cache/cover/x/1", token).status_code == 200
    assert shared.ask("GET", "/site/cover/xy/1", token).status_code == 403
    assert shared.ask("PUT", "/site/cover/x/1", token, content=b"2").status_code == 403


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--scope", "storage.read"), 64, "storage.read"),
        (("--scope", "storage.read:/a/../b"), 64, "/a/../b"),
        (("--scope", "storage.read:/", "--lifetime", "soon"), 64, "'soon'"),
        (("--scope", "storage.read:/", "--lifetime", "0"), 64, "'0'"),
        (("--scope", "storage.read:/", "--group", "cms"), 64, "cms"),
        (("--scope", "storage.read:/", "--subject", "a\nb"), 64, "subject"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused_in_one_line(shared, said, options, code, words):
    found, out, err = said("token", "--home", shared.home.path, *options)
    assert (found, out) == (code, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_home_where_nothing_ever_ran_says_what_to_start(tmp_path, said):
    for verb, *options in (("token", "--scope", "storage.read:/"), ("status",)):
        code, out, err = said(verb, "--home", tmp_path / "new", *options)
        assert (code, out) == (75, "")
        assert f"doma up --home {tmp_path / 'new'}" in err
    assert not (tmp_path / "new").exists()


def test_a_folder_given_as_data_is_served_and_never_written(shared, tmp_path_factory):
    folder = shared.home.path.parent / "data"
    before = sorted(folder.rglob("*"))
    assert shared.ask("GET", "/data/kept.txt").content == b"kept"
    for method, path in (("PUT", "new"), ("PUT", "kept.txt"), ("DELETE", "kept.txt"), ("MKCOL", "d")):
        answer = shared.ask(method, f"/data/{path}", content=b"x" if method == "PUT" else None)
        assert answer.status_code in {403, 405}, (method, path)
        assert "read-only" in answer.text
    assert sorted(folder.rglob("*")) == before
    assert (folder / "kept.txt").read_bytes() == b"kept"


def test_help_is_quick_to_load():
    """Nothing of the scientific stack, no server, no database is imported for it."""
    probe = (
        "import sys\nfrom doma.cli import main\nsys.argv=['doma','--help']\ntry: main()\n"
        "except SystemExit: pass\n"
        "heavy={'numpy','pyarrow','uproot','awkward','fastapi','sqlalchemy','httpx'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out
