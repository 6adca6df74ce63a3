"""gfal2's own tape calls, through its Python bindings: bring online, poll, release, abort, archive poll."""

import os
import subprocess
import textwrap
import time

import pytest

PYTHON = "/usr/bin/python3"
RIGHTS = "storage.read:/ storage.modify:/ storage.stage:/"

pytestmark = pytest.mark.client


@pytest.fixture(scope="module")
def tape(shared, tmp_path_factory):
    if subprocess.run([PYTHON, "-c", "import gfal2"], capture_output=True, check=False).returncode:
        pytest.skip("gfal2 is not installed; the Debian packages python3-gfal2 and gfal2-plugin-http have it")
    base = tmp_path_factory.mktemp("gfal2-tape")
    config = base / "doma.toml"
    config.write_text(
        f'[endpoints.site]\nstore = "file://{base}/site"\n'
        f'[endpoints.tape]\nstore = "tape+file://{base}/tape"\nfsync = false\n'
        "tape = { buffer = 0, drives = 2, mount_time = 0.2 }\n"
    )
    system = type(shared)(base / "home", "--config", config, "--role", "issuer", "--role", "storage")
    system.up()
    yield system
    assert system.down() == 0, system.log


def gfal(system, script, *paths):
    """Run a script over gfal2 with ``ctx`` and ``urls``; what it prints."""
    place = system.run["https"].replace("https://", "davs://")
    head = f"""
        import errno, gfal2, json, time
        gfal2.set_verbose(gfal2.verbose_level.warning)
        ctx = gfal2.creat_context()
        ctx.set_opt_string("X509", "CA_PATH", {str(system.home / "tls" / "hashed")!r})
        urls = {[place + path for path in paths]!r}
    """
    environment = os.environ | {
        "BEARER_TOKEN": system.token(RIGHTS),
        "X509_CERT_DIR": str(hashed(system)),
        "PYTHONPATH": "",
    }
    program = textwrap.dedent(head) + textwrap.dedent(script)
    done = subprocess.run(
        [PYTHON, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.split()


def hashed(system):
    """The system's CA under the name by which OpenSSL finds it in a directory."""
    folder, ca = system.home / "tls" / "hashed", system.run["ca_file"]
    folder.mkdir(exist_ok=True)
    words = ["openssl", "x509", "-noout", "-hash", "-in", ca]
    name = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    link = folder / f"{name}.0"
    if not link.exists():
        link.symlink_to(ca)
    return folder


def on_tape(system, path, data):
    token = system.token(RIGHTS)
    assert system.ask("PUT", path, token, content=data).status_code in {201, 204}
    for _ in range(600):
        answer = system.ask("POST", "/api/v1/archiveinfo", token, json={"paths": [path]})
        if answer.json()[0].get("locality") == "TAPE":
            return
        time.sleep(0.05)
    pytest.fail("the file does not go to tape")


def test_gfal2_finds_the_api_and_the_status_of_a_file(tape):
    on_tape(tape, "/tape/status/f", b"status")
    said = gfal(
        tape,
        """
        print(ctx.getxattr(urls[0], "taperestapi.version"))
        print(ctx.getxattr(urls[0], "taperestapi.uri"))
        print(ctx.getxattr(urls[0], "user.status"))
        """,
        "/tape/status/f",
    )
    assert said == ["v1", tape.run["https"] + "/api/v1", "NEARLINE"]


def test_gfal2_brings_a_file_online_reads_and_releases_it(tape):
    on_tape(tape, "/tape/online/f", b"brought online")
    said = gfal(
        tape,
        """
        code, token = ctx.bring_online(urls[0], 3600, 600, True)
        print(code, bool(token))
        while not ctx.bring_online_poll(urls[0], token):
            time.sleep(0.05)
        print(ctx.getxattr(urls[0], "user.status").replace(" ", ""))
        print(ctx.open(urls[0], "r").read(100).replace(" ", "_"))
        print(ctx.release(urls[0], token))
        """,
        "/tape/online/f",
    )
    assert said == ["0", "True", "ONLINE_AND_NEARLINE", "brought_online", "0"]


def test_gfal2_brings_a_list_online_and_hears_of_each_file(tape):
    for name in ("a", "b"):
        on_tape(tape, f"/tape/list/{name}", name.encode() * 1000)
    said = gfal(
        tape,
        """
        errors, token = ctx.bring_online(urls, 3600, 600, True)
        print(*[e is None for e in errors])
        while any(e is not None and e.code == errno.EAGAIN for e in ctx.bring_online_poll(urls, token)):
            time.sleep(0.05)
        print(*["ok" if e is None else e.message.split()[-1] for e in ctx.bring_online_poll(urls, token)])
        print(*[e is None for e in ctx.release(urls[:2], token)])
        """,
        "/tape/list/a",
        "/tape//list/b",
        "/tape/list/none",
    )
    assert said == ["True", "True", "True", "ok", "ok", "directory", "True", "True"]


def test_gfal2_sees_when_a_file_is_archived(tape):
    token = tape.token(RIGHTS)
    assert tape.ask("PUT", "/tape/archive/f", token, content=b"archive me").status_code == 201
    said = gfal(
        tape,
        """
        while not ctx.archive_poll(urls[0]):
            time.sleep(0.05)
        print("archived")
        print(*["ok" if e is None else "error" for e in ctx.archive_poll(urls)])
        """,
        "/tape/archive/f",
        "/tape/archive/none",
    )
    assert said == ["archived", "ok", "error"]


def test_gfal2_aborts_and_releases_without_an_id(tape):
    on_tape(tape, "/tape/abort/f", b"abort")
    said = gfal(
        tape,
        """
        errors, token = ctx.bring_online(urls, 3600, 600, True)
        print(*[e is None for e in ctx.abort_bring_online(urls, token)])
        print(ctx.release(urls[0], ""))
        """,
        "/tape/abort/f",
    )
    assert said == ["True", "0"]
