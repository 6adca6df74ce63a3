"""Hostile functions, in both kinds of sandbox, as the user of the tests and as one without rights."""

import base64
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from doma.columns import sandbox, sandbox_seal
from doma.columns.function import PythonFunction
from doma.columns.remote import LocalFile
from doma.columns.sandbox import Sandbox
from doma.columns.sandbox_run import Isolation
from doma.columns.sink import open_sink
from doma.core.config import Columns
from doma.core.errors import BadQuery, DomaError, LimitExceeded
from tests.conftest import lack

REPO = Path(__file__).parents[2]
CMS = REPO / "src/doma/facility/data/cms_doublemuparked_100k.root"
LIMITS = {"memory": 512 << 20, "seconds": 40, "output": 32 << 20, "scratch": 8 << 20}


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def box(request):
    if why := lack(request.param):
        pytest.skip(why)
    made = Sandbox(Isolation(request.param, **LIMITS))
    try:
        made.warm()
        yield made
    finally:
        made.close()


@pytest.fixture
def run(box):
    """Run a function's body on the muons; its trees and what it printed."""
    data = LocalFile(CMS.as_uri(), str(CMS))

    def run(body, seconds=40, **facts):
        trees = {}
        box.isolation = replace(box.isolation, seconds=seconds)
        head = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        inner = textwrap.indent(textwrap.dedent(body), "    ")
        source = f"import os, socket, numpy as np\n{head}def run_query(f):\n{inner}\n"

        def feed(tree, table):
            trees.setdefault(tree, []).append(table)

        return trees, box.run(source, data, "muons.root", feed, lambda: None)

    yield run
    data.close()
    still_works(box)


def still_works(box):
    """Whatever a function did, the next one is served."""
    seen = []
    data = LocalFile(CMS.as_uri(), str(CMS))
    count = "numpy.array([uproot.open(f)['Events'].num_entries])"

    def feed(_, table):
        seen.extend(table.columns[""].to_list())

    box.run(f"def run_query(f):\n import numpy, uproot\n return {count}", data, "m.root", feed, lambda: None)
    data.close()
    assert seen == [100_000]


def refused(run, body, **facts):
    """The OSError of a body, as the function saw it."""
    trees, _ = run(
        f"try:\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\nexcept OSError as e:\n"
        "    return {type(e).__name__: np.array([e.errno or 0])}\nreturn {'it worked': np.zeros(1)}",
        **facts,
    )
    (name,) = trees
    assert name != "it worked"
    return name


FORBIDDEN = [
    "open('/etc/shadow').read()",
    "open('/etc/passwd').read()",
    "os.listdir('/home')",
    "open('/proc/1/environ').read()",
    "open('/proc/self/environ').read()",
    "os.fork()",
    "import subprocess; subprocess.run(['/bin/true'])",
    "os.execv('/bin/sh', ['sh'])",
    "os.posix_spawn('/bin/true', ['true'], {})",
    "os.setuid(0)",
    "os.setgroups([0])",
    "os.mknod('node', 0o600 | 0o060000, 0)",
    "os.chroot('.')",
    "os.symlink('/etc/shadow', '/usr/lib/x')",
    "os.kill(os.getppid() or 1, 9)",
    "os.killpg(0, 9)",
    "os.kill(-1, 9)",
    "os.memfd_create('x')",
    "os.setpriority(os.PRIO_USER, 0, 19)",
    "os.sched_setaffinity(os.getppid(), {0})",
    "socket.socket(socket.AF_UNIX)",
    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "socket.socket(socket.AF_VSOCK)",
    "socket.create_connection(('192.0.2.1', 80), 2)",
    "socket.create_connection(('1.1.1.1', 53), 2)",
    "socket.getaddrinfo('example.org', 80)",
    "import resource; resource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (1, 1))",
    "os.pidfd_open(1)",
    "open(np.__file__, 'a')",
    "open('/x', 'w')",
    "open('/tmp/../usr/lib/x', 'w')",
    "open('/dev/shm/x', 'w')",
    "open('/dev/vda', 'rb')",
    "open('/dev/mem', 'rb')",
    "os.truncate(np.__file__, 0)",
    "os.utime(np.__file__)",
    "os.chmod(np.__file__, 0o777)",
]


def test_what_a_function_may_not_do_fails_where_it_tries(run):
    trees, log = run(
        """
        worked = {"tried": np.zeros(1)}
        for body in bodies:
            try:
                exec(body, {"os": os, "socket": socket, "np": np})
            except OSError as e:
                print(body, repr(e))
            else:
                worked[body] = np.zeros(1)
        return worked
        """,
        bodies=FORBIDDEN,
    )
    assert list(trees) == ["tried"]
    assert len(log.splitlines()) == len(FORBIDDEN)


