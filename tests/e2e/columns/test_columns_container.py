"""Experiment containers: generated code run by each runner; Apptainer and the API server are stand-ins."""

import http.server
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import uproot

from doma.columns.container import ContainerQuery, allowed, topcp
from doma.columns.query import compile_query
from doma.columns.remote import LocalFile
from doma.columns.sink import open_sink
from doma.core.config import Container
from doma.core.errors import BadQuery, LimitExceeded, ServiceUnavailable

CMS = Path(__file__).parents[3] / "src/doma/facility/data/cms_doublemuparked_100k.root"
SELECTION = json.dumps({"reco": "Cut: 40", "parton": None, "max_events": -1, "no_systematics": True})
TRANSFORM = """
import sys, uproot
muons = uproot.open(sys.argv[1])["Events"].arrays(["nMuon", "Muon_pt"], entry_stop=int(sys.argv[3]))
with uproot.recreate(sys.argv[2]) as file:
    file.mktree("reco", {"n": "int64", "pt": "var * float32"})
    file["reco"].extend({"n": muons.nMuon.to_numpy().astype("int64"), "pt": muons.Muon_pt})
"""


@pytest.fixture
def generator(tmp_path):
    """A program of the site: makes the transformer of a selection, or refuses it."""
    path = tmp_path / "generator"
    path.write_text(f"""#!{sys.executable}
import json, pathlib, sys
selection, folder = json.load(sys.stdin), pathlib.Path(sys.argv[2])
assert sys.argv[1] == "topcp"
if selection["reco"] == "bad":
    sys.exit("reco.yaml: no such block")
(folder / "transform.py").write_text({TRANSFORM!r})
(folder / "transform_single_file.sh").write_text('''
set -e
echo "transforms $1 as $3" "secret=$DOMA_SECRET"
{{{{EXTRA}}}}
exec "{sys.executable}" "$(dirname "$0")/transform.py" "$1" "$2" 100
'''.replace("{{{{EXTRA}}}}", selection.get("parton") or ""))
""")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def muons():
    data = LocalFile(CMS.as_uri(), str(CMS))
    yield data
    data.close()


def delivered(settings, data, out, selection=SELECTION, format_="parquet"):
    query = compile_query("topcp", selection, settings.model_dump_json())
    with open_sink(out, format_) as sink:
        columns = query.run(data, sink, 1 << 20, lambda _: None)
        sink.close()
    return columns, query.log


def check(out):
    table = pq.read_table(out)
    with uproot.open({CMS: "Events"}) as tree:
        truth = tree.arrays(["nMuon", "Muon_pt"], entry_stop=100)
    assert table["n"].to_pylist() == truth.nMuon.to_list()
    assert table["pt"].to_pylist() == truth.Muon_pt.to_list()


def test_generated_code_runs_without_an_image_and_its_trees_are_delivered(
    generator, muons, tmp_path, monkeypatch
):
    monkeypatch.setenv("DOMA_SECRET", "hidden")
    settings = Container(generator=generator, runner="command", volume=str(tmp_path))
    columns, log = delivered(settings, muons, tmp_path / "out")
    assert {"n", "pt"} <= set(columns)
    assert "as root-file secret=\n" in log
    check(tmp_path / "out")
    delivered(settings, muons, tmp_path / "out.root", format_="root-file")
    with uproot.open({tmp_path / "out.root": "reco"}) as tree:
        assert tree.num_entries == 100
    assert not list(tmp_path.glob("doma-container-*"))


@pytest.mark.parametrize(
    ("extra", "kind", "said"),
    [
        ("echo no such object >&2; exit 3", BadQuery, "exit code 3: no such object"),
        ("exit 0", BadQuery, "wrote no output"),
        ('ln -s /etc/passwd "$2"; exit 0', BadQuery, "wrote no output"),
        ('echo text > "$2"; exit 0', BadQuery, "cannot be read"),
        ("sleep 60 & sleep 60", LimitExceeded, "not finished after 1 s"),
        ("kill -9 $$", BadQuery, "exit code 137"),
    ],
)
def test_a_transformer_that_fails_says_why_and_leaves_nothing(generator, muons, tmp_path, extra, kind, said):
    settings = Container(
        generator=generator, runner="command", volume=str(tmp_path), timeout=1 if "sleep" in extra else 60
    )
    selection = json.dumps({"reco": "x", "parton": extra})
    with pytest.raises(kind, match=said) as failed:
        delivered(settings, muons, tmp_path / "out", selection)
    assert failed.value.detail.get("log") is not None or "cannot be read" in said
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("doma-container-*"))


