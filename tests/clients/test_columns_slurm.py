"""Column delivery in jobs of a real batch system: a Slurm of one node, made for these tests."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uproot

from tests.tied import Tied

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged")

pytestmark = pytest.mark.client

CONFIG = """\
ClusterName=doma
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/m/socket
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/controller.pid
SlurmdPidFile={base}/node.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=1
SchedulerParameters=batch_sched_delay=1,sched_interval=1
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=2 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

SETTINGS = """\
[columns]
pool = "dask"
worker_memory = 2000000000
[columns.dask]
cluster = "slurm"
workers = 1
[columns.dask.options]
queue = "all"
cores = 1
processes = 1
memory = "900MB"
walltime = "00:10:00"
interface = "lo"
log_directory = "{folder}"
local_directory = "{folder}"
"""


def _until(what: Callable[[], bool], why: str) -> None:
    ends = time.monotonic() + 40
    while not what():
        assert time.monotonic() < ends, why
        time.sleep(0.1)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A controller, a node and their authentication, running; commands find them by the environment."""
    if missing := [p for p in PROGRAMS if shutil.which(p) is None]:
        pytest.skip(f"{', '.join(missing)}: install slurm-wlm and munge")
    if os.geteuid():
        pytest.skip("a node of Slurm starts jobs as root only")
    # Sockets have short names only.
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    for name in ("m", "state", "spool"):
        (base / name).mkdir()
    base.chmod(0o755)
    key = base / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    text = CONFIG.format(base=base, controller=_port(), node=_port(), host=socket.gethostname().split(".")[0])
    (base / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(base / "slurm.conf"))
    munge = ["munged", "--foreground", "--force", f"--socket={base}/m/socket", f"--key-file={key}"]
    munge += [f"--log-file={base}/munged.log", f"--pid-file={base}/m/pid", f"--seed-file={base}/m/seed"]
    daemons: list[Tied] = []

    def begin(*command: str) -> None:
        with (base / f"{command[0]}.out").open("wb") as out:
            daemons.append(Tied(command, stdout=out, stderr=out))

    try:
        begin(*munge)
        _until((base / "m/socket").exists, "munged did not start")
        begin("slurmctld", "-D")
        begin("slurmd", "-D", "-N", "localhost")

        def ready() -> bool:
            if daemons[-1].poll() is not None:  # without control groups, say
                pytest.skip(f"slurmd cannot run here: {(base / 'slurmd.out').read_text().splitlines()[-1]}")
            return _said("sinfo", "-h", "-o", "%T") == "idle"

        _until(ready, f"no node is idle; see {base}")
        yield base
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(base, ignore_errors=True)


def test_a_request_runs_in_a_job_of_slurm_that_ends_with_the_service(slurm, start, tmp_path):
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "data").mkdir()
    with uproot.recreate(tmp_path / "data/a.root") as file:
        file.mktree("t", {"x": "f8"})
        file["t"].extend({"x": np.arange(1000, dtype="f8")})
    (tmp_path / "doma.toml").write_text(SETTINGS.format(folder=tmp_path / "jobs"))
    system = start("home", "--config", tmp_path / "doma.toml", "--data", tmp_path / "data")
    table = system.deliver(f"{system.run['https']}/data/a.root", ("x",), "t")
    assert list(table["x"]) == list(range(1000))
    name, state = _said("squeue", "-h", "-o", "%j %T").split()
    assert (name, state) == ("dask-worker", "RUNNING")
    assert system.down() == 0
    _until(lambda: not _said("squeue", "-h", "-t", "RUNNING,PENDING"), "the job outlives the service")
