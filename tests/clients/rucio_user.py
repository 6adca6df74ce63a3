"""What a site's admin and a user do with a real Rucio server: a program of ``test_rucio_server.py``.

Reads ``{"host", "port", "prefix", "folder", "scope", "names"}`` from its input and prints what each gave.
Runs where PyPI's ``rucio`` is; the environment has the configuration and the token for the storage.
"""

import json
import sys
from pathlib import Path
from typing import Any

RSE = "DOMA_DISK"


def main(job: dict[str, Any]) -> dict[str, Any]:
    from rucio.client import Client
    from rucio.client.downloadclient import DownloadClient
    from rucio.client.uploadclient import UploadClient
    from rucio.common.exception import RucioException

    client, folder, scope = Client(), Path(job["folder"]), job["scope"]
    client.add_rse(RSE)
    once = {"read": 1, "write": 1, "delete": 1}
    tpc = {"third_party_copy_read": 1, "third_party_copy_write": 1}
    client.add_protocol(
        RSE,
        {
            "scheme": "davs", "hostname": job["host"], "port": job["port"], "prefix": job["prefix"],
            "impl": "rucio.rse.protocols.gfal.Default", "domains": {"lan": once, "wan": once | tpc},
        },
    )  # fmt: skip
    client.add_rse_attribute(RSE, "verify_checksum", True)
    client.add_scope("root", scope)
    client.set_local_account_limit("root", RSE, -1)
    said: dict[str, Any] = {}
    items = [
        {
            "path": str(folder / name),
            "rse": RSE,
            "did_scope": scope,
            "dataset_scope": scope,
            "dataset_name": "all",
        }
        for name in job["names"]
    ]
    said["upload"] = UploadClient(client).upload(items)
    try:
        said["upload again"] = UploadClient(client).upload(items[:1])
    except RucioException as e:
        said["upload again"] = type(e).__name__
    client.add_container(scope, "every")
    client.attach_dids(scope, "every", [{"scope": scope, "name": "all"}])
    replicas = client.list_replicas([{"scope": scope, "name": "every"}])
    said["replicas"] = {one["name"]: [list(one["pfns"]), one["bytes"], one["adler32"]] for one in replicas}
    got = DownloadClient(client).download_dids(
        [{"did": f"{scope}:all", "base_dir": str(folder / "back"), "no_subdir": True}]
    )
    said["download"] = sorted((one["did"], one["clientState"]) for one in got)
    return said


def remove(job: dict[str, Any]) -> dict[str, Any]:
    """End the rules, and let Rucio's own daemons delete what nobody wants."""
    from rucio.client import Client
    from rucio.daemons.judge.cleaner import run as clean
    from rucio.daemons.reaper.reaper import run as reap
    from rucio.db.sqla.session import get_session
    from sqlalchemy import text

    client, scope = Client(), job["scope"]
    for name in ("all", *job["names"]):
        for rule in list(client.list_did_rules(scope, name)):
            client.delete_replication_rule(rule["id"], purge_replicas=True)
    clean(once=True, threads=1)
    with get_session()() as session, session.begin():
        session.execute(text("UPDATE replicas SET tombstone = '2000-01-01 00:00:00'"))  # no day of grace
    reap(threads=1, chunk_size=100, once=True, greedy=True, rses=[], include_rses=RSE, delay_seconds=0)
    left = client.list_replicas([{"scope": scope, "name": name} for name in job["names"]], all_states=True)
    return {"left": [one["name"] for one in left if one["pfns"]]}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print("SAID " + json.dumps({"use": main, "remove": remove}[sys.argv[1]](asked)))