def test_what_the_generator_refuses_is_the_users_to_mend_and_a_missing_one_the_sites(
    generator, muons, tmp_path
):
    settings = Container(generator=generator, runner="command")
    with pytest.raises(BadQuery, match=r"refuses it: reco.yaml: no such block"):
        delivered(settings, muons, tmp_path / "out", '{"reco": "bad"}')
    with pytest.raises(ServiceUnavailable, match="cannot be run"):
        delivered(Container(generator="/nonexistent", runner="command"), muons, tmp_path / "out")
    with pytest.raises(ServiceUnavailable, match=r"made no transform_single_file\.sh"):
        delivered(Container(generator="true", runner="command"), muons, tmp_path / "out")
    with pytest.raises(LimitExceeded, match="takes files up to 10"):
        delivered(Container(generator=generator, runner="command", input_size=10), muons, tmp_path / "out")
    with pytest.raises(ServiceUnavailable, match="runs no containers"):
        compile_query("topcp", SELECTION).run(muons, None, 1, print)


def _runs(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_worker_that_is_killed_takes_the_program_it_ran_with_it(tmp_path, program):
    code = f"""
from pathlib import Path
from doma.columns.container_run import run_process
script = "echo $$ > pids; sleep 300 & echo $! >> pids; echo end >> pids; wait"
run_process(["bash", "-c", script], Path({str(tmp_path)!r}), 300.0)
"""
    paths = os.pathsep.join([str(Path(__file__).parents[3] / "src"), *filter(None, sys.path)])
    worker = program([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 50
    pids = tmp_path / "pids"
    while not (pids.exists() and pids.read_text().endswith("end\n")):
        assert worker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.wait()
    for pid in pids.read_text().split()[:2]:
        while _runs(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ("", "empty"),
        ("reco: x", "JSON object"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "JSON object"),
        ('{"reco": 5}', "reco: str or null"),
        ('{"reco": "x", "max_events": true}', "max_events: int"),
        ('{"reco": "x", "max_events": -2}', "-1, for all"),
        ('{"reco": "x", "other": 1}', "no key 'other'"),
        ('{"reco": null}', "one of reco"),
    ],
)
def test_topcp_selections_are_checked_before_anything_runs(selection, said):
    with pytest.raises(BadQuery, match=said):
        compile_query("topcp", selection)


def test_images_are_restricted_to_prefixes_part_by_part():
    settings = Container(image="reg.org/own:1", images=("reg.org/atlas", "/cvmfs/images/"))
    assert allowed("reg.org/own:1", settings) == "reg.org/own:1"
    assert allowed("/cvmfs/images/a.sif", settings) == "/cvmfs/images/a.sif"
    for image in (
        "reg.org/atlasx/a",
        "other.org/a",
        "/cvmfs/images/../../etc",
        "--fakeroot",
        "reg.org/atlas/a b",
        "",
    ):
        with pytest.raises(BadQuery):
            allowed(image, settings)
    with pytest.raises(BadQuery, match="may not run here"):
        ContainerQuery("topcp", '{"reco": "x", "image": "evil.org/a"}', settings.model_dump_json())
    assert topcp(SELECTION)["no_systematics"] is True
    digests = {
        ContainerQuery("topcp", json.dumps({"reco": "x", "image": image}), settings.model_dump_json()).digest
        for image in ("reg.org/atlas/a:1", "reg.org/atlas/a:2")
    }
    assert len(digests) == 2


def test_apptainer_gets_three_folders_no_network_no_home_and_no_environment(
    generator, muons, tmp_path, monkeypatch
):
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(f"""#!{sys.executable}
import json, os, subprocess, sys
given = sys.argv[1:]
json.dump([given, dict(os.environ)], open({str(tmp_path / "asked")!r}, "w"))
at = given.index("site/image.sif")
binds = dict(reversed(b.split(":")[:2]) for a, b in zip(given, given[1:]) if a == "--bind")
def inside(word):
    return next((place + word[len(b):] for b, place in binds.items() if word.startswith(b + "/")), word)
sys.exit(subprocess.call([inside(w) for w in given[at + 1:]]))
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("APPTAINERENV_SECRET", "hidden")
    delivered(Container(generator=generator, image="site/image.sif"), muons, tmp_path / "out")
    check(tmp_path / "out")
    given, environment = json.loads((tmp_path / "asked").read_text())
    assert given[0] == "exec"
    assert {"--containall", "--cleanenv", "--no-home", "--no-privs", "--net"} <= set(given)
    assert given[given.index("--network") + 1] == "none"
    assert sorted(b.partition(":")[2] for a, b in itertools.pairwise(given) if a == "--bind") == [
        "/generated:ro",
        "/input:ro",
        "/output:rw",
    ]
    assert given[-5:] == [
        "bash",
        "/generated/transform_single_file.sh",
        "/input/cms_doublemuparked_100k.root",
        "/output/result.root",
        "root-file",
    ]
    assert "APPTAINERENV_SECRET" not in environment


class Cluster:
    """An API server that runs jobs as processes, on the folders that the volume's sub-paths name."""

    def __init__(self, volume, token):
        self.jobs, self.asked, self.volume, self.failures = {}, [], volume, 0
        cluster = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.answer()

            do_GET = do_DELETE = do_POST

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                cluster.asked.append(f"{self.command} {self.path}")
                good = self.headers["Authorization"] == f"Bearer {token}"
                status, text = (
                    cluster.does(self.command, self.path, body) if good else (401, '{"kind": "Status"}')
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def does(self, method, path, body):
        place, _, query = path.partition("?")
        if method == "POST":
            job = json.loads(body)
            self.jobs[job["metadata"]["name"]] = (job, self.start(job))
            return 201, body.decode()
        if self.failures:
            self.failures -= 1
            return 503, "etcd is away"
        if place.startswith("/api/v1/namespaces/hep/pods"):
            return self.pods(place, query)
        name = place.rpartition("/")[2]
        if method == "DELETE":
            self.end(self.jobs.pop(name)[1])
            return 200, "{}"
        if name not in self.jobs:
            return 404, "not found"
        job, process = self.jobs[name]
        code = process.poll()
        kind = {None: [], 0: [{"type": "Complete", "status": "True"}]}
        failed = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
        return 200, json.dumps({**job, "status": {"conditions": kind.get(code, failed)}})

    def pods(self, place, query):
        if place.endswith("/pods"):
            name = query.removeprefix("labelSelector=job-name%3D")
            code = self.jobs[name][1].poll()
            state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
            status = {"containerStatuses": [{"name": "transformer", "state": state}]}
            return 200, json.dumps({"items": [{"metadata": {"name": name + "-x"}, "status": status}]})
        process = self.jobs[place.split("/")[-2].removesuffix("-x")][1]
        return 200, process.stdout.read()

    def start(self, job):
        container = job["spec"]["template"]["spec"]["containers"][0]
        places = {m["mountPath"]: self.volume / m["subPath"] for m in container["volumeMounts"]}

        def inside(word):
            return next(
                (str(p) + word[len(m) :] for m, p in places.items() if word.startswith(m + "/")), word
            )

        return subprocess.Popen(
            [inside(w) for w in container["command"]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def end(process):
        process.kill()
        process.wait()
        process.stdout.close()

    def close(self):
        for _, process in self.jobs.values():
            self.end(process)
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "token").write_text("account-token\n")
    made = Cluster(tmp_path / "volume", "account-token")
    yield made
    made.close()


@pytest.fixture
def settings(cluster, generator, tmp_path):
    return Container(
        generator=generator, runner="kubernetes", image="reg.org/top:1", volume=str(cluster.volume),
        server=cluster.url, namespace="hep", claim="work", token_file=str(tmp_path / "token"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from doma.columns import container_kubernetes

    monkeypatch.setattr(container_kubernetes.KubernetesRunner, "poll", 0.05)


def test_kubernetes_runs_a_job_without_rights_over_the_shared_volume_and_removes_it(
    cluster, settings, muons, tmp_path
):
    seen = []
    begin = cluster.start
    cluster.start = lambda job: (seen.append(job), begin(job))[1]
    cluster.failures = 2  # the API server is away for a moment
    _, log = delivered(settings, muons, tmp_path / "out")
    check(tmp_path / "out")
    assert "as root-file" in log
    assert cluster.jobs == {}
    (job,) = seen
    assert job["spec"]["backoffLimit"] == 0
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [m["readOnly"] for m in pod["containers"][0]["volumeMounts"]] == [True, True, False]
    assert pod["volumes"] == [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}]
    assert not list(cluster.volume.iterdir())


def test_a_job_that_fails_or_hangs_is_removed_and_its_log_kept(cluster, settings, muons, tmp_path):
    with pytest.raises(BadQuery, match="exit code 4: why") as failed:
        delivered(settings, muons, tmp_path / "out", '{"reco": "x", "parton": "echo why; exit 4"}')
    assert "why" in failed.value.detail["log"]
    hasty = settings.model_copy(update={"timeout": 0.5})
    with pytest.raises(LimitExceeded, match="not finished"):
        delivered(hasty, muons, tmp_path / "out", '{"reco": "x", "parton": "exec sleep 60 > /dev/null 2>&1"}')
    assert cluster.jobs == {}
    assert not list(cluster.volume.iterdir())


def test_a_cluster_that_refuses_or_is_away_is_said_so_without_the_token(cluster, settings, muons, tmp_path):
    (tmp_path / "token").write_text("wrong")
    with pytest.raises(ServiceUnavailable, match=r"POST .*: 401") as failed:
        delivered(settings, muons, tmp_path / "out")
    assert "wrong" not in str(failed.value)
    lost = settings.model_copy(update={"server": "http://127.0.0.1:1"})
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        delivered(lost, muons, tmp_path / "out")
    with pytest.raises(ServiceUnavailable, match="no usable service account"):
        delivered(settings.model_copy(update={"token_file": "/nonexistent"}), muons, tmp_path / "out")


def test_a_running_system_offers_what_is_configured_and_nothing_else(start, generator, tmp_path):
    text = '[columns]\npython = "off"\n[columns.containers.topcp]\nrunner = "command"\n'
    (tmp_path / "doma.toml").write_text(f'{text}generator = "{generator}"\n')
    system = start("home", "--config", tmp_path / "doma.toml")
    offered = system.ask("GET", "/servicex").json()["code-gen-image"]
    assert "topcp" in offered
    assert not {"python", "cms", "atlasr22"} & set(offered)
    system.put("/site/top/muons.root", CMS.read_bytes())

    def submit(codegen, selection):
        url = f"{system.run['https']}/site/top/muons.root"
        ask = {"file-list": [url], "selection": selection, "codegen": codegen,
               "result-destination": "object-store", "result-format": "root-file"}  # fmt: skip
        return system.ask("POST", "/servicex/transformation", json=ask)

    for codegen, selection, said in (
        ("python", "eA==", "not offered"),
        ("cms", "x", "not offered"),
        ("topcp", "x", "JSON object"),
        ("topcp", '{"reco": "x", "image": "evil.org/x"}', "may not run here"),
    ):
        answer = submit(codegen, selection)
        assert (answer.status_code, said in answer.json()["message"]) == (400, True), answer.text
    place = f"/servicex/transformation/{submit('topcp', SELECTION).json()['request_id']}"
    deadline = time.monotonic() + 50
    while (found := system.ask("GET", place).json())["status"] in {"Submitted", "Running"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (found["status"], found["files-completed"]) == ("Complete", 1), found