def test_the_home_and_folders_of_other_workers_cannot_be_seen(run, tmp_path):
    for place in (tmp_path / "home", Path("/tmp") / f"doma-python-{os.getpid()}-other"):
        place.mkdir(mode=0o755)
        try:
            (place / "secret").write_text("x")
            refused(run, "open(place + '/secret').read()", place=str(place))
            refused(run, "os.listdir(place)", place=str(place))
            refused(run, "open(place + '/new', 'w')", place=str(place))
        finally:
            shutil.rmtree(place)


def test_the_server_and_its_neighbours_cannot_be_reached(run):
    name = f"\0doma-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        refused(run, "socket.create_connection(('127.0.0.1', port), 2)", port=tcp.getsockname()[1])
        refused(run, "socket.socket(socket.AF_UNIX).connect(name)", name=name)
    for what in ("environ", "mem", "maps", "root/etc/passwd", "cwd"):
        refused(run, f"open('/proc/{os.getpid()}/{what}', 'rb').read(1)")


def test_tracing_and_kernel_interfaces_are_refused(run):
    calls = {"ptrace": 101, "mount": 165, "keyctl": 250, "bpf": 321, "userfaultfd": 323,
             "io_uring_setup": 425, "unshare": 272, "setns": 308, "clone3": 435,
             "process_vm_readv": 310, "perf_event_open": 298,
             "init_module": 175, "x32 getpid": 0x40000027, "a call of the future": 5000}  # fmt: skip
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    trees, _ = run(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        allowed = {}
        for name, number in calls.items():
            ctypes.set_errno(0)
            if libc.syscall(number, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38):
                allowed[name] = np.zeros(1)
        # clone with a new user namespace, and as a fork
        for flags in (0x10000011, 0x11):
            if (pid := libc.syscall(56, flags, 0, 0, 0, 0)) == 0:
                os._exit(0)
            if pid > 0:
                allowed[f"clone {flags:x}"] = np.zeros(1)
        return {"tried": np.zeros(1), **allowed}
        """,
        calls=calls,
    )
    assert list(trees) == ["tried"]


def test_a_function_knows_nothing_of_the_server(run, monkeypatch):
    monkeypatch.setenv("DOMA_SECRET", "hidden")
    _, log = run(
        """
        print(sorted(os.environ), os.getuid(), os.getgroups(), os.getcwd())
        import stat
        for fd in range(1024):
            try:
                print("fd", fd, stat.filemode(os.fstat(fd).st_mode)[0])
            except OSError:
                pass
        return np.zeros(1)
        """
    )
    assert "DOMA" not in log
    assert "BEARER" not in log
    kinds = {line.split()[1]: line.split()[2] for line in log.splitlines() if line.startswith("fd")}
    # nothing to read, two ends of a pipe, the socket of the results
    assert kinds == {"0": "c", "1": "p", "2": "p", "3": "s"}
    if os.geteuid() == 0:
        assert f" {0x70000000 + os.getpid()} []" in log


def test_the_work_folder_can_be_written_up_to_its_size_and_is_gone_afterwards(run, box):
    _, log = run("open('a', 'w').write('kept'); print(open('a').read(), os.listdir('.')); return np.zeros(1)")
    assert "kept ['a']" in log
    _, log = run("print(os.listdir('.')); return np.zeros(1)")
    assert "[]" in log
    with pytest.raises((BadQuery, LimitExceeded)):
        run("""
            import time
            for i in range(64):
                with open(f"{i}", "wb") as file:
                    file.write(bytes(1 << 20))
                time.sleep(0.05)
            return np.zeros(1)
        """)


def test_bombs_end_at_their_limit(run):
    with pytest.raises(LimitExceeded, match=r"more memory than 512 MiB"):
        run("x = []\nwhile True: x.append(np.ones(1 << 20))")
    with pytest.raises(BadQuery, match=r"thread|RuntimeError"):
        run("""
            import threading, time
            threading.stack_size(65536)
            for _ in range(5000):
                threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
        """)
    with pytest.raises(BadQuery, match=r"File too large|No space"):
        run("with open('x', 'wb') as f: f.truncate(10 << 30)")
    with pytest.raises(LimitExceeded, match="larger than 32 MiB"):
        run("return np.random.default_rng(1).random(8 << 20)")


def test_an_endless_loop_is_stopped_by_the_wall_clock_and_many_of_them_by_processor_time(run):
    begun = time.monotonic()
    with pytest.raises(LimitExceeded, match="did not finish in 2 s"):
        run("import time\nwhile True: time.sleep(1)", seconds=2)
    assert time.monotonic() - begun < 30
    with pytest.raises(LimitExceeded, match=r"did not finish in 2 s|processor time"):
        run("while True: pass", seconds=2)


def test_ignored_signals_and_left_threads_do_not_keep_a_run_alive(run):
    with pytest.raises(LimitExceeded):
        run(
            """
            import signal, time
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
        """,
            seconds=2,
        )
    trees, _ = run(
        "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); return np.zeros(3)"
    )
    assert list(trees) == ["servicex"]


def test_a_gigabyte_of_prints_leaves_its_last_64_kib(run):
    _, log = run(
        "for _ in range(1 << 10): os.write(1, b'x' * (1 << 20))\nprint('the end'); return np.zeros(1)"
    )
    assert len(log) <= 64 << 10
    assert log.endswith("the end\n")


def test_a_function_that_ends_its_process_fails_with_the_reason(run):
    with pytest.raises(BadQuery, match=r"exit code 0\) before it returned"):
        run("print('so long'); import sys; sys.stdout.flush(); os._exit(0)")
    with pytest.raises(BadQuery, match="SystemExit: 3"):
        run("raise SystemExit(3)")
    with pytest.raises(BadQuery, match="signal 11"):
        run("import ctypes; ctypes.string_at(1)")
    with pytest.raises(BadQuery, match="KeyboardInterrupt"):
        run("raise KeyboardInterrupt")
    with pytest.raises(BadQuery, match="RecursionError"):
        run("def again(): again()\nagain()")


def test_the_reason_is_the_last_line_of_the_traceback_and_the_log_holds_it_all(run):
    with pytest.raises(BadQuery, match=r"muparked_100k.root: ValueError: no such cut 7$") as failed:
        run("print('before'); raise ValueError('no such\\ncut \\x07'.replace(chr(7), '7'))")
    assert failed.value.detail["log"].startswith("before\nTraceback")
    assert 'File "<function>", line 3, in run_query' in failed.value.detail["log"]


@pytest.mark.parametrize(
    "frame",
    [
        "b'\\xff\\xff\\xff\\xff'",
        "b'\\x02\\0\\0\\0[]'",
        "b'\\x03\\0\\0\\0abc'",
        "b'\\x08\\0\\0\\0' + b'[' * 8",
        "b'\\x00\\xf0\\0\\0' + b'[' * 0xf000",
        "head({'tree': 'a', 'size': -1})",
        "head({'tree': 'a', 'size': 1.5})",
        "head({'tree': 'a', 'size': True})",
        "head({'tree': 'a', 'size': 1 << 60})",
        "head({'tree': '../../x\\n', 'size': 4}) + b'abcd'",
        "head({'tree': ['a'], 'size': 4}) + b'abcd'",
        "head({'tree': 'a', 'size': 4}) + b'abcd'",
        "head({'tree': 'a', 'size': 400}) + b'abcd'",
        "head({'tree': 'a', 'size': 64}) + os.urandom(64)",
        "head({'raised': {'a': 1}, 'memory': 'yes'})",
        "head({'broken': 5})",
        "head({})",
    ],
)
def test_a_function_that_takes_over_the_harness_gets_its_own_failure(run, frame):
    with pytest.raises(DomaError):
        run(f"""
            import json, struct
            def head(fields):
                text = json.dumps(fields).encode()
                return struct.pack('<I', len(text)) + text
            os.write(3, {frame})
            os._exit(0)
        """)


def test_bombs_in_the_result_are_not_opened(run):
    for make in (
        "pa.table({'x': np.zeros(4 << 20)}), pa.ipc.IpcWriteOptions(compression='zstd')",
        "pa.table({'x': pa.nulls(1 << 24)}), None",
        "pa.table({'x': pa.ListArray.from_arrays([0, 1 << 24], pa.nulls(1 << 24))}), None",
        "pa.table({'x': pa.FixedSizeListArray.from_arrays(pa.nulls(1 << 24), 1 << 24)}), None",
        "pa.table({'x': pa.array(['a', 'b']).dictionary_encode()}), None",
        "pa.table({'x': pa.RunEndEncodedArray.from_arrays([1 << 30], [1.0])}), None",
    ):
        with pytest.raises(BadQuery):
            run(f"""
                import json, struct, pyarrow as pa
                table, options = {make}
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
                    writer.write_table(table)
                body = sink.getvalue().to_pybytes()
                text = json.dumps({{'tree': 'a', 'size': len(body)}}).encode()
                os.set_blocking(3, True)
                sock = socket.socket(fileno=3)
                sock.sendall(struct.pack('<I', len(text)) + text + body)
                os._exit(0)
            """)


def test_links_in_the_work_folder_lead_the_server_nowhere(run, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("x")
    run("""
        try:
            os.symlink(place, "out")
        except OSError:
            pass
        return np.zeros(1)
    """, place=str(tmp_path))  # fmt: skip
    assert kept.read_text() == "x"


def test_hostile_requests_for_the_input_get_no_other_bytes(run, box):
    if box.isolation.kind != "bubblewrap":
        pytest.skip("the input is a file")
    trees, _ = run("""
        import http.client, urllib.parse
        parts = urllib.parse.urlsplit(f)
        got = []
        own = [(parts.path, f"bytes={x}") for x in ("99999999999-", "5-2", "-0", "0-3", "-4", "x")]
        other = [(p, "") for p in ("/", "/../etc/passwd", parts.path + "/x", "/x" * 40000)]
        for path, header in other + own:
            c = http.client.HTTPConnection(parts.netloc)
            c.request("GET", path, headers={"Range": header} if header else {})
            a = c.getresponse()
            body = a.read()
            got.append((a.status, len(body)) if a.status < 400 else (a.status, 0))
        return np.array(got)
    """)
    size = CMS.stat().st_size
    wanted = [[404, 0]] * 3 + [[414, 0]] + [[416, 0]] * 3 + [[206, 4]] * 2 + [[200, size]]
    assert trees["servicex"][0].columns[""].to_list() == wanted


def test_nothing_is_left_of_runs_when_their_worker_is_killed(box):
    if lack(box.isolation.kind):
        pytest.skip("no such sandbox")
    code = textwrap.dedent(f"""
        import sys
        from doma.columns.remote import LocalFile
        from doma.columns.sandbox import Sandbox
        from doma.columns.sandbox_run import Isolation
        box = Sandbox(Isolation({box.isolation.kind!r}, seconds=300))
        box.warm()
        source = "def run_query(f):\\n import time\\n open('x', 'w')\\n time.sleep(200)"
        data = LocalFile("file:///x", {str(CMS)!r})
        print(box._process.pid, flush=True)
        box.run(source, data, "x.root", print, lambda: print("tick", flush=True))
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO / "src"), *filter(None, sys.path)])}
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert worker.stdout is not None
    zygote = int(worker.stdout.readline())
    assert worker.stdout.readline() == "tick\n"
    family = _children(zygote)
    assert family
    worker.kill()
    worker.wait()
    worker.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(_lives, [zygote, *family])):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid):
    try:
        own = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in _children(child)]


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, which those of a test's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield name


