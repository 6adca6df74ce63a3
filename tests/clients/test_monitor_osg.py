"""OSG's Python collector reads our monitoring packets: the program itself, unchanged.

It is no package: clone ``opensciencegrid/xrootd-monitoring-collector``, set ``OSG_COLLECTOR`` to its folder.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

PLACE = Path(os.environ.get("OSG_COLLECTOR", "")) / "Collectors"

pytestmark = pytest.mark.skipif(
    not (PLACE / "DetailedCollector.py").is_file(),
    reason="needs OSG's collector: clone opensciencegrid/xrootd-monitoring-collector, set OSG_COLLECTOR",
)

DRIVER = """
import configparser, json, logging, queue, sys, types
for missing in ("pika", "pika.spec"):
    sys.modules.setdefault(missing, types.ModuleType(missing))  # the broker's client, which is not used here
sys.path.insert(0, sys.argv[1])
import DetailedCollector
section = configparser.ConfigParser()
section["AMQP"] = {k: k for k in ("exchange", "wlcg_exchange", "tcp_exchange", "exchange_cache",
    "wlcg_exchange_cache", "exchange_tpc", "wlcg_exchange_tpc")}
collector = DetailedCollector.DetailedCollector(section, ("127.0.0.1", 0))
collector.logger, collector.metrics_q, records = logging.getLogger("osg"), queue.Queue(), []
collector.publish = lambda key, record, retry=True, exchange=None: records.append([exchange, record])
for line in sys.stdin:
    collector.process(bytes.fromhex(line), "127.0.0.1", 4444)
failed = [m for m in list(collector.metrics_q.queue) if "failed" in m["type"]]
print(json.dumps({"records": records, "failed": failed}))
"""


def test_it_makes_its_records_of_what_clients_did(start: Any, tmp_path: Path) -> None:
    taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taker.bind(("127.0.0.1", 0))
    taker.settimeout(3)
    config = tmp_path / "c.toml"
    place = f"127.0.0.1:{taker.getsockname()[1]}"
    config.write_text(f'[monitor]\ndest = ["{place}"]\nsite = "T2_TEST"\nflush = 0.3\nidle = 0.3\n')
    system = start("home", "--config", config)
    system.put("/site/user/a.bin", bytes(300_000))
    system.put("/site/store/b.bin", bytes(200_000))
    for path in ("/cache/user/a.bin", "/cache/store/b.bin"):
        assert system.ask("GET", path, headers={"User-Agent": "probe/7"}).status_code == 200
    if shutil.which("xrdcp"):
        place = f"{system.run['endpoints']['cache']['root']}/user/a.bin?authz=Bearer%20{system.token()}"
        subprocess.run(["xrdcp", "-s", place, str(tmp_path / "got")], check=True, timeout=60)
    packets = []
    with suppress(TimeoutError):  # nothing more comes
        while True:
            packets.append(taker.recv(65536).hex())
    taker.close()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, str(PLACE)],
        input="\n".join(packets), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])  # it prints, too
    assert found["failed"] == []
    files = [r for exchange, r in found["records"] if exchange == "exchange" and r["vo"] == "doma"]
    mine = [r for r in files if r["filename"] == "/user/a.bin" and r["user_dn"] == "ada"]
    assert {r["protocol"] for r in mine} >= ({"https", "xroot"} if shutil.which("xrdcp") else {"https"})
    for record in mine:
        assert (record["filesize"], record["site"], record["HasFileCloseMsg"]) == (300_000, "T2_TEST", 1)
        assert record["read"] + record["readv"] == 300_000
        assert record["logical_dirname"] == "/user/a.bin"
    caches = [r for exchange, r in found["records"] if exchange == "exchange_cache"]
    assert sum(r["bytes_hit_cache"] + r["bytes_miss_cache"] for r in caches) >= 300_000
    assert [r for exchange, r in found["records"] if exchange == "wlcg_exchange_cache"], "by its path, /store"
