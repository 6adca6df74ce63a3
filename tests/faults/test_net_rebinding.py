"""Names whose address changes between judging and connecting: with a real resolver, for a whole system."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tests.faults.rebinding_world as world

READS = ("cache", "cache redirect", "cache leaving")
COPIES = ("pull", "pull redirect", "push")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What happened in the world; its resolver asks the world's own name server."""
    if shutil.which("bwrap") is None:
        pytest.skip("no bubblewrap here to make a network of our own")
    base = tmp_path_factory.mktemp("world")
    command = [
        "bwrap", "--unshare-user", "--unshare-net", "--unshare-pid", "--die-with-parent",
        "--cap-add", "CAP_NET_BIND_SERVICE", "--dev-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/run",
    ]  # fmt: skip
    for name, text in (("resolv.conf", "nameserver 127.0.0.1\n"), ("nsswitch.conf", "hosts: files dns\n")):
        if not (Path("/etc") / name).exists():
            pytest.skip(f"no /etc/{name} here to put another one over")
        (base / name).write_text(text)
        command += ["--ro-bind", str(base / name), f"/etc/{name}"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a network of one's own")
    program = [*command, sys.executable, "-m", world.__name__, str(base)]
    root = Path(world.__file__).parents[2]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_connection_ends_at_an_address_that_was_not_judged(told):
    assert told["reached"] == []
    assert told["code"] == 0, told["log"]
    assert all(told["asked"][f"moving-{kind}.test"] == 1 for kind in world.KINDS), (
        "asked once, used as answered"
    )


@pytest.mark.parametrize("kind", world.KINDS)
def test_an_origin_is_read_at_the_address_that_was_judged_or_refused(told, kind):
    found = told["found"]
    for what in READS:
        status, good = found[f"{what} {kind}"]
        # one that closes after each answer is looked up again, and may be inside by then
        assert (good, status) in {(True, 200), (what == "cache leaving", 403)}, what
    for what in ("cache inner", "cache redirect inner"):
        assert found[f"{what} {kind}"] == [403, True], what


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_copy_goes_to_the_address_that_was_judged_or_is_refused(told, kind):
    found = told["found"]
    for what in COPIES:
        assert found[f"{what} {kind}"] == [202, True], what
    for what in ("pull inner", "pull redirect inner", "push inner"):
        assert found[f"{what} {kind}"] == [403, True], what