def test_the_self_test_finds_a_sandbox_that_leaks(open_folder, monkeypatch):
    monkeypatch.setattr(sandbox, "_lacks_bubblewrap", lambda: "not now")
    if lack("landlock"):
        pytest.skip("no Landlock")
    from doma.columns import sandbox_view

    monkeypatch.setattr(sandbox_view, "DEVICES", (*sandbox_view.DEVICES, open_folder, "/etc/passwd"))
    why = sandbox._breaks_out(Isolation("landlock", **LIMITS), Path(open_folder))
    assert "reading the home, reading /etc/passwd" in why or "ModuleNotFoundError" in why
    assert sandbox.available(Columns(), Path(open_folder)) is None


ESSENCE = "may_not or cannot_be or kernel or knows_nothing or work_folder or bombs_end or when_their_worker"
"""What a second user tries again: the kernel's answers may differ, the harness's do not."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_all_of_this_holds_for_a_server_without_rights(kind):
    python = Path("/usr/bin") / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not python.exists():
        pytest.skip(f"{python}: an interpreter that everybody may run is needed")
    place = Path("/tmp") / f"doma-nobody-{kind}-{os.getpid()}"
    place.mkdir()
    place.chmod(0o777)
    paths = [str(REPO / "src"), *(p for p in sys.path if p.endswith("site-packages"))]
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(place),
        "HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={place}/t",
        "-k",
        f"{kind} and ({ESSENCE})",
        __file__,
    ]
    try:
        ran = subprocess.run(
            command, cwd=REPO, env=environment, user=65534, group=65534, extra_groups=[], capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert sandbox_seal.filtered()


def test_a_function_through_the_query_leaves_no_file_when_it_fails(tmp_path, box):
    text = base64.b64encode(
        b"def run_query(f):\n import numpy\n return {'a': numpy.zeros(3), 'b': 5}"
    ).decode()
    data = LocalFile(CMS.as_uri(), str(CMS))
    query = PythonFunction(text, box.isolation.text())
    with (
        pytest.raises(BadQuery, match="returned int for the tree 'b'"),
        open_sink(tmp_path / "o", "parquet") as sink,
    ):
        query.run(data, sink, 1 << 20, lambda _: None)
    data.close()
    assert not list(tmp_path.iterdir())
